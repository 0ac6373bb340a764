"""The problems of a task, ready to be measured on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.tasks.held_out import read_prompts, without_prompts
from hf_learned_order.tasks.table import Source, find_task


def evaluator_of(
    name: str,
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    count: int | None = None,
    canvas_length: int | None = None,
    where: Mapping[str, Any] | None = None,
    without: str | Path | None = None,
    **how: Any,
) -> Evaluator:
    """The `Evaluator` of a task's problems, which judges responses as the task does.

    Args:
        name: of the task (`tasks.table.find_task`).
        denoiser, tokenizer: the model and its tokenizer.
        split, count: which problems, and how many (`Source`).
        canvas_length: positions of a response; by default the task's.
        where: more of `Source`: where the data are.
        without: a file of prompts, one a line, that are left out.
        how: more of `Evaluator`.

    Raises:
        ValueError: no such task, or no problem remains.
        OSError: a file is not there.
    """
    task = find_task(name)
    length = canvas_length or task.canvas_length
    rows = task.load(tokenizer, Source(split=split, count=count, canvas_length=length, **(where or {})))
    if without:
        rows = without_prompts(rows, read_prompts(without, tokenizer), why=f"those of {without}")
    judged: dict[str, Any] = {"is_right": task.is_right, "score": task.score}
    return Evaluator(denoiser, tokenizer, rows, canvas_length=length, **judged, **how)
