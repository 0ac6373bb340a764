"""Answers that go with their rows, and what is judged by them.

Trainer gathers tensors only. So the answer of each row goes with it, as the characters of its text: however rows are
ordered, split among processes and padded, each is judged by its own: in evaluations, as `Trainer` takes it
(`compute_metrics=AnswerMetrics(tokenizer, ...)`), and where an objective needs a judge (`judged`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction, PreTrainedTokenizerBase

from hf_learned_order.tasks.gsm8k import answered

PADDING = -100  # what Trainer pads labels with


@dataclass(frozen=True, kw_only=True)
class Response:
    """A decoded response and its row, for a task's `score`.

    Attributes:
        text: without special tokens, up to the first EOS.
        ids: of the canvas, as many as `expected` where parts were given, else all of them.
        expected: the ids of the row's response.
        given: which positions were known from the start; None if none.
        answer: the row's.
    """

    text: str
    ids: list[int]
    expected: list[int]
    given: list[bool] | None
    answer: str


def encoded(texts: Sequence[str]) -> Tensor:
    """int [rows, longest + 1]: the code points of each text, then padding."""
    rows = [torch.tensor([*map(ord, text), PADDING]) for text in texts]
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)


def decoded(codes: Sequence[Sequence[int]]) -> list[str]:
    """The texts of `encoded` rows [rows, width]."""
    return ["".join(chr(code) for code in row if code != PADDING) for row in codes]


def judged(
    tokens: Tensor, answers: Tensor, *, tokenizer: PreTrainedTokenizerBase, is_right: Callable[[str, str], bool]
) -> Tensor:
    """bool [rows]: which responses, int [rows, canvas], are right by their `encoded` answers ("" where there is none).

    `tokenizer` and `is_right` are those of `AnswerMetrics`; without them it is a judge of `reward.RewardObjective`.
    """
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    right = [is_right(text, answer) for text, answer in zip(texts, decoded(answers.tolist()), strict=True)]
    return torch.tensor(right, dtype=torch.bool, device=tokens.device)


class AnswerMetrics:
    """From an evaluation of `OrderTrainer` to what of its decoded responses is right.

    `same`: share of responses whose text, up to the first EOS, is the reference's; `accuracy`: share of those rows that
    have an answer whose response is right; `recovered`, where parts were given: share of the other positions, over all
    rows, that have the reference's token.

    Args:
        tokenizer: makes text of the responses.
        is_right: from a response and the row's `answer`, a task's (`tasks.TASKS`); by default the number behind `#` is
            compared.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, is_right: Callable[[str, str], bool] = answered):
        self.tokenizer = tokenizer
        self.is_right = is_right

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """`predictions` are token ids [rows, canvas], `label_ids` those of the references and the `encoded` answers.

        Where parts were given, these come third: bool [rows, canvas].
        """
        labels: Any = prediction.label_ids
        references, answers, *given = labels
        texts, expected = (
            # pyrefly: ignore[bad-argument-type] (one array each)
            self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for ids in (prediction.predictions, references)
        )
        measured = {"same": sum(text == right for text, right in zip(texts, expected, strict=True)) / len(texts)}
        answered_right = [
            self.is_right(text, answer) for text, answer in zip(texts, decoded(answers.tolist()), strict=True) if answer
        ]
        for known in given:
            measured["recovered"] = float((prediction.predictions == references)[~known].mean())
        if answered_right:
            measured["accuracy"] = sum(answered_right) / len(answered_right)
        return measured
