"""A row of a user's own data: which of its columns are meant, and what becomes of it."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Sequence as ListOf
from datasets import Value
from transformers import PreTrainedTokenizerBase

from hf_learned_order.tasks.own.files import NUMBER
from hf_learned_order.tasks.sources import OwnData, Source

# columns that are looked for where none is given
COMMON = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
)
ROW = {"prompt_ids": ListOf(Value("int32")), "response_ids": ListOf(Value("int32")), "answer": Value("string")}
# why a row is not used, "" if it is; how many positions of a canvas its response takes
ROW |= {"length": Value("int32"), "left_out": Value("string"), "room": Value("int32")}
GIVEN = {"given": ListOf(Value("bool"))}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the data are read: `messages`, or `prompt` and `response`; and `answer`. "" is none."""

    messages: str = ""
    prompt: str = ""
    response: str = ""
    answer: str = ""


def response_columns(own: OwnData, names: Sequence[str]) -> Columns:
    """The columns that are meant: those given, else the first of `COMMON` that are there.

    Raises:
        ValueError: one that is given is not there, only one of a pair is given, both kinds are, or none is found.
    """
    answer = "" if own.answer_column is None else present(own.answer_column, names, "answer_column")
    pair = (own.prompt_column, own.response_column)
    if own.messages_column is not None and pair != (None, None):
        raise ValueError(
            f"messages_column must be left out with prompt_column and response_column, got {own.messages_column!r}"
        )
    if own.messages_column is not None:
        return Columns(messages=present(own.messages_column, names, "messages_column"), answer=answer)
    if pair == (None, None):
        pair = next((found for found in COMMON if set(found) <= set(names)), ())
        if not pair:
            raise ValueError(
                f"prompt_column and response_column, or messages_column, must be given, got none, and the data have "
                f"{_shown(names)}"
            )
    if len(pair) == 1:
        return Columns(messages=pair[0], answer=answer)
    prompt, response = (
        present(column, names, name) for name, column in zip(("prompt_column", "response_column"), pair, strict=True)
    )
    return Columns(prompt=prompt, response=response, answer=answer)


def encode_response(
    row: dict[str, Any], *, columns: Columns, tokenizer: PreTrainedTokenizerBase, source: Source
) -> dict[str, Any]:
    """A row of `ROW`; `left_out` says why where it is not used."""
    parts = _parts(row, columns)
    if isinstance(parts, str):
        return _left_out(parts)
    prompt, response = parts
    if isinstance(prompt, str) and (source.own.plain_prompts or not tokenizer.chat_template):
        prompt_ids = _ids(tokenizer, prompt)
        response_ids = _ids(tokenizer, response, add_special_tokens=False)
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        prompt_ids, response_ids = _conversation(tokenizer, messages, response)
    if tokenizer.eos_token_id in response_ids:
        response_ids = response_ids[: response_ids.index(tokenizer.eos_token_id)]
    answer = response if not columns.answer else _text(row[columns.answer])
    reason = ""
    if len(prompt_ids) > source.own.prompt_length:
        reason = "with a prompt that is too long"
    elif len(response_ids) >= source.canvas_length:
        reason = "with a response that is too long"
    elif tokenizer.mask_token_id in (*prompt_ids, *response_ids):
        reason = "with the mask token"
    elif not response_ids or answer is None:
        reason = "with an empty response" if not response_ids else "with a null answer"
    return _row(prompt_ids, response_ids, answer, reason) | {"room": len(response_ids) + 1}


def encode_infill(
    row: dict[str, Any], *, column: str, tokenizer: PreTrainedTokenizerBase, source: Source
) -> dict[str, Any]:
    """A row of `ROW` and `GIVEN`; `left_out` says why where it is not used."""
    text = _text(row[column])
    if text is None or not text.strip():
        return _left_out("with a null text" if text is None else "with an empty text") | {"given": []}
    ids = _ids(tokenizer, text)
    special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    places = [place for place, is_special in enumerate(special) if place > 0 and not is_special]
    reason = ""
    if len(ids) > source.canvas_length:
        reason = "with a text that is too long"
    elif tokenizer.mask_token_id in ids:
        reason = "with the mask token"
    elif not places:
        reason = "without a token to hide"
    rng = np.random.default_rng([source.seed, zlib.crc32(text.encode())])
    count = min(len(places), max(1, round(source.own.hidden_share * len(places))))
    hidden = {places[i] for i in rng.permutation(len(places))[:count]}
    answer = str(tokenizer.decode(ids, skip_special_tokens=True))
    return _row([], ids, answer, reason) | {"given": [place not in hidden for place in range(len(ids))]}


def _parts(row: dict[str, Any], columns: Columns) -> tuple[Any, str] | str:
    """Prompt (a text or messages) and response of a row; or why it has none."""
    if columns.messages:
        messages = row[columns.messages]
        if not messages:
            return "without messages"
        prompt, last = messages[:-1], messages[-1:]
    else:
        prompt, last = row[columns.prompt], row[columns.response]
        for name, value in (("prompt", prompt), ("response", last)):
            if value is None or (isinstance(value, str) and not value.strip()) or value == []:
                return f"with a null {name}" if value is None else f"with an empty {name}"
    if isinstance(last, list):
        if last[-1].get("role") != "assistant":
            return "whose last message is not the assistant's"
        if not prompt:
            return "with an empty prompt"
        last = last[-1].get("content")
    response = _text(last)
    if response is None or not response.strip():
        return "with an empty response"
    if isinstance(prompt, list):
        return prompt, response
    text = _text(prompt)
    return "with a prompt that is no text" if text is None else (text, response)


def _conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], response: str
) -> tuple[list[int], list[int]]:
    """Ids of the messages up to where the assistant begins, and of what it says with the end of its turn."""
    options: dict[str, Any] = {"tokenize": True, "return_dict": True}
    whole = [*messages, {"role": "assistant", "content": response}]
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    both: Any = tokenizer.apply_chat_template(whole, **options)
    prompt_ids, ids = list(prompt["input_ids"]), list(both["input_ids"])
    if ids[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, ids[len(prompt_ids) :]
    return prompt_ids, _ids(tokenizer, response, add_special_tokens=False)  # a template that changes what it was given


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    # longer than the model takes is a reason to leave a row out, not to warn
    return tokenizer(text, verbose=False, **options)["input_ids"]


def _text(value: Any) -> str | None:
    """Of a cell: numbers are texts, too; None where there is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if isinstance(value, float) and math.isnan(value) else str(value)
    return value if isinstance(value, str) else None


def _row(prompt_ids: list[int], response_ids: list[int], answer: str | None, reason: str) -> dict[str, Any]:
    return {
        "prompt_ids": prompt_ids,
        "response_ids": response_ids,
        "answer": answer or "",
        "length": len(prompt_ids) + len(response_ids),
        "left_out": reason,
        "room": len(response_ids),
    }


def _left_out(reason: str) -> dict[str, Any]:
    return _row([], [], "", reason)


def present(column: str | None, names: Sequence[str], option: str) -> str:
    if column is None or column not in names:
        raise ValueError(f"{option} must be a column of the data, one of {_shown(names)}, got {column!r}")
    return column


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names if name != NUMBER)
