"""The options that commands share, how far a command is, and several processes that share one."""

import io
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from files import save_all
from published import write_remote_code
from transformers.utils import logging

from hf_learned_order.cli.main import main
from hf_learned_order.cli.options import RULES, load_both
from hf_learned_order.cli.progress import Progress
from hf_learned_order.common.processes import finish, from_first, in_turn, is_first, started_processes
from hf_learned_order.decoding.samplers.table import SAMPLERS

ROOT = Path(__file__).parents[2]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A denoiser, two scorers, train.jsonl and test.jsonl."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("files")
    save_all(folder)
    yield folder
    logging.enable_progress_bar()


def model_options(folder, **changed) -> Namespace:
    given = {"model": str(folder / "denoiser"), "dtype": "auto", "device_map": None, "trust_remote_code": False}
    return Namespace(**{**given, **changed})


def generate(folder, prompt: str, *more: str) -> list[str]:
    return ["generate", "--model", str(folder / "denoiser"), "--prompt", prompt, *more]


# ---- options -----------------------------------------------------------------------------------------------------


def test_no_option_is_abbreviated(capsys):
    """`--task` is not `--tasks`, nor is `--limit` half of another."""
    for command in (["evaluate", "--model", "x", "--task", "sudoku"], ["generate", "--model", "x", "--prom", "y"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
    assert "unrecognized arguments: --task sudoku" in capsys.readouterr().err


def test_help_tells_names_and_defaults(capsys):
    assert tuple(SAMPLERS) == RULES
    for command in ("generate", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert all(name in printed for name in RULES)
        assert "auto: as it was saved (default: auto)" in printed
        assert "None" not in printed
        assert "model: --model" in printed  # options stand in groups
    assert "(default: 2 4 6 8 12 16)" in printed


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("hf-learned-order 0.")


def test_dtype_and_device_map(folder):
    _, model = load_both(model_options(folder))
    assert model.dtype == torch.float64  # as it was saved
    assert not model.training
    tokenizer, model = load_both(model_options(folder, dtype="bfloat16", device_map="cpu"))
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    assert model.config.vocab_size == len(tokenizer)
    with pytest.raises(ValueError, match=r"device_map must be left out with 2 processes, .* got auto"):
        load_both(model_options(folder, device_map="auto"), Namespace(num_processes=2))


def test_a_process_runs_on_its_own_device(folder):
    _, model = load_both(model_options(folder), Namespace(num_processes=2, device=torch.device("meta")))
    assert model.device.type == "meta"


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_flags_of_a_large_model(folder, capsys, command, tmp_path):
    """Both commands, from the flags to what they print."""
    flags = ["--dtype", "float32", "--device_map", "auto", "--trust_remote_code"]
    if command == "generate":
        assert main(generate(folder, "16-3;a*2", "--max_new_tokens", "8", *flags)) == 0
        return
    files = ["--train_file", str(folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
    small = ["--canvas_length", "32", "--limit", "2", "--tuning_limit", "2", "--nfe", "2", "--samplers", "top_prob"]
    out = ["--no_bound", "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", "--model", str(folder / "denoiser"), *files, *small, *out, *flags]) == 0
    assert " top_prob " in capsys.readouterr().out


def test_remote_code_is_run_only_if_trusted(folder, tmp_path):
    """Of the model; a tokenizer may bring some, too."""
    load_both(model_options(folder))[0].save_pretrained(tmp_path)
    name = write_remote_code(tmp_path, "LLaDAMoEModelLM")
    with pytest.raises(ValueError, match="trust_remote_code must be True to load"):
        load_both(model_options(folder, model=name))
    _, model = load_both(model_options(folder, model=name, trust_remote_code=True))
    assert type(model).__module__.startswith("transformers_modules.")


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_a_default_that_works(folder, capsys):
    """Without --sampler: the learned order where there is a scorer, else top probability."""
    for given, named in ((["--scorer", str(folder / "scorer-0")], "learned_order"), ([], "top_prob")):
        printed = []
        for sampler in ([], ["--sampler", named]):
            command = generate(folder, "16-3;a*2", *given, *sampler, "--max_denoising_steps", "4")
            assert main(command) == 0
            printed.append(capsys.readouterr())
        assert printed[0] == printed[1]


def test_a_prompt_that_the_tokenizer_does_not_know(folder, capsys):
    """Prints what the model does not see, once each."""
    assert main(generate(folder, "Is 3+4 9?", "--max_denoising_steps", "1")) == 0
    assert "the tokenizer does not know 'I', 's', '?'; the model sees [UNK] there\n" in capsys.readouterr().err.replace(
        "'s', ' '", "'s'"
    )
    assert main(generate(folder, "3+4", "--max_denoising_steps", "1")) == 0
    assert "does not know" not in capsys.readouterr().err


def test_infill(folder, capsys):
    """The masks within the prompt are filled; the rest stays, and nothing is added."""
    assert main(generate(folder, "1+[MASK]=[MASK] #[MASK]", "--infill")) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("1+")
    calls, _, _ = printed.err.partition(" denoiser calls, ")
    assert int(calls) == 3
    assert main(generate(folder, "1+1=2", "--infill")) == 2
    expected = "--prompt must hold the tokenizer's mask token [MASK] with --infill, got 1+1=2"
    assert expected in capsys.readouterr().err
    assert main(generate(folder, "1+[MASK]", "--infill", "--max_new_tokens", "8")) == 2
    assert "max_new_tokens must be None with infill=True" in capsys.readouterr().err


def test_chat_template(folder, tmp_path, capsys):
    """Where the tokenizer has one it is used; without it the prompt is the text."""
    tokenizer, model = load_both(model_options(folder))
    tokenizer.chat_template = CHAT
    for each in (tokenizer, model):
        each.save_pretrained(tmp_path / "denoiser")
    steps = ["--max_denoising_steps", "4"]

    def printed(where, prompt: str, *more: str) -> str:
        assert main(generate(where, prompt, *more, *steps)) == 0
        return capsys.readouterr().out

    # the template adds a sign, and no [SEP]; as plain text the tokenizer adds its own
    assert printed(tmp_path, "16-3", "--no-chat_template") == printed(folder, "16-3")
    chat = printed(tmp_path, "16-3")
    assert chat == printed(tmp_path, "16-3", "--chat_template")
    assert chat == printed(tmp_path, "-3", "--system_prompt", "16")
    assert chat != printed(folder, "16-3")
    for where, options, message in (
        (folder, ["--chat_template"], "--chat_template must be left out with a tokenizer that has none"),
        (folder, ["--system_prompt", "a"], "--system_prompt must be left out without a chat template, got a"),
        (tmp_path, ["--chat_template", "--infill"], "--chat_template must be left out with --infill"),
    ):
        assert main(generate(where, "1+[MASK]", *options)) == 2
        assert message in capsys.readouterr().err


# ---- progress ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_without_a_terminal(capsys):
    with Progress(["a", "b", "c"], every=0.0) as bar:
        bar.advance()
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1 of 3 done, about 0:00:00 left: b", "2 of 3 done, about 0:00:00 left: c"]
    for rarely in (Progress(["a", "b"]), Progress(["a", "b"], shown=False, every=0.0), Progress([])):
        with rarely as bar:
            if bar.names:
                bar.advance()
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(["first", "second"]) as bar:
        bar.advance()
    assert "second" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()


# ---- processes ---------------------------------------------------------------------------------------------------


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert started_processes() is None
    assert is_first(None)
    assert from_first(None, [1]) == [1]
    with in_turn(None):
        finish(None)


@pytest.mark.slow  # three processes; test_evaluator.py shares the rows of one between two
def test_two_processes_measure_the_same(folder, capsys):
    files = ["--train_file", str(folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
    small = ["--canvas_length", "32", "--limit", "5", "--tuning_limit", "4", "--nfe", "4", "--seeds", "2"]
    rules = ["--samplers", "iid", "factor", "learned_order", "--scorer", str(folder / "scorer-0"), "--batch_size", "2"]
    command = ["evaluate", "--model", str(folder / "denoiser"), *files, *small, *rules]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "hf_learned_order.cli.main", *command, "--output_dir", str(folder / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert main([*command, "--output_dir", str(folder / "one")]) == 0
    assert (folder / "two" / "results.json").read_text() == (folder / "one" / "results.json").read_text()
    assert done.stdout.replace("/two", "/one") == capsys.readouterr().out  # printed once


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "--tasks", "copy", "sort", "--test_file", "x"], "--test_file must be left out with copy, sort"),
        (["calibrate", "--task", "infill", "--plain_prompts"], "--plain_prompts must be left out with infill"),
    ],
)
def test_data_that_no_task_reads(command, message, folder, capsys):
    more = ["--sampler", "threshold", "--risk", "0.1", "--output_dir", "x"] if command[0] == "calibrate" else []
    assert main([*command, "--model", str(folder / "denoiser"), *more]) == 2
    assert message in capsys.readouterr().err
