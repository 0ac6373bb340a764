"""Rows become batches, and what does not fit is named."""

import numpy as np
import pytest
import torch

from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.data import equation_tokenizer
from hf_learned_order.tasks.table import TASKS


@pytest.fixture
def tokenizer():
    return equation_tokenizer()


def test_collator_pads_left_and_fills_with_eos(tokenizer):
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    rows = [{"prompt_ids": [7, 8, 9], "response_ids": [10]}, {"prompt_ids": [7], "response_ids": [10, 11, 12]}]
    batch = CanvasCollator(tokenizer=tokenizer, canvas_length=3)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 8, 9], [pad, pad, 7]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "clean": [[10, eos, eos], [10, 11, 12]],
    }


def test_collator_with_too_short_a_canvas(tokenizer):
    with pytest.raises(ValueError, match="canvas_length must hold every response, got 2"):
        CanvasCollator(tokenizer=tokenizer, canvas_length=2)([{"prompt_ids": [7], "response_ids": [10, 11, 12]}])


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"prompt_ids": [7, 40]}, ValueError, r"prompt_ids must hold ids in \[0, 40\), got 40"),
        ({"response_ids": [-1, 7]}, ValueError, r"response_ids must hold ids in \[0, 40\), got -1"),
        ({"response_ids": [7, 1]}, ValueError, "response_ids must be whole responses, without the mask token, got 1"),
        ({"response_ids": "1+1"}, TypeError, "response_ids must be a list of token ids, got '1\\+1'"),
        ({"prompt_ids": [1.5]}, TypeError, r"prompt_ids must be a list of token ids, got \[1\.5\]"),
        ({"prompt_ids": None}, TypeError, "prompt_ids must be a list of token ids, got None"),
        ({"given": [True, False]}, ValueError, "given must say of each of the 3 positions of the canvas, .*, got 2"),
        ({"given": None}, ValueError, "given must say of each of the 3 positions .*, got None"),
        ({"answer": 18}, TypeError, 'answer must be a text, "" where there is none, got 18'),
        ({"answer": None}, TypeError, 'answer must be a text, "" where there is none, got None'),
    ],
)
def test_collator_looks_at_every_row(columns, error, message, tokenizer):
    collator = CanvasCollator(tokenizer=tokenizer, canvas_length=3, with_answers=True, vocab_size=40)
    row = {"prompt_ids": [7], "response_ids": [10], "given": [True, False, False], "answer": "1"}
    assert len(collator([row, row])["given"]) == 2
    with pytest.raises(error, match=message):
        collator([row, {**row, **columns}])


@pytest.mark.parametrize("column", ["prompt_ids", "response_ids"])
def test_collator_needs_both_columns(column, tokenizer):
    row = {"prompt_ids": [7], "response_ids": [10]}
    del row[column]
    with pytest.raises(ValueError, match=f"rows must have a column {column}, got {next(iter(row))}"):
        CanvasCollator(tokenizer=tokenizer, canvas_length=3)([row])


def test_collator_takes_ids_of_any_integer_type(tokenizer):
    collator, row = CanvasCollator(tokenizer=tokenizer, canvas_length=3), {"prompt_ids": [7], "response_ids": [10]}
    for kind in (np.array, torch.tensor):
        batch = collator([{name: kind(ids) for name, ids in row.items()}])
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            name: tensor.tolist() for name, tensor in collator([row]).items()
        }
    # without a vocabulary size no id is too large
    assert collator([{**row, "prompt_ids": [10**6]}])["input_ids"].item() == 10**6


def test_collator_needs_pad_and_eos(tokenizer):
    for name, message in (("eos", "tokenizer must have an EOS token"), ("pad", "tokenizer must have a pad token")):
        setattr(tokenizer, f"{name}_token", None)
        with pytest.raises(ValueError, match=message):
            CanvasCollator(tokenizer=tokenizer, canvas_length=2)([{"prompt_ids": [7], "response_ids": [10]}])


def test_collator_says_what_is_given():
    tokenizer = TASKS["sudoku"].tokenizer()
    row = {"prompt_ids": [], "response_ids": [5, 6, 7], "given": [True, False, True]}
    batch = CanvasCollator(tokenizer=tokenizer, canvas_length=3)([row, row])
    assert batch["given"].tolist() == [[True, False, True]] * 2
    assert batch["input_ids"].shape == (2, 0)
    assert batch["input_ids"].dtype == batch["clean"].dtype == torch.long
