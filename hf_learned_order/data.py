"""From data sets to prompts and clean canvases.

Every task is a `datasets.Dataset` with the columns `prompt_ids`, `response_ids` (without EOS), `answer` and `length`.
A *canvas* is a response followed by EOS up to a fixed length: the model itself has to say where it ends.
"""

import random
import zlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset, load_dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_learned_order.canvas import stacked
from hf_learned_order.gsm8k import ALPHABET, Chain, ChainError, Resampler, answer_of, read_rows
from hf_learned_order.sudoku import clues as clues_of
from hf_learned_order.sudoku import grids

Rows = TypeVar("Rows", bound=Sized)
HELD_OUT = 400  # the last rows of the training split: for tuning and model selection, never trained on


def load_gsm8k(
    *, dataset_name: str | None = None, train_file: str | Path | None = None, test_file: str | Path | None = None
) -> dict[str, list[dict[str, str]]]:
    """GSM8K as `{"train", "validation", "test"}` lists of `question`, `answer`, from the Hub or from local files.

    `validation` is the last 400 rows of the training split. A split whose file is not given is absent.

    Raises:
        ValueError: neither a name nor a file is given, or a file is broken (the message names the line).
    """
    splits: dict[str, list[dict[str, str]]]
    if dataset_name is not None:
        loaded = load_dataset(dataset_name, "main" if dataset_name == "openai/gsm8k" else None)
        splits = {n: [dict(row) for row in loaded[n]] for n in ("train", "test") if n in loaded}
    elif train_file or test_file:
        splits = {n: read_rows(f) for n, f in (("train", train_file), ("test", test_file)) if f}
    else:
        raise ValueError("dataset_name or train_file/test_file must be given, but all are None")
    if "train" in splits:
        if len(splits["train"]) <= HELD_OUT:
            raise ValueError(f"the training split must have more than {HELD_OUT} rows, got {len(splits['train'])}")
        splits["train"], splits["validation"] = splits["train"][:-HELD_OUT], splits["train"][-HELD_OUT:]
    return splits


