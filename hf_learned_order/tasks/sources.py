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

    Raises:
        ValueError: a data set and files are given, or a configuration without a data set.
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

    def __post_init__(self):
        files = {
            "train_file": self.train_file,
            "validation_file": self.own.validation_file,
            "test_file": self.test_file,
        }
        given = [name for name, value in files.items() if value]
        if self.dataset_name is not None and given:
            raise ValueError(
                f"dataset_name must be left out with files, got {self.dataset_name} and {', '.join(given)}"
            )
        if self.dataset_name is None and self.own.dataset_config is not None:
            raise ValueError(f"dataset_config must be left out without dataset_name, got {self.own.dataset_config}")


# Which options of the scripts say what the problems are, by where these come from (`tasks.table.Task.reads`).
FILES = ("dataset_name", "train_file", "test_file")
OWN_FILES = (*FILES, "dataset_config", "validation_file")
COLUMNS = ("prompt_column", "response_column", "messages_column", "answer_column")
RESPONSES = (*OWN_FILES, *COLUMNS, "prompt_length", "plain_prompts")
TEXTS = (*OWN_FILES, "text_column", "hidden_share")
DRAWN = ("num_problems",)
RESAMPLED = (*FILES, *DRAWN, "keep", "growth", "pieces", "drills", "arithmetic_share")
OPTIONS = tuple(dict.fromkeys((*RESAMPLED, *RESPONSES, *TEXTS)))
