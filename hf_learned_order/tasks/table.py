"""The tasks by name: where their problems come from, how long a canvas is, and when a response is right.

`TASKS[name]` is all that training and evaluation know of a task. GSM8K's two take their rows from files or the Hub; the
problems of the others are drawn.
"""

import logging
import random
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_learned_order.tasks import lists, reasoning, sudoku
from hf_learned_order.tasks.answers import Response
from hf_learned_order.tasks.data import (
    Draw,
    Problem,
    character_tokenizer,
    drawn,
    equation_tokenizer,
    equations,
    load_gsm8k,
    resampled_equations,
    word_tokenizer,
    words,
)
from hf_learned_order.tasks.gsm8k import answered, chains_of
from hf_learned_order.tasks.held_out import THOSE_HELD_OUT, without_prompts
from hf_learned_order.tasks.own.data import load_infill, load_responses, recovered, same_text
from hf_learned_order.tasks.own.files import alone
from hf_learned_order.tasks.sources import DRAWN, FILES, OPTIONS, RESAMPLED, RESPONSES, TEXTS, Source

logger = logging.getLogger(__name__)
UNLIMITED = 1_000_000  # tokens: prompts count whether or not they fit


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        load: rows of `prompt_ids`, `response_ids`, `answer`, `length`, and `given` where the canvas has clues.
        is_right: from the text of a response and the row's `answer`.
        score: from a `Response`, which has ids and what was given too, to a number in [0, 1], where that says more than
            right or wrong; it then takes the place of `is_right` in evaluations.
        canvas_length: positions of a response where nothing else is said.
        tokenizer: of a model that is trained for this task alone; None where there is none.
        many_answers: whether responses beside the row's own may be right.
        reads: the options of the scripts (`sources.OPTIONS`) that `load` reads; None where that is not known, and none
            is refused.
    """

    load: Callable[[PreTrainedTokenizerBase, Source], Dataset]
    is_right: Callable[[str, str], bool]
    canvas_length: int
    tokenizer: Callable[[], PreTrainedTokenizerFast] | None = None
    score: Callable[[Response], float] | None = None
    many_answers: bool = False
    reads: tuple[str, ...] | None = None


def load_equations(tokenizer: PreTrainedTokenizerBase, source: Source) -> Dataset:
    """Chains of GSM8K; for training their numbers are drawn anew, `count` times, 20,000 by default.

    Of these, the chains whose prompt is one of the validation or the test split are left out.
    """
    splits = _gsm8k(source)
    if source.split != "train":
        chains = chains_of(splits[source.split][: source.count])[0]
        return equations(chains, tokenizer, canvas_length=source.canvas_length)
    # numbers close to the published ones: what matters is how a denoiser does on real problems
    train = resampled_equations(
        chains_of(splits["train"])[0],
        tokenizer,
        canvas_length=source.canvas_length,
        count=20_000 if source.count is None else source.count,
        seed=source.seed,
        **source.resampling,
    )
    prompts = [chain.texts()[0] for chain in chains_of(_held_out(splits))[0]]
    return without_prompts(train, tokenizer(prompts)["input_ids"] if prompts else [], why=THOSE_HELD_OUT)


def load_words(tokenizer: PreTrainedTokenizerBase, source: Source) -> Dataset:
    """GSM8K's questions and solutions; for training those whose question is also held out are left out."""
    splits = _gsm8k(source)
    count = None if source.split == "train" else source.count
    rows = words(splits[source.split][:count], tokenizer, canvas_length=source.canvas_length)
    if source.split != "train":
        return rows
    prompts = words(_held_out(splits), tokenizer, canvas_length=UNLIMITED, prompt_length=UNLIMITED)["prompt_ids"]
    return without_prompts(rows, prompts, why=THOSE_HELD_OUT)


def _gsm8k(source: Source) -> dict[str, list[dict[str, str]]]:
    """The splits, of which the wanted one is there."""
    test_file = source.test_file
    file = alone(source.train_file)
    if source.split == "train" and test_file is None and file is not None:
        beside = file.with_name("test.jsonl")
        test_file = beside if beside.is_file() else None
    splits = load_gsm8k(dataset_name=source.dataset_name, train_file=source.train_file, test_file=test_file)
    if source.split not in splits:
        raise ValueError(f"dataset_name or the file of the {source.split} split must be given")
    if "test" not in splits and source.split == "train":
        logger.warning("test prompts may be trained on: give test_file, or put a test.jsonl beside train_file")
    return splits


