"""Two processes do what one does with twice the batch, whether each has all weights or FSDP has split them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import RESUMED, cases_of, evaluate, train_all
from safetensors.torch import load_file

from hf_learned_order.tasks.gsm8k import answered

TESTS = Path(__file__).parents[1]
# losses that are means over what differs between rows are as exact as the others
SAME = (
    "loss",
    "bound",
    "kl",
    "nfe",
    "observed",
    "predicted",
    "doubt_loss",
    "pair_loss",
    "exact",
    "right",
    "reward",
    "denoiser_calls",
    "law_bound",
    "law_bias",
    "generated_nfe",
)


pytestmark = pytest.mark.xdist_group("distributed")  # one worker: what takes long is run once for all
SLOW = {"few": (), "rest": pytest.mark.slow}


def run_both(folders, part: str):
    """Folders and logs of one process, and of two."""
    one, two = folders.mktemp("one"), folders.mktemp("two")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    done = subprocess.run(
        [
            *(sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(TESTS / "processes.py", two, part),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "training"))),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-6000:]
    logs = {
        weights: train_all(one / weights, cases, batch=4, split=weights == "split")
        for weights, cases in cases_of(part).items()
    }
    weights = "whole" if part == "few" else "split"
    logs[weights]["evaluation"] = evaluate(one, batch=4, split=part == "rest")
    return (one, logs), (two, json.loads((two / "logs.json").read_text()))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return run_both(tmp_path_factory, "few")


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return run_both(tmp_path_factory, "rest")


@pytest.mark.parametrize(
    ("part", "weights", "case"),
    [
        pytest.param(part, weights, case, marks=SLOW[part])
        for part in SLOW
        for weights, cases in cases_of(part).items()
        for case in cases
    ],
)
def test_two_processes_are_one_with_twice_the_batch(part, weights, case, request):
    runs = request.getfixturevalue(part)
    (one, single), (two, double) = runs
    one, two, single, double = one / weights / case, two / weights / case, single[weights][case], double[weights][case]
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    for file in files:
        alone, shared = load_file(one / file), load_file(two / file)
        assert alone.keys() == shared.keys()
        for name, weight in alone.items():
            # what no law feels, as one number added to all scores of the count law, moves by its rounding
            torch.testing.assert_close(
                shared[name], weight, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    # a target is solved for behind the last log
    alone, shared = (json.loads((folder / "config.json").read_text()) for folder in (one, two))
    for name in ("bound", "law_bias"):
        assert shared.get(name) == pytest.approx(alone.get(name), rel=2e-3), name
    assert len(single) == len(double) >= 2
    for alone, shared in zip(single, double, strict=True):
        assert {name: shared[name] for name in SAME if name in shared} == pytest.approx(
            {name: alone[name] for name in SAME if name in alone}, rel=2e-3, abs=2e-4
        )


@pytest.mark.parametrize(("weights", "part"), [("whole", "few"), pytest.param("split", "rest", marks=SLOW["rest"])])
def test_two_processes_evaluate_the_same_rows(weights, part, request):
    (_, single), (_, double) = request.getfixturevalue(part)
    alone, shared = single[weights]["evaluation"], double[weights]["evaluation"]
    assert shared["rows"] == alone["rows"]
    assert len(shared["rows"]) == 7
    assert all(answered(reference.partition("[EOS]")[0], answer) for reference, _, answer in shared["rows"])
    for name in ("eval_accuracy", "eval_same", "eval_generated_nfe"):
        assert shared[name] == pytest.approx(alone[name], abs=1e-4), name
    assert 0 < shared["eval_accuracy"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_split_weights_are_resumed_to_the_bit(case, rest):
    _, (folder, _) = rest
    whole, resumed = (folder / "resumed" / name for name in (case, f"{case}-resumed"))
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors") if "checkpoint-" not in str(path)]
    assert len(files) >= 2
    for file in files:
        first, again, before = (load_file(place / file) for place in (whole, resumed, whole / "checkpoint-1"))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first), file
        assert not all(torch.equal(first[name], before[name]) for name in first), file
