"""From data sets to prompts and clean canvases.

Every task is a `datasets.Dataset` with the columns `prompt_ids`, `response_ids` (without EOS), `answer` and `length`.
A *canvas* is a response followed by EOS up to a fixed length: the model itself has to say where it ends.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset, load_dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_learned_order.tasks.gsm8k import ALPHABET, Chain, ChainError, answer_of
from hf_learned_order.tasks.own.files import problems_of, read_problems
from hf_learned_order.tasks.report import report
from hf_learned_order.tasks.resampler import Resampler
from hf_learned_order.tasks.sources import Files

Rows = TypeVar("Rows", bound=Sized)
HELD_OUT = 400  # the last rows of the training split: for tuning and model selection, never trained on
SPLITS = ("train", "validation", "test")
TRIES = 10_000  # draws one after another, of which about 400 are of the split that is wanted


def load_gsm8k(
    *, dataset_name: str | None = None, train_file: Files | None = None, test_file: Files | None = None
) -> dict[str, list[dict[str, str]]]:
    """GSM8K as `{"train", "validation", "test"}` lists of `question`, `answer`, from the Hub or from files of any kind.

    `validation` is the last 400 rows of the training split. A split whose file is not given is absent.

    Raises:
        ValueError: neither a name nor a file is given, or a file is broken (the message names the line).
    """
    splits: dict[str, list[dict[str, str]]]
    if dataset_name is not None:
        loaded = load_dataset(dataset_name, "main" if dataset_name == "openai/gsm8k" else None)
        splits = {n: problems_of(loaded[n], dataset_name) for n in ("train", "test") if n in loaded}
    elif train_file or test_file:
        files = {"train": train_file, "test": test_file}
        splits = {n: read_problems(file, option=f"{n}_file") for n, file in files.items() if file}
    else:
        raise ValueError("dataset_name or train_file/test_file must be given, but all are None")
    if "train" in splits:
        if len(splits["train"]) <= HELD_OUT:
            raise ValueError(f"the training split must have more than {HELD_OUT} rows, got {len(splits['train'])}")
        splits["train"], splits["validation"] = splits["train"][:-HELD_OUT], splits["train"][-HELD_OUT:]
    return splits


def character_tokenizer(alphabet: str, *, separator: bool = False) -> PreTrainedTokenizerFast:
    """One token a character. With `separator` a prompt ends in `[SEP]`. Prompts are padded on the left."""
    split = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return _tokenizer(alphabet, split, decoders.Fuse(), separator=separator)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, words between spaces. A prompt ends in `[SEP]`; prompts are padded on the left."""
    return _tokenizer(words, pre_tokenizers.WhitespaceSplit(), None, separator=True)


def _tokenizer(
    tokens: Sequence[str], split: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder | None, *, separator: bool
) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[MASK]", "[EOS]", "[SEP]", "[UNK]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    if decoder is not None:  # without one, tokens are joined by spaces
        tokenizer.decoder = decoder
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
    texts = [chain.texts() for chain in chains]
    reasons = ["with a response that is too long" if len(text) >= canvas_length else "" for _, text in texts]
    _tell("GSM8K equations", reasons, canvas_length)
    return Dataset.from_list(list(_encode(iter(texts), tokenizer, canvas_length)))


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
    """`count` chains with their numbers drawn anew (`resampler.Resampler`), cached on disk by `datasets`."""
    # without this, drawing until `count` responses fit would never end
    _nonempty([chain for chain in chains if len(chain.texts()[1]) < canvas_length])
    options = {"canvas_length": canvas_length, "count": count, "seed": seed, "keep": keep, "growth": growth}
    options |= {"pieces": pieces, "drills": drills}
    gen_kwargs = {"chains": tuple(chains), "tokenizer": tokenizer, **options}
    return _nonempty(Dataset.from_generator(_draw, gen_kwargs=gen_kwargs))


