"""What is asked of a task: which problems, and where a user's own data are. Imports nothing that takes time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Files = str | Path | Sequence[str | Path]


@dataclass(kw_only=True)
class OwnData:
    """Where a user's own data are beside `Source`'s names, and which columns are meant; the options of the scripts.

    Without a column, those that are common are looked for (`own_data.COMMON`).
    """

    _argument_group_name = "own data"

    dataset_config: str | None = field(default=None, metadata={"help": "configuration of dataset_name"})
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "what settings are chosen on; by default some rows of the training data"}
    )
    prompt_column: str | None = field(default=None, metadata={"help": "task responses: text, or a list of messages"})
    response_column: str | None = field(default=None, metadata={"help": "task responses: text, or a list of messages"})
    messages_column: str | None = field(
        default=None, metadata={"help": "task responses: a conversation, whose last message is the response"}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "what a response is compared with; by default the response of the data"}
    )
    text_column: str | None = field(default=None, metadata={"help": "task infill: texts, parts of which are hidden"})
    hidden_share: float = field(default=0.5, metadata={"help": "task infill: share of a text's tokens that are hidden"})
    prompt_length: int = field(default=512, metadata={"help": "rows with a longer prompt are left out, tokens"})
    plain_prompts: bool = field(
        default=False, metadata={"help": "leave the tokenizer's chat template out where the data are plain text"}
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which problems are wanted.

    Attributes:
        split: "train", "validation" or "test".
        count: how many; None for all that there are, or 1,000 where they are drawn.
        seed: of what is drawn.
        canvas_length: positions of a response.
        dataset_name, train_file, test_file: the user's own data or GSM8K: a data set of the Hub or a folder, or files,
            one or several (`own_data.read_files`). Where no `test_file` is given, GSM8K's training split looks for a
            `test.jsonl` beside `train_file`: it leaves test prompts out.
        own: columns of the user's own data.
        resampling: options of `data.resampled_equations`, for the training split of `equations`.
    """

    split: str
    count: int | None = None
    seed: int = 0
    canvas_length: int
    dataset_name: str | None = None
    train_file: Files | None = None
    test_file: Files | None = None
    own: OwnData = field(default_factory=OwnData)
    resampling: dict[str, Any] = field(default_factory=lambda: {"keep": 0.4, "growth": 1})
