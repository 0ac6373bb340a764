"""A user's own data as two tasks: `responses` (prompt -> response) and `infill` (texts, parts of which are hidden).

Files and data sets are read by `own_files`. Which rows are used, and why others are not, is logged before anything is
trained (`report`).
"""

import logging
import math
from functools import partial
from typing import Any

from datasets import Dataset, Features
from transformers import PreTrainedTokenizerBase

from hf_learned_order.tasks.answers import Response
from hf_learned_order.tasks.held_out import THOSE_HELD_OUT, prompts_of, without_prompts
from hf_learned_order.tasks.own.files import NUMBER, own_splits
from hf_learned_order.tasks.own.rows import GIVEN, ROW, encode_infill, encode_response, present, response_columns
from hf_learned_order.tasks.report import report
from hf_learned_order.tasks.sources import Source

logger = logging.getLogger(__name__)


def load_responses(tokenizer: PreTrainedTokenizerBase, source: Source) -> Dataset:
    """Prompts and responses of the user's own data, through the tokenizer's chat template where it has one.

    A row has `messages`, or a prompt and a response, each of them a text or a list of messages. The response is the
    last message; it ends at the first EOS. A tokenizer without an EOS is given its separator as one. Training rows
    whose prompt is held out are left out.

    Raises:
        ValueError: a column is missing, the tokenizer has neither EOS nor separator or, for messages, no chat template,
            or no row is used; and as `own_files.own_splits`.
    """
    _name_eos(tokenizer)
    splits = _wanted(source)
    columns = response_columns(source.own, splits[source.split].column_names)
    if columns.messages and not tokenizer.chat_template:
        raise ValueError(f"tokenizer must have a chat template for the conversations in column {columns.messages!r}")
    encode = partial(encode_response, columns=columns, tokenizer=tokenizer, source=source)
    return _not_held_out(splits, encode, ROW, source)


def load_infill(tokenizer: PreTrainedTokenizerBase, source: Source) -> Dataset:
    """Texts of the user's own data: the canvas is the text, of which `hidden_share` of the tokens are hidden.

    Rows are of different lengths; nothing is filled up. Special tokens and the first token are never hidden. Which ones
    are hidden hangs on the text and `source.seed` alone. Training rows whose text is held out are left out.

    Raises:
        ValueError: the column is missing, or no row is used; and as `own_files.own_splits`.
    """
    if not 0 < source.own.hidden_share <= 1:
        raise ValueError(f"hidden_share must be in (0, 1], got {source.own.hidden_share}")
    splits = _wanted(source)
    column = present(source.own.text_column or "text", splits[source.split].column_names, "text_column")
    encode = partial(encode_infill, column=column, tokenizer=tokenizer, source=source)
    return _not_held_out(splits, encode, ROW | GIVEN, source)


def same_text(response: str, answer: str) -> bool:
    """Whether a response is the answer, but for white space."""
    return response.split() == answer.split()


def recovered(response: Response) -> float:
    """The share of the hidden positions that have their token back."""
    given = response.given or [False] * len(response.expected)
    hits = [i == j for i, j, known in zip(response.ids, response.expected, given, strict=True) if not known]
    return sum(hits) / len(hits)


def _wanted(source: Source) -> dict[str, Any]:
    """Every split, the wanted one among them, of which `source.count` rows (of the training split all)."""
    splits = own_splits(source)
    if source.split not in splits:
        raise ValueError(f"dataset_name or {source.split}_file must be given, with a split {source.split}")
    rows = splits[source.split]
    if source.split != "train" and source.count is not None:
        splits[source.split] = rows.select(range(min(len(rows), source.count)))
    return splits


def _not_held_out(splits: dict[str, Any], encode: Any, columns: dict[str, Any], source: Source) -> Dataset:
    """The rows of the wanted split; of the training split without those that are in another one, too."""
    rows = _encoded(splits[source.split], encode, columns, source)
    if source.split != "train":
        return rows
    held_out = [prompts_of(_map(splits[name], encode, columns)) for name in ("validation", "test")]
    return without_prompts(rows, [ids for prompts in held_out for ids in prompts if ids], why=THOSE_HELD_OUT)


def _encoded(rows: Any, encode: Any, columns: dict[str, Any], source: Source) -> Dataset:
    """The rows that are used, after saying which ones are not."""
    numbers = rows[NUMBER][:]
    encoded = _map(rows, encode, columns)
    reasons, room = encoded["left_out"][:], sorted(filter(None, encoded["room"][:]))
    hint = ""
    if any("too long" in reason for reason in reasons):
        enough = room[math.ceil(0.95 * len(room)) - 1]
        hint = f"canvas_length is {source.canvas_length} ({enough} would hold 95 %), "
        hint += f"prompt_length is {source.own.prompt_length}"
    used = report(f"own data, {source.split} split", reasons, numbers=numbers, hint=hint)
    return encoded.select(used).remove_columns(["left_out", "room"])


def _map(rows: Any, encode: Any, columns: dict[str, Any]) -> Any:
    return rows.map(encode, features=Features(columns), remove_columns=rows.column_names)


def _name_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """By which a response ends; BERT's have none, but a separator."""
    if tokenizer.eos_token_id is not None:
        return
    if tokenizer.sep_token_id is None:
        raise ValueError(
            "tokenizer must have an EOS token, by which a response ends, got None, and no separator either: name one "
            "(tokenizer.eos_token = ...), or train on texts to infill"
        )
    tokenizer.eos_token = tokenizer.sep_token
    logger.warning("the tokenizer has no EOS token: responses end with its separator %s", tokenizer.sep_token)