def words(
    rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, canvas_length: int, prompt_length: int = 512
) -> Dataset:
    """Question -> published solution without its annotations, through the tokenizer's chat template if it has one.

    Rows that do not fit `prompt_length` or `canvas_length` are left out.
    """
    encoded, reasons = [], []
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
        reason = "with a prompt that is too long" if len(ids) > prompt_length else ""
        reasons.append("with a response that is too long" if len(response) >= canvas_length else reason)
        if not reasons[-1]:
            encoded.append(_row(ids, response, answer_of(row["answer"])))
    _tell("GSM8K words", reasons, canvas_length)
    return Dataset.from_list(encoded)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of a task whose problems are drawn.

    Attributes:
        prompt: its text; empty where the canvas itself is the problem.
        response: the text of a right response.
        answer: what a task's `is_right` takes beside a response; the problem itself where several are right.
        given: which tokens of the response are known from the start; None if none.
    """

    prompt: str
    response: str
    answer: str
    given: tuple[bool, ...] | None = None


# one problem from a source of randomness, None where that failed; it may ask first whether a text is of the split
Draw = Callable[[random.Random, Callable[[str], bool]], Problem | None]


def drawn(
    draw: Draw,
    tokenizer: PreTrainedTokenizerBase,
    *,
    canvas_length: int,
    count: int,
    seed: int,
    split: str,
) -> Dataset:
    """`count` problems of a split, cached on disk by `datasets`. One seed, one data set.

    A problem belongs to a split by the checksum of its prompt (of its response where there is no prompt), whatever the
    seed: 4 % each are for "validation" and "test", and no problem is in two splits.

    Args:
        draw: one problem, see `Draw`.
        tokenizer: of the model.
        canvas_length: what response and one EOS must fit in; where problems have `given`, the length of all responses.
        count: how many.
        seed: of the draws.
        split: "train", "validation" or "test".

    Raises:
        ValueError: the split is unknown, or 10,000 draws one after another give nothing that fits.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    wanted = _Wanted(canvas_length, count, seed, split)
    # the generator's own errors come wrapped in one of `datasets`
    next(_drawn(draw, tokenizer, wanted._replace(count=1)), None)
    inputs = {"draw": draw, "tokenizer": tokenizer, "request": wanted}
    return _nonempty(Dataset.from_generator(_drawn, gen_kwargs=inputs))


class _Wanted(NamedTuple):
    """What `drawn` was asked for."""

    canvas_length: int
    count: int
    seed: int
    split: str


def _drawn(draw: Draw, tokenizer: PreTrainedTokenizerBase, request: _Wanted) -> Iterator[dict[str, Any]]:
    canvas_length, count, seed, split = request
    rng, failed = random.Random(seed), 0

    def wanted(text: str) -> bool:
        return split_of(text) == split

    while count > 0:
        failed += 1
        if failed > TRIES:
            raise ValueError(
                f"canvas_length must fit the task, got {canvas_length}: {TRIES} draws in turn gave nothing"
            )
        problem = draw(rng, wanted)
        if problem is None or not wanted(problem.prompt or problem.response):
            continue
        response = tokenizer(problem.response, add_special_tokens=False)["input_ids"]
        if len(response) < canvas_length if problem.given is None else len(response) == canvas_length:
            prompt = tokenizer(problem.prompt)["input_ids"] if problem.prompt else []
            given = {} if problem.given is None else {"given": list(problem.given)}
            yield {**_row(prompt, response, problem.answer), **given}
            count, failed = count - 1, 0


def split_of(text: str) -> str:
    """The split that a drawn problem belongs to."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(text.encode()) % 25, "train")


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


def _tell(what: str, reasons: Sequence[str], canvas_length: int) -> None:
    """No row goes silently. Raises `ValueError` where none is left."""
    _nonempty(reasons)
    if any(reasons):
        report(what, reasons, hint=f"canvas_length is {canvas_length}")


def _nonempty(dataset: Rows) -> Rows:
    if len(dataset) == 0:
        raise ValueError("the data set must hold at least one row that fits the canvas, but it is empty")
    return dataset
