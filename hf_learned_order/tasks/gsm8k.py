"""GSM8K as two tasks: `words` (question -> solution) and `equations` (its chain of calculator annotations).

A *chain* is what remains of a solution when its words are taken away: a list of arithmetic expressions, each over
numbers and over earlier results. As text, earlier results are named by letters in the prompt and written out in the
response, so that the response shows the working:

    prompt   16-3-4;a*2          response   16-3-4=9 9*2=18 #18

All arithmetic is exact (`fractions.Fraction`).

Source: Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168 (the annotations `<<16-3-4=9>>`).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

Number = int | Fraction

_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|[-+*/()]")
_OPERATORS: dict[str, Callable[[Number, Number], Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a) / b,
}
MAX_EXPRESSIONS = 12  # results are named a to l
ALPHABET = "0123456789.+-*/()=;# abcdefghijkl"


class ChainError(ValueError):
    """A solution that is not a usable chain; the message is the reason, short enough to be counted."""


@dataclass(frozen=True, slots=True)
class Expression:
    """Tokens of one expression. `operands[k]` fills the k-th `""` of `tokens`: a number or ("ref", index of result)."""

    tokens: tuple[str, ...]
    operands: tuple[Number | tuple[str, int], ...]

    def slots(self) -> list[tuple[str, str]]:
        """The tokens on either side of each operand: the role that a number plays, as in `20/100*60`."""
        padded = ("", *self.tokens, "")
        return [(padded[i], padded[i + 2]) for i, token in enumerate(self.tokens) if token == ""]

    def value(self, results: list[Number]) -> Number:
        """With these results of earlier ones. Raises `ChainError` where it is no arithmetic, or divides by zero.

        Recursive descent: `sum := product (± product)*`, `product := unit (*/ unit)*`, `unit := number | ( sum )`.
        """
        operands: Iterator[Number] = iter(_resolve(self.operands, results))
        tokens = [*self.tokens, "end"]
        position = 0

        def level(operators: tuple[str, ...], below: Callable[[], Number]) -> Number:
            nonlocal position
            value = below()
            while tokens[position] in operators:
                operator = _OPERATORS[tokens[position]]
                position += 1
                value = _whole(operator(value, below()))
            return value

        def unit() -> Number:
            nonlocal position
            token = tokens[position]
            position += 1
            if token == "":
                return next(operands)
            _require_plain(token == "(")
            value = total()
            _require_plain(tokens[position] == ")")
            position += 1
            return value

        def product() -> Number:
            return level(("*", "/"), unit)

        def total() -> Number:
            return level(("+", "-"), product)

        try:
            value = total()
        except ZeroDivisionError:
            raise ChainError("a division by zero") from None
        _require_plain(tokens[position] == "end")
        return value


@dataclass(frozen=True, slots=True)
class Chain:
    """Expressions in order; each may refer to the results of the ones before it."""

    expressions: tuple[Expression, ...]

    def results(self) -> list[Number]:
        """The value of each expression. Raises `ChainError` on a division by zero."""
        results: list[Number] = []
        for expression in self.expressions:
            results.append(expression.value(results))
        return results

    def piece(self, first: int, end: int) -> "Chain":
        """Expressions `first` to `end` (exclusive) as a chain of its own; a result from outside becomes a number."""
        results = self.results()

        def inside(operand: Number | tuple[str, int]) -> Number | tuple[str, int]:
            if not isinstance(operand, tuple):
                return operand
            return ("ref", operand[1] - first) if operand[1] >= first else results[operand[1]]

        return Chain(tuple(Expression(e.tokens, tuple(map(inside, e.operands))) for e in self.expressions[first:end]))

    def texts(self) -> tuple[str, str]:
        """`(prompt, response)`. An operand equal to an earlier result is a letter in the prompt (the latest such)."""
        results: list[Number] = []
        prompt, response = [], []
        for expression in self.expressions:
            values = _resolve(expression.operands, results)
            names = [_letter(value, results) or to_text(value) for value in values]
            results.append(expression.value(results))
            prompt.append(_fill(expression.tokens, names))
            response.append(f"{_fill(expression.tokens, [to_text(v) for v in values])}={to_text(results[-1])}")
        return ";".join(prompt), f"{' '.join(response)} #{to_text(results[-1])}"


def to_text(value: Number) -> str:
    """The shortest exact decimal, as in `0.25`. Raises `ChainError` where there is none (1/3)."""
    if isinstance(value, int):
        return str(value)
    places = 0
    scaled = abs(value)
    while scaled.denominator != 1:
        scaled *= 10
        places += 1
        if places > 6:
            raise ChainError("a number has no short decimal form")
    digits = str(scaled.numerator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"


def answer_of(text: str) -> str:
    """What stands after the last `#` of a response or of a solution, without spaces and thousands separators."""
    return text.rpartition("#")[2].strip().replace(",", "").replace(" ", "") if "#" in text else ""


def answered(response: str, answer: str) -> bool:
    """Whether what stands behind the last `#` of a response is the answer."""
    return answer_of(response) == answer


def parse_chain(solution: str) -> Chain:
    """The chain of a GSM8K solution. Raises `ChainError` with the reason when the solution has none."""
    annotations = re.findall(r"<<(.*?)>>", solution)
    if not annotations:
        raise ChainError("no calculator annotation")
    if len(annotations) > MAX_EXPRESSIONS:
        raise ChainError(f"more than {MAX_EXPRESSIONS} steps")
    results: list[Number] = []
    expressions = []
    for annotation in annotations:
        left, _, right = annotation.partition("=")
        expression = _parse_expression(left, results)
        result = expression.value(results)
        if result != _number(right):
            raise ChainError("a stated result is not exact")
        to_text(result)
        expressions.append(expression)
        results.append(result)
    if results[-1] != _number(answer_of(solution)):
        raise ChainError("the answer is not the last result")
    return Chain(tuple(expressions))


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a GSM8K JSON-lines file. A broken line raises a `ValueError` that names the file and the line."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("question", "answer")):
                raise ValueError(
                    f"{path}, line {number}: must have the strings 'question' and 'answer', got {line[:80]!r}"
                )
            rows.append({"question": row["question"], "answer": row["answer"]})
    if not rows:
        raise ValueError(f"{path}: must hold at least one problem, but it is empty")
    return rows


def chains_of(rows: Iterable[dict[str, str]]) -> tuple[list[Chain], Counter[str]]:
    """The chains of the rows that have one, and how many rows were left out for which reason."""
    chains, reasons = [], Counter()
    for row in rows:
        try:
            chains.append(parse_chain(row["answer"]))
        except ChainError as error:
            reasons[str(error)] += 1
    return chains, reasons


def _parse_expression(text: str, results: list[Number]) -> Expression:
    pieces = _TOKEN.findall(text)
    _require_plain(pieces != [] and "".join(pieces) == text)
    operands = []
    tokens = []
    for piece in pieces:
        if not (piece[0].isdigit() or piece[0] == "."):
            tokens.append(piece)
            continue
        value = _number(piece)
        to_text(value)
        index = _latest(value, results)
        operands.append(value if index is None else ("ref", index))
        tokens.append("")
    return Expression(tuple(tokens), tuple(operands))


def _require_plain(plain: bool) -> None:
    if not plain:
        raise ChainError("an expression is not plain arithmetic")


def _resolve(operands: Iterable[Number | tuple[str, int]], results: list[Number]) -> list[Number]:
    return [results[operand[1]] if isinstance(operand, tuple) else operand for operand in operands]


def _latest(value: Number, results: list[Number]) -> int | None:
    return next((i for i in reversed(range(len(results))) if results[i] == value), None)


def _letter(value: Number, results: list[Number]) -> str | None:
    index = _latest(value, results)
    return None if index is None else chr(ord("a") + index)


def _fill(tokens: Iterable[str], operands: Iterable[str]) -> str:
    remaining = iter(operands)
    return "".join(token or next(remaining) for token in tokens)


def _number(text: str) -> Number:
    try:
        return _whole(Fraction(text.rstrip(".") if text.endswith(".") else text))
    except (ValueError, ZeroDivisionError):
        raise ChainError("a number cannot be read") from None


def _whole(value: Number) -> Number:
    return value.numerator if value.denominator == 1 else value
