"""The command line of the training scripts: a file of arguments, groups, names in full."""

import json
from dataclasses import dataclass, field

import pytest
import train
import yaml

from hf_learned_order.tasks.sources import OwnData
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.scripts import THEIRS, ScriptParser

VALUES = {
    "task": "responses",
    "train_file": ["a.csv", "b.csv"],
    "hidden_layers": [1, -1],
    "learning_rate": 1e-4,
    "max_steps": 7,
    "plain_prompts": True,
    "report_to": "none",
    "use_cpu": True,
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "prompt_column": None,
}


def parser() -> ScriptParser:
    return ScriptParser(train.ScriptArguments, OwnData, OrderTrainingArguments)


@pytest.mark.parametrize("name", ["arguments.yaml", "arguments.json"])
@pytest.mark.parametrize("flag", [[], ["--config"]])
def test_a_file_of_arguments(tmp_path, name, flag):
    path = tmp_path / name
    path.write_text(json.dumps(VALUES) if name.endswith("json") else yaml.safe_dump(VALUES))
    ours = parser()
    script, own, training = ours.arguments([*flag, str(path), "--max_steps", "9"])
    assert (script.task, script.train_file, script.hidden_layers) == ("responses", ["a.csv", "b.csv"], [1, -1])
    assert (own.plain_prompts, own.prompt_column) == (True, None)
    assert (training.learning_rate, training.lr_scheduler_kwargs) == (1e-4, {"num_cycles": 2})
    assert training.max_steps == 9  # what is typed counts before the file
    assert ours.words[-2:] == ["--max_steps", "9"]
    again, _, _ = parser().arguments(ours.words)  # the card's command needs no file
    assert again == script
    assert [ours.given(name) for name in ("learning_rate", "max_steps", "max_step", "prompt_column")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: responses", r"a.yaml: tasks is no argument; task is one"),
        ("zzz: 1", r"a.yaml: zzz is no argument$"),
        ("- 1", r"a.yaml: must be a table of arguments, got list"),
        ("a: [", r"a.yaml: must be a YAML or JSON file of arguments"),
    ],
)
def test_files_that_do_not_do(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parser().arguments(["--config", str(tmp_path / "a.yaml")])
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        parser().arguments([str(tmp_path / "nowhere.yaml")])


def test_the_defaults_are_a_run_that_suffices():
    training = parser().arguments([])[2]
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (32, 1)


def test_names_in_full():
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \['--max_step', '3'\]"):
        parser().arguments(["--max_step", "3"])


def test_help_is_grouped():
    text = parser().format_help()
    places = [text.index(f"\n{name}:") for name in ("scorer", "data", "LoRA", "own data", "objective", THEIRS)]
    assert all(place > 0 for place in places)
    within = text[text.index("\nobjective:") : text.index(f"\n{THEIRS}:")]
    assert "--num_chains" in within
    assert "--warmup_steps" not in within
    assert "--learning_rate" in text[text.index(f"\n{THEIRS}:") :]  # theirs, with another default


def test_a_class_without_a_group():
    @dataclass
    class Plain:
        one: int = 1
        two: int = field(default=2, metadata={"group": "pairs"})

    assert ScriptParser(Plain).arguments(["--two", "3"])[0] == Plain(1, 3)
    text = ScriptParser(Plain).format_help()
    assert "\nPlain:" in text
    assert "\npairs:" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--scorer_name_or_path a --law count --bound=2",
            "--law, --bound must be left out with --scorer_name",
        ),
        (
            "--scorer_name_or_path a --predictions_only",
            "--predictions_only must be left out with --scorer_name",
        ),
        ("--lora_rank 4", "--lora_rank must be left out without --use_lora, got .*--lora_rank 4"),
        ("--predictions_only --hidden_layers 1", "--hidden_layers must be left out with --predictions_only"),
        (
            "--task sudoku --train_file a.csv --text_column x",
            "--train_file, --text_column must be left out with --task sudoku, which does not read",
        ),
        ("--task infill --num_problems 9", "--num_problems must be left out with --task infill"),
    ],
)
def test_no_argument_is_ignored(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--output_dir", str(tmp_path), "--use_cpu", *words.split()])
    with pytest.raises(ValueError, match=message):
        train.main()
