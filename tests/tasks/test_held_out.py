"""Prompts that are measured are trained on nowhere; prompts that were trained on can be left out of a measurement."""

import json
import logging

import datasets
import pytest

from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import parse_chain
from hf_learned_order.tasks.held_out import read_prompts, without_prompts
from hf_learned_order.tasks.table import TASKS, Source

OFTEN, RARE = ("Often?", "1+1=<<1+1=2>>2\n#### 2"), ("Rare?", "9*2=<<9*2=18>>18\n#### 18")
VALIDATION = ("Held out?", "5-3=<<5-3=2>>2\n#### 2")
AS_PUBLISHED = {"keep": 1.0}  # numbers stay, so that a chain that is drawn is one of those in the file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, *rows):
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))


def files(folder, *, test=(RARE,), validation=VALIDATION):
    """A training file with ten rows before the 400 of the validation split; and a test file where there are rows."""
    write(folder / "train.jsonl", *[OFTEN, RARE] * 5, *[validation] * 400)
    if test:
        write(folder / "test.jsonl", *test)
    return {"train_file": folder / "train.jsonl"}


def load(task, **options):
    tokenizer = equation_tokenizer()
    source = Source(**{"split": "train", "count": 20, "canvas_length": 24, "resampling": AS_PUBLISHED, **options})
    return tokenizer, TASKS[task].load(tokenizer, source)


def prompts(loaded):
    tokenizer, rows = loaded
    return {tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["prompt_ids"]}


def test_training_chains_are_without_test_prompts(tmp_path, caplog):
    found = load("equations", **files(tmp_path))
    assert prompts(found) == {"1+1"}
    left_out = 20 - len(found[1])
    assert left_out > 0
    assert f"{left_out} of 20 rows left out: their prompts are those held out for validation or test" in caplog.text


def test_training_chains_are_without_validation_prompts(tmp_path):
    assert prompts(load("equations", **files(tmp_path, test=(VALIDATION,), validation=OFTEN))) == {"9*2"}


def test_questions_are_without_test_questions(tmp_path, caplog):
    _, rows = load("words", canvas_length=64, **files(tmp_path))
    assert set(rows["answer"]) == {"2"}
    assert len(rows) == 5
    assert "5 of 10 rows left out" in caplog.text


@pytest.mark.parametrize("task", ["equations", "words"])
def test_the_other_splits_are_whole(task, tmp_path):
    given = {**files(tmp_path, validation=RARE), "test_file": tmp_path / "test.jsonl", "canvas_length": 64}
    assert [len(load(task, split=split, **given)[1]) for split in ("validation", "test")] == [20, 1]


def test_another_test_file_than_the_one_beside(tmp_path):
    given = files(tmp_path)
    write(tmp_path / "other.jsonl", OFTEN)
    assert prompts(load("equations", test_file=tmp_path / "other.jsonl", **given)) == {"9*2"}


def test_without_a_test_file_that_is_said(tmp_path, caplog):
    assert prompts(load("equations", **files(tmp_path, test=()))) == {"1+1", "9*2"}
    assert "test prompts may be trained on: give test_file, or put a test.jsonl beside train_file" in caplog.text


def test_held_out_rows_without_a_chain_hold_nothing_out(tmp_path):
    given = files(tmp_path, test=(), validation=("Words?", "Two.\n#### 2"))
    assert prompts(load("equations", **given)) == {"1+1", "9*2"}


def test_nothing_remains(tmp_path):
    message = "the data set must hold another prompt than those held out .* but all 20 rows have one of them"
    with pytest.raises(ValueError, match=message):
        load("equations", **files(tmp_path, test=(OFTEN, RARE)))


def test_prompts_of_a_file(tmp_path, caplog):
    tokenizer = equation_tokenizer()
    rows = equations([parse_chain("<<1+1=2>> #### 2"), parse_chain("<<9*2=18>> #### 18")], tokenizer, canvas_length=24)
    (tmp_path / "seen.txt").write_text("9*2\n\n3-1\n")
    unwanted = read_prompts(tmp_path / "seen.txt", tokenizer)
    with caplog.at_level(logging.WARNING):
        left = without_prompts(rows, unwanted, why="those seen")
    assert left["answer"][:] == ["2"]
    assert "1 of 2 rows left out: their prompts are those seen" in caplog.text
    (tmp_path / "seen.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"seen.txt: must hold prompts, one a line, but it is empty"):
        read_prompts(tmp_path / "seen.txt", tokenizer)
