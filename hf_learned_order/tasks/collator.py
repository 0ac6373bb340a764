"""From rows of a data set (`data.py`) to the batches that objectives and evaluations see, checked on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_learned_order.decoding.canvas import stacked
from hf_learned_order.tasks.answers import encoded


@dataclass(frozen=True, kw_only=True)
class CanvasCollator:
    """Rows to a batch: `input_ids`, `attention_mask` [batch, prompt], `clean` [batch, canvas].

    Prompts are padded on the left, responses filled up with EOS. Where rows have `given`, so has the batch: bool
    [batch, canvas], the positions of the response that are known from the start. Where such rows have no prompt, they
    and their `given` may be shorter than the canvas: no EOS is added, they stand on the right of the canvas behind
    padding, and `attention_mask` is [batch, canvas]. With `with_answers` the batch has `answer`, too, the rows' as
    `answers.encoded` (empty where they have none). `vocab_size` is the denoiser's, if it is known.

    Raises (of a batch):
        ValueError: a column is missing or does not fit the canvas, a row with a prompt is shorter than its canvas, an
            id is outside the vocabulary, a response holds the mask token, or the tokenizer lacks a token.
        TypeError: a column is not what it must be: ids, or an answer's text.
    """

    tokenizer: PreTrainedTokenizerBase
    canvas_length: int
    with_answers: bool = False
    vocab_size: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise ValueError("tokenizer must have a pad token, got None")
        prompts, mask = stacked([self._ids(row, "prompt_ids") for row in rows], pad)
        responses = [self._ids(row, "response_ids") for row in rows]
        if max(map(len, responses)) > self.canvas_length:
            raise ValueError(f"canvas_length must hold every response, got {self.canvas_length}")
        if any(self.tokenizer.mask_token_id in response for response in responses):
            raise ValueError(
                f"response_ids must be whole responses, without the mask token, got {self.tokenizer.mask_token_id}"
            )
        if "given" in rows[0]:
            cleans, givens, masks = zip(*map(self._within, rows, responses), strict=True)
            batch = {"input_ids": prompts, "attention_mask": mask, "clean": torch.tensor(cleans)}
            batch["given"] = torch.tensor(givens, dtype=torch.bool)
            if not all(map(all, masks)):
                if prompts.shape[1]:
                    raise ValueError(
                        "prompt_ids must be empty where rows are shorter than the canvas: put the prompt into "
                        "response_ids, as given positions"
                    )
                batch["attention_mask"] = torch.tensor(masks)
        else:
            cleans = [self._filled(response) for response in responses]
            batch = {"input_ids": prompts, "attention_mask": mask, "clean": torch.tensor(cleans)}
        if self.with_answers:
            batch["answer"] = encoded([_answer(row) for row in rows])
        return batch

    def _ids(self, row: dict[str, Any], column: str) -> list[int]:
        if column not in row:
            raise ValueError(f"rows must have a column {column}, got {', '.join(row) or 'none'}")
        try:
            ids = [index(number) for number in row[column]]
        except TypeError as error:
            raise TypeError(f"{column} must be a list of token ids, got {row[column]!r}") from error
        size = math.inf if self.vocab_size is None else self.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < size:
            outside = next(number for number in ids if not 0 <= number < size)
            raise ValueError(f"{column} must hold ids in [0, {size}), got {outside}")
        return ids

    def _filled(self, response: list[int]) -> list[int]:
        """With EOS up to the length of the canvas."""
        short, eos = self.canvas_length - len(response), self.tokenizer.eos_token_id
        if short and eos is None:
            raise ValueError(
                "tokenizer must have an EOS token, with which responses are filled up, got None: name one "
                "(tokenizer.eos_token = tokenizer.sep_token), or train on texts to infill"
            )
        return response + [eos] * short

    def _within(self, row: dict[str, Any], response: list[int]) -> tuple[list[int], list[bool], list[int]]:
        """The canvas of a row with `given` positions, these, and its attention mask."""
        given, length = row.get("given"), self.canvas_length
        if given is not None and len(given) == length:
            return self._filled(response), list(given), [1] * length
        if given is None or len(given) != len(response):
            raise ValueError(
                f"given must say of each of the {length} positions of the canvas, or of the {len(response)} of the "
                f"response, whether it is known, got {given if given is None else len(given)}"
            )
        short = length - len(response)
        clean = [self.tokenizer.pad_token_id] * short + response
        return clean, [True] * short + list(given), [0] * short + [1] * len(response)


def _answer(row: dict[str, Any]) -> str:
    answer = row.get("answer", "")
    if not isinstance(answer, str):
        raise TypeError(f'answer must be a text, "" where there is none, got {answer!r}')
    return answer
