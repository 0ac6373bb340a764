"""The table of tasks: what each draws is right, splits do not meet, one seed gives one data set."""

import sys

import datasets
import pytest
from files import write_rows

from hf_learned_order.tasks import reasoning
from hf_learned_order.tasks.data import Problem, character_tokenizer, drawn, split_of, word_tokenizer
from hf_learned_order.tasks.table import TASKS, Source, find_task

DRAWN = sorted(set(TASKS) - {"equations", "words", "responses", "infill"})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(name: str, split: str = "train", **options):
    task = TASKS[name]
    source = Source(split=split, **{"canvas_length": task.canvas_length, "count": 4, **options})
    return task.load(task.tokenizer(), source)


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_right(name):
    task, rows = TASKS[name], load(name)
    tokenizer = task.tokenizer()
    assert len(rows) == 4
    assert tokenizer.unk_token_id not in [i for row in rows for i in row["prompt_ids"] + row["response_ids"]]
    responses = tokenizer.batch_decode([row["response_ids"] for row in rows], skip_special_tokens=True)
    for row, text in zip(rows, responses, strict=True):
        assert task.is_right(text, row["answer"])
        assert not task.is_right("", row["answer"])
        assert row["length"] == len(row["prompt_ids"]) + len(row["response_ids"])


@pytest.mark.parametrize("name", ["sudoku", "sudoku_12", "sudoku_unique"])
def test_a_puzzle_says_what_is_given(name):
    clues = 6 if name == "sudoku" else 12
    for row in load(name):
        assert row["prompt_ids"] == []
        assert [c != "." for c in row["answer"]] == row["given"]
        assert sum(row["given"]) == clues


def test_splits_do_not_meet_and_a_seed_is_a_data_set():
    def prompts(split: str, seed: int) -> list[str]:
        return [str(row["answer"]) for row in load("copy", split, seed=seed, count=60)]

    train, validation, test = (prompts(split, 0) for split in ("train", "validation", "test"))
    assert len({*train, *validation, *test}) == 180
    assert train == prompts("train", 0) != prompts("train", 1)
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        assert {split_of(prompt) for prompt in rows} == {split}


def test_a_hundred_texts_are_held_out_of_2500():
    splits = [split_of(str(i)) for i in range(2500)]
    assert all(60 < splits.count(split) < 140 for split in ("validation", "test"))


def test_gsm8k_from_files(tmp_path):
    for split, count in (("train", 404), ("test", 6)):
        write_rows(tmp_path / f"{split}.jsonl", count, 0)
    files = {"train_file": tmp_path / "train.jsonl", "test_file": tmp_path / "test.jsonl"}
    assert [len(load("equations", split, count=3, **files)) for split in ("validation", "test")] == [3, 3]
    assert 0 < len(load("equations", count=30, **files)) <= 30  # without those of the other splits
    row = load("equations", "test", count=1, **files)[0]
    assert TASKS["equations"].is_right(f"1+1=2 #{row['answer']}", row["answer"])
    assert not TASKS["equations"].is_right("1+1=2 #2x", row["answer"])
    words = TASKS["words"].load(TASKS["equations"].tokenizer(), Source(split="test", canvas_length=512, **files))
    assert len(words) == 6


def test_the_file_of_the_split_is_asked_for(tmp_path):
    write_rows(tmp_path / "train.jsonl", 404, 0)
    with pytest.raises(ValueError, match="dataset_name or the file of the test split must be given"):
        load("equations", "test", train_file=tmp_path / "train.jsonl")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"task must be one of equations, words, .*, got 'chess'"):
        find_task("chess")
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        load("copy", "dev")


@pytest.mark.parametrize(("name", "length"), [("sudoku", 64), ("copy", 8)])
def test_a_canvas_that_does_not_fit(name, length, monkeypatch):
    monkeypatch.setattr("hf_learned_order.tasks.data.TRIES", 100)
    with pytest.raises(ValueError, match=f"canvas_length must fit the task, got {length}: 100 draws in turn"):
        load(name, canvas_length=length)


def test_failed_draws_are_passed_over():
    calls = iter(range(100))

    def draw(rng, wanted):
        number = next(calls)
        return None if number % 2 else Problem(prompt=str(number), response="1", answer="1")

    rows = drawn(draw, character_tokenizer("0123456789"), canvas_length=2, count=5, seed=0, split="train")
    assert len(rows) == 5


def test_word_tokenizer():
    tokenizer = word_tokenizer(["fig", "owl"])
    ids = tokenizer("owl fig")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["owl", "fig", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "owl fig"


# ---- reasoning-gym -----------------------------------------------------------------------------------------------


def test_countdown_takes_any_expression_that_gives_the_target():
    for right in ("14*9/2", "9*(14/2)", "9/2*14"):
        assert reasoning.countdown_is_right(right, "14;9;2=63")
    for wrong in ("", "63", "14*9", "14*9/2+0", "14*9/3", "14*9/2=63", "14*9//2*1", "(14*9", "14**9/2", "x", "()"):
        assert not reasoning.countdown_is_right(wrong, "14;9;2=63")


def test_chain_sums():
    assert reasoning.chain_sum_is_right("-103", "-103")
    assert not any(reasoning.chain_sum_is_right(wrong, "-103") for wrong in ("", "103", "-10", "-1030", "1-104"))


def test_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning._gym.cache_clear()
    with pytest.raises(
        ImportError, match=r"task 'countdown' needs the extra: pip install 'hf_learned_order\[reasoning\]'"
    ):
        reasoning.countdown_is_right("1", "1=1")
