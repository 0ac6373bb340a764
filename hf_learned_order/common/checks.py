"""Checks of what a user passes: each raises an error that names the argument, what it must be and what it was."""

import math

import torch
from torch import Tensor


def check_ids(name: str, ids: Tensor, attention_mask: Tensor | None, *, vocab_size: int) -> Tensor:
    """The attention mask of `ids` [batch, length], by default all ones.

    Raises:
        TypeError: `ids` is no integer tensor of two dimensions, or the mask no tensor.
        ValueError: an id is outside the vocabulary, or the mask has another shape or holds something else than 0 and 1.
    """
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.long, torch.int):
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        hint = '; a tokenizer makes one with return_tensors="pt"' if isinstance(ids, list) else ""
        raise TypeError(f"{name} must be an integer tensor [batch, prompt], got {got}{hint}")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise ValueError(f"{name} must hold ids in [0, {vocab_size}), got {int(outside[0])}")
    if attention_mask is None:
        return torch.ones_like(ids)
    mask_name = f"{name.removesuffix('_ids')}_attention_mask".removeprefix("input_")
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"{mask_name} must be a tensor, got {type(attention_mask).__name__}")
    if attention_mask.shape != ids.shape:
        raise ValueError(
            f"{mask_name} must have the shape of {name} {tuple(ids.shape)}, got {tuple(attention_mask.shape)}"
        )
    other = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if len(other):
        raise ValueError(f"{mask_name} must hold 0 and 1 only, got {other[0].item()}")
    return attention_mask


def check_positive(name: str, value: int) -> None:
    """Raises `ValueError` unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_temperature(value: float, *, finite: bool = False) -> None:
    """Raises `ValueError` unless `value` is a number from 0 on, with `finite` below infinity."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value >= 0 or (finite and math.isinf(value)):
        raise ValueError(f"temperature must be {'a finite number, ' * finite}0 or more, got {value!r}")


def check_token(name: str, value: object, *, vocab_size: int) -> None:
    """Raises `ValueError` unless `value` is None or one id of the vocabulary, or a list of such ids."""
    for token in value if isinstance(value, list | tuple) else [] if value is None else [value]:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ValueError(f"{name} must be in the vocabulary, [0, {vocab_size}), got {token!r}")


def check_room(name: str, attention_mask: Tensor, length: int, *, limit: int | None, before: int) -> None:
    """That a canvas of `length` fits behind a prompt with this mask.

    Args:
        name: what the prompt is called, "prompt" or "negative prompt".
        attention_mask: [batch, prompt].
        length: of the canvas.
        limit: the model's longest sequence, None where it has none.
        before: 1 for a model that predicts a token from the one before it.

    Raises:
        ValueError: both together exceed the limit, or a prompt is empty where one is needed.
    """
    width = attention_mask.shape[1]
    if limit is not None and width + length > limit:
        raise ValueError(
            f"the {name} and max_new_tokens must fit the model's {limit} positions, got {width} + {length}"
        )
    if before and not attention_mask.any(-1).all():
        raise ValueError(
            f"each {name} must have at least one token: this model predicts a token from the one before it"
        )
