"""Two processes do what one does with twice the batch; weights split by FSDP have the gradients of whole ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import SPLIT, evaluate, train_all
from safetensors.torch import load_file

from hf_learned_order.gsm8k import answered

TESTS = Path(__file__).parent
# losses that are means over what differs between rows are as exact as the others
SAME = (
    "loss",
    "bound",
    "kl",
    "nfe",
    "observed",
    "predicted",
    "confidence_loss",
    "exact",
    "right",
    "reward",
    "denoiser_calls",
    "law_bound",
    "law_bias",
    "generated_nfe",
    "agreement",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders and logs of one process, and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    done = subprocess.run(
        [
            *(sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(TESTS / "processes.py", two),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    logs = {**train_all(one, batch=4), "evaluation": evaluate(one, batch=4)}
    return (one, logs), (two, json.loads((two / "logs.json").read_text()))


@pytest.mark.parametrize("case", SPLIT)
def test_two_processes_are_one_with_twice_the_batch(case, runs):
    (one, single), (two, double) = runs
    files = sorted(path.relative_to(one) for path in (one / case).rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in (two / case).rglob("*.safetensors"))
    for file in files:
        whole, split = load_file(one / file), load_file(two / file)
        assert whole.keys() == split.keys()
        for name, weight in whole.items():
            torch.testing.assert_close(
                split[name], weight, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    # a target is solved for behind the last log
    whole, split = (json.loads((folder / case / "config.json").read_text()) for folder in (one, two))
    for name in ("bound", "law_bias"):
        assert split.get(name) == pytest.approx(whole.get(name), rel=2e-3), name
    assert len(single[case]) == len(double[case]) == 3
    for alone, shared in zip(single[case], double[case], strict=True):
        assert {name: shared[name] for name in SAME if name in shared} == pytest.approx(
            {name: alone[name] for name in SAME if name in alone}, rel=2e-3, abs=2e-4
        )


def test_two_processes_evaluate_the_same_rows(runs):
    (_, single), (_, double) = runs
    alone, shared = single["evaluation"], double["evaluation"]
    assert shared["rows"] == alone["rows"]
    assert len(shared["rows"]) == 7
    assert all(answered(reference.partition("[EOS]")[0], answer) for reference, _, answer in shared["rows"])
    for name in ("eval_accuracy", "eval_same", "eval_generated_nfe"):
        assert shared[name] == pytest.approx(alone[name], abs=1e-4), name
    assert 0 < shared["eval_accuracy"] < 1


@pytest.mark.parametrize("case", ["clean", "lora", "train_denoiser"])
def test_split_weights_are_saved_whole(case, runs):
    """Their gradients are compared in `processes.py`; the same model, so the same files."""
    _, (two, _) = runs
    folder = two / f"fsdp-{case}"
    assert {"config.json", "model.safetensors", "posterior.safetensors"} <= {path.name for path in folder.iterdir()}
    assert (folder / {"lora": "adapter", "train_denoiser": "denoiser"}.get(case, ".")).is_dir()