def character_tokenizer(alphabet: str, *, separator: bool = False) -> PreTrainedTokenizerFast:
    """One token a character. With `separator` a prompt ends in `[SEP]`. Prompts are padded on the left."""
    specials = ["[PAD]", "[MASK]", "[EOS]", "[SEP]", "[UNK]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    if separator:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [SEP]", special_tokens=[("[SEP]", vocabulary["[SEP]"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        mask_token="[MASK]",
        eos_token="[EOS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def equation_tokenizer() -> PreTrainedTokenizerFast:
    """The characters of a chain of equations."""
    return character_tokenizer(ALPHABET, separator=True)


def equations(chains: Sequence[Chain], tokenizer: PreTrainedTokenizerBase, *, canvas_length: int) -> Dataset:
    """The chains as they are, without those whose response and one EOS exceed `canvas_length`."""
    return _nonempty(Dataset.from_list(list(_encode(map(Chain.texts, chains), tokenizer, canvas_length))))


def resampled_equations(
    chains: Sequence[Chain],
    tokenizer: PreTrainedTokenizerBase,
    *,
    canvas_length: int,
    count: int,
    seed: int,
    keep: float = 0.0,
    growth: int = 6,
    pieces: float = 0.0,
    drills: float = 0.0,
) -> Dataset:
    """`count` chains with their numbers drawn anew (`gsm8k.Resampler`), cached on disk by `datasets`."""
    # without this, drawing until `count` responses fit would never end
    _nonempty([chain for chain in chains if len(chain.texts()[1]) < canvas_length])
    return _nonempty(
        Dataset.from_generator(
            _draw,
            gen_kwargs={
                "chains": tuple(chains),
                "tokenizer": tokenizer,
                "canvas_length": canvas_length,
                "count": count,
                "seed": seed,
                "keep": keep,
                "growth": growth,
                "pieces": pieces,
                "drills": drills,
            },
        )
    )


def words(
    rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, canvas_length: int, prompt_length: int = 512
) -> Dataset:
    """Question -> published solution without its annotations, through the tokenizer's chat template if it has one.

    Rows that do not fit `prompt_length` or `canvas_length` are left out.
    """
    encoded = []
    for row in rows:
        prompt = row["question"]
        if tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            # pyrefly: ignore[bad-index] (its annotation does not know return_dict)
            ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        solution = "".join(part.partition(">>")[2] if i else part for i, part in enumerate(row["answer"].split("<<")))
        response = tokenizer(solution, add_special_tokens=False)["input_ids"]
        if len(ids) <= prompt_length and len(response) < canvas_length:
            encoded.append(_row(ids, response, answer_of(row["answer"])))
    return _nonempty(Dataset.from_list(encoded))


@dataclass(frozen=True, kw_only=True)
class CanvasCollator:
    """Rows to a batch: `input_ids`, `attention_mask` [batch, prompt], `clean` [batch, canvas].

    Prompts are padded on the left, responses filled up with EOS. Where rows have `given`, so has the batch: bool
    [batch, canvas], the positions of the response that are known from the start.
    """

    tokenizer: PreTrainedTokenizerBase
    canvas_length: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if pad is None or eos is None:
            raise ValueError(f"tokenizer must have a pad and an EOS token, got {pad} and {eos}")
        prompts, mask = stacked([row["prompt_ids"] for row in rows], pad)
        cleans = [list(row["response_ids"]) + [eos] * (self.canvas_length - len(row["response_ids"])) for row in rows]
        if max(map(len, cleans)) > self.canvas_length:
            raise ValueError(f"canvas_length must hold every response, got {self.canvas_length}")
        batch = {"input_ids": prompts, "attention_mask": mask, "clean": torch.tensor(cleans)}
        if "given" in rows[0]:
            batch["given"] = torch.tensor([row["given"] for row in rows])
        return batch


def sudoku(
    tokenizer: PreTrainedTokenizerBase, *, size: int, clues: int, count: int, seed: int, split: str, unique: bool = False
) -> Dataset:
    """`count` Sudoku puzzles: the canvas is the whole grid, `given` says which cells are clues, `answer` is the puzzle.

    Grids of different splits differ: a checksum of the grid says to which it belongs, for every seed. Symmetries of a
    grid may be in another split.

    Args:
        tokenizer: one token a character (`character_tokenizer`).
        size: side of the grid, 4, 6 or 9.
        clues: how many cells are given.
        count: how many puzzles.
        seed: of the draw.
        split: "train", "validation" or "test".
        unique: whether a puzzle must have one solution.
    """
    if not 0 <= clues < size * size:
        raise ValueError(f"clues must be in [0, {size * size}), got {clues}")
    options = {"size": size, "clues": clues, "count": count, "seed": seed, "split": split, "unique": unique}
    return _nonempty(Dataset.from_generator(_draw_sudoku, gen_kwargs={"tokenizer": tokenizer, **options}))


def _draw_sudoku(
    tokenizer: PreTrainedTokenizerBase, size: int, clues: int, count: int, seed: int, split: str, unique: bool
) -> Iterator[dict[str, Any]]:
    rng, generator, drawn, puzzles = random.Random(seed), np.random.default_rng(seed), 0, 0
    ids = np.array(tokenizer.convert_tokens_to_ids([*"0123456789"[: size + 1]]))
    while puzzles < count:
        for grid in grids(1000, size, generator):
            if split_of(grid.tobytes()) != split:
                continue
            drawn += 1
            given = clues_of(grid.tolist(), size, clues, unique=unique, rng=rng)
            if given is None:
                if drawn > 1000 and puzzles * 1000 < drawn:
                    raise ValueError(f"clues must be as many as a unique puzzle can have, got {clues}")
                continue
            puzzle = "".join(str(d) if g else "." for d, g in zip(grid, given, strict=True))
            yield {**_row([], ids[grid].tolist(), puzzle), "given": given}
            puzzles += 1
            if puzzles == count:
                break


def split_of(content: bytes) -> str:
    """The split that a problem belongs to: by its checksum, 2 % each are for validation and test."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(content) % 50, "train")


def _draw(
    chains: Sequence[Chain],
    tokenizer: PreTrainedTokenizerBase,
    canvas_length: int,
    count: int,
    seed: int,
    keep: float,
    growth: int,
    pieces: float,
    drills: float,
) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    resampler = Resampler(chains, keep=keep, growth=growth, pieces=pieces, drills=drills)

    def texts() -> Iterator[tuple[str, str]]:
        while True:
            try:
                yield resampler.draw(rng).texts()
            except ChainError:  # a drawn operand without a short decimal form
                continue

    encoded = _encode(texts(), tokenizer, canvas_length)
    for _ in range(count):
        yield next(encoded)


def _encode(
    texts: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, canvas_length: int
) -> Iterator[dict[str, Any]]:
    for prompt, response in texts:
        if len(response) < canvas_length:
            response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
            yield _row(tokenizer(prompt)["input_ids"], response_ids, answer_of(response))


def _row(prompt_ids: list[int], response_ids: list[int], answer: str) -> dict[str, Any]:
    return {
        "prompt_ids": prompt_ids,
        "response_ids": response_ids,
        "answer": answer,
        "length": len(prompt_ids) + len(response_ids),
    }


def _nonempty(dataset: Rows) -> Rows:
    if len(dataset) == 0:
        raise ValueError("the data set must hold at least one row that fits the canvas, but it is empty")
    return dataset
