"""A training run that is killed (SIGKILL) and given the same command again ends as the one that was not, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from files import save_all, write_rows

from hf_learned_order.training.saved import last_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("killed")  # one worker: the process that forks has imported everything once
CASES = {
    "elbo": ["--law", "non_empty", "--max_denoising_steps", "3", "--num_chains", "2", "--min_denoising_steps", "2"],
    "count": ["--law", "count", "--max_denoising_steps", "4", "--num_chains", "2", "--target_nfe", "2.5"],
    "lora": [
        "--objective",
        "elbo",
        "--use_lora",
        "true",
        "--lora_rank",
        "2",
        "--max_denoising_steps",
        "2",
        "--num_chains",
        "2",
    ],
    "regret": ["--law", "regret", "--max_denoising_steps", "4", "--target_nfe", "3"],
    "reward": ["--law", "regret", "--objective", "reward", "--max_denoising_steps", "4", "--num_chains", "2"],
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """A process that runs scripts in its children."""
    errors = (tmp_path_factory.mktemp("forks") / "errors.txt").open("w+")
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/training", "examples"))
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(ROOT / "tests" / "forks.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    server.errors = errors
    yield server
    server.stdin.close()
    server.wait()
    server.stdout.close()
    errors.close()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    save_all(folder)
    write_rows(folder / "train.jsonl", 404, 0)
    return folder


def start(forks, material: Path, output: Path, case: str) -> int:
    command = [
        *(ROOT / "examples" / "train.py", "--model_name_or_path", material / "denoiser"),
        *("--train_file", material / "train.jsonl", "--output_dir", output, *CASES[case]),
        *("--num_problems", "8", "--scorer_size", "16", "--scorer_layers", "1", "--per_device_train_batch_size", "2"),
        # four updates are an epoch
        *("--max_steps", "9", "--save_steps", "3", "--logging_steps", "1", "--disable_tqdm", "true"),
        *("--use_cpu", "true", "--dataloader_pin_memory", "false"),
    ]
    forks.stdin.write(json.dumps([str(part) for part in command]) + "\n")
    forks.stdin.flush()
    return int(forks.stdout.readline())


def end(forks) -> int:
    """How the run ended, by its exit status; what it printed is between."""
    while not (line := forks.stdout.readline()).strip().lstrip("-").isdecimal():
        assert line, "the process that forks has ended"
    if int(line) == 1:
        forks.errors.seek(0)
        pytest.fail(forks.errors.read()[-4000:])
    return int(line)


# one with a posterior and drawn budgets, one whose speed is held
FEW = ("count",)


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in CASES])
def test_a_killed_run_ends_as_if_it_had_not_been(case, forks, material, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(forks, material, whole, case)
    assert end(forks) == 0
    process = start(forks, material, killed, case)
    # as soon as it begins to write the second checkpoint, which it may leave half written
    while not (killed / "checkpoint-6").exists():
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert end(forks) == -signal.SIGKILL
    assert Path(last_checkpoint(killed)).name in ("checkpoint-3", "checkpoint-6")
    assert not (killed / "model.safetensors").exists()
    start(forks, material, killed, case)
    assert end(forks) == 0
    files = sorted(path.relative_to(whole) for path in whole.glob("*/*.safetensors"))
    files += sorted(path.relative_to(whole) for path in whole.glob("*.safetensors"))
    assert files
    for file in [*files, "config.json"]:
        if file != "config.json" or case in ("count", "regret"):
            assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    histories = [
        json.loads((folder / "checkpoint-9" / "trainer_state.json").read_text())["log_history"]
        for folder in (whole, killed)
    ]
    assert histories[0] == histories[1]


def test_half_a_checkpoint_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for number, state in ((2, "{}"), (10, "{}"), (12, '{"global'), (14, None)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