def _held_out(splits: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [row for name, rows in splits.items() if name != "train" for row in rows]


def load_drawn(draw: Draw, tokenizer: PreTrainedTokenizerBase, source: Source) -> Dataset:
    """Problems that `draw` draws."""
    return drawn(
        draw,
        tokenizer,
        canvas_length=source.canvas_length,
        count=1000 if source.count is None else source.count,
        seed=source.seed,
        split=source.split,
    )


Wanted = Callable[[str], bool]


def draw_sudoku(size: int, clues: int, unique: bool, rng: random.Random, wanted: Wanted) -> Problem | None:
    """A puzzle of so many clues."""
    grid = sudoku.grids(1, size, np.random.default_rng(rng.getrandbits(64)))[0].tolist()
    text = "".join(map(str, grid))
    if not wanted(text):  # clues of a unique puzzle take time
        return None
    given = sudoku.clues(grid, size, clues, unique=unique, rng=rng)
    if given is None:
        return None
    return Problem(prompt="", response=text, answer=sudoku.puzzle_text(grid, given), given=tuple(given))


def draw_list(operation: str, length: int, rng: random.Random, wanted: Wanted) -> Problem:
    """A list of `length` words."""
    prompt, response = lists.draw(operation, length, rng)
    return Problem(prompt=prompt, response=response, answer=prompt)


def draw_countdown(rng: random.Random, wanted: Wanted) -> Problem:
    """Numbers and a target."""
    prompt, response = reasoning.countdown(rng)
    return Problem(prompt=prompt, response=response, answer=prompt)


def draw_chain_sum(rng: random.Random, wanted: Wanted) -> Problem:
    """A sum of a few terms."""
    prompt, response = reasoning.chain_sum(rng)
    return Problem(prompt=prompt, response=response, answer=response)


def _sudoku(size: int, clues: int, *, unique: bool = False) -> Task:
    return Task(
        load=partial(load_drawn, partial(draw_sudoku, size, clues, unique)),
        is_right=sudoku.is_right,
        canvas_length=size * size,
        tokenizer=partial(character_tokenizer, "123456789"[:size]),
        many_answers=not unique,
        reads=DRAWN,
    )


def _list(operation: str, length: int = 8) -> Task:
    return Task(
        load=partial(load_drawn, partial(draw_list, operation, length)),
        is_right=lists.is_right,
        canvas_length=length + 1,
        tokenizer=partial(word_tokenizer, (*lists.OPERATIONS, ":", *lists.INDICES, *lists.WORDS)),
        many_answers=operation in lists.RANDOM_OPERATIONS,
        reads=DRAWN,
    )


TASKS: dict[str, Task] = {
    "equations": Task(
        load=load_equations, is_right=answered, canvas_length=64, tokenizer=equation_tokenizer, reads=RESAMPLED
    ),
    "words": Task(load=load_words, is_right=answered, canvas_length=64, many_answers=True, reads=FILES),
    "sudoku": _sudoku(6, 6),
    "sudoku_12": _sudoku(6, 12),
    "sudoku_unique": _sudoku(6, 12, unique=True),
    "sudoku_9x9": _sudoku(9, 30),
    "sudoku_9x9_unique": _sudoku(9, 30, unique=True),
    **{operation: _list(operation) for operation in lists.OPERATIONS},
    "countdown": Task(
        load=partial(load_drawn, draw_countdown),
        is_right=reasoning.countdown_is_right,
        canvas_length=20,
        tokenizer=equation_tokenizer,
        many_answers=True,
        reads=DRAWN,
    ),
    "chain_sum": Task(
        load=partial(load_drawn, draw_chain_sum),
        is_right=reasoning.chain_sum_is_right,
        canvas_length=6,
        tokenizer=equation_tokenizer,
        reads=DRAWN,
    ),
    "responses": Task(load=load_responses, is_right=same_text, canvas_length=64, reads=RESPONSES),
    "infill": Task(load=load_infill, is_right=same_text, canvas_length=64, score=recovered, reads=TEXTS),
}


def unread_options(tasks: Sequence[Task]) -> list[str]:
    """The options of the scripts that say what problems are, and that none of these tasks reads."""
    return [name for name in OPTIONS if all(task.reads is not None and name not in task.reads for task in tasks)]


def find_task(name: str) -> Task:
    """The task of that name, or one's own: `path/to/file.py:NAME`, a `Task` in that file.

    Raises:
        ValueError: there is no such task; the names are listed.
        OSError: there is no such file.
    """
    if name in TASKS:
        return TASKS[name]
    path, separator, variable = name.rpartition(":")
    if not separator or not path.endswith(".py"):
        raise ValueError(f"task must be one of {', '.join(TASKS)}, or path/to/file.py:NAME, got {name!r}")
    found = runpy.run_path(path).get(variable)
    if not isinstance(found, Task):
        raise ValueError(f"task must name a Task in {path}, but {variable} is {type(found).__name__}")
    return found
