"""Sudoku of 4, 6 and 9: complete grids, puzzles, and a solver that says whether a puzzle has one solution.

A grid is a row of cells, left to right and top to bottom, as digits: text `"1".."9"`, `.` where a puzzle is empty.
Complete grids are drawn by solving the empty one with guesses in random order, and then by a random one of the
symmetries that keep a grid valid: digits renamed; rows within bands, bands, columns within stacks and stacks permuted;
and, where boxes are square, the grid transposed.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # side of the grid -> rows and columns of a box
BASES = 500  # grids found by search; symmetries make the others


def box_of(size: int) -> tuple[int, int]:
    """Rows and columns of a box. Raises `ValueError` for a side that no grid has."""
    if size not in BOXES:
        raise ValueError(f"size must be one of {', '.join(map(str, BOXES))}, got {size!r}")
    return BOXES[size]


@cache
def groups(size: int) -> np.ndarray:
    """int [3 * size, size]: the cells of each row, column and box."""
    high, wide = box_of(size)
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // high, high, size // wide, wide).swapaxes(1, 2).reshape(size, size)
    return np.concatenate([cells, cells.T, boxes])


def is_valid(grid: Sequence[int], size: int) -> bool:
    """Whether the grid is complete and each row, column and box has each digit once."""
    cells = np.asarray(grid)
    if cells.shape != (size * size,):
        return False
    return bool((np.sort(cells[groups(size)], axis=-1) == np.arange(1, size + 1)).all())


def solutions(
    puzzle: Sequence[int], size: int, *, limit: int = 2, rng: random.Random | None = None
) -> list[tuple[int, ...]]:
    """Up to `limit` complete grids that agree with the puzzle (0 where it is empty), in random order with `rng`.

    Backtracking over the cell with the fewest digits left.
    """
    board = _Board(size, rng)
    clues = [(cell, digit) for cell, digit in enumerate(puzzle) if digit]
    for cell, digit in clues:
        if digit not in board.digits(cell):
            return []
        board.place(cell, digit)
    empty = [cell for cell, digit in enumerate(puzzle) if not digit]
    return list(itertools.islice(board.solutions(empty), limit))


class _Board:
    """A grid on its way: the digits placed, and as bits those that each cell may still take."""

    def __init__(self, size: int, rng: random.Random | None):
        self.size, self.rng, self.peers = size, rng, _peers(size)
        self.cells, self.free = [0] * (size * size), [(1 << size + 1) - 2] * (size * size)

    def digits(self, cell: int) -> list[int]:
        digits = [digit for digit in range(1, self.size + 1) if self.free[cell] >> digit & 1]
        if self.rng is not None:
            self.rng.shuffle(digits)
        return digits

    def place(self, cell: int, digit: int) -> list[int]:
        """Which of the cells that must differ had the digit left."""
        self.cells[cell] = digit
        changed = [peer for peer in self.peers[cell] if self.free[peer] >> digit & 1]
        self._flip(changed, digit)
        return changed

    def solutions(self, empty: list[int]) -> Iterator[tuple[int, ...]]:
        if not empty:
            yield tuple(self.cells)
            return
        cell = min(empty, key=lambda c: self.free[c].bit_count())
        rest = [other for other in empty if other != cell]
        for digit in self.digits(cell):
            changed = self.place(cell, digit)
            yield from self.solutions(rest)
            self._flip(changed, digit)

    def _flip(self, cells: list[int], digit: int) -> None:
        for cell in cells:
            self.free[cell] ^= 1 << digit


def grids(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """int8 [count, size * size]: complete grids, each a base grid under a random symmetry."""
    high, wide = box_of(size)
    base = _bases(size)[rng.integers(BASES, size=count)]
    rows, columns = _permuted(count, size, high, rng), _permuted(count, size, wide, rng)
    cells = np.take_along_axis(base.reshape(count, size, size), rows[:, :, None], 1)
    cells = np.take_along_axis(cells, columns[:, None, :], 2)
    if high == wide:
        cells = np.where(rng.random((count, 1, 1)) < 0.5, cells, cells.swapaxes(1, 2))
    names = rng.permuted(np.tile(np.arange(1, size + 1), (count, 1)), axis=1)
    return np.take_along_axis(names, cells.reshape(count, -1).astype(int) - 1, 1).astype(np.int8)


def clues(grid: Sequence[int], size: int, count: int, *, unique: bool, rng: random.Random) -> list[bool] | None:
    """Which cells of a grid a puzzle gives: `count` at random, or, with `unique`, so that no other grid agrees.

    A unique puzzle is what is left when cells are taken away in random order, each unless that allows a second
    solution; None where this ends with more than `count`.
    """
    order = rng.sample(range(size * size), size * size)
    given = [True] * (size * size)
    for cell in order:
        if sum(given) == count:
            break
        given[cell] = False
        if unique and len(solutions([d * g for d, g in zip(grid, given, strict=True)], size)) > 1:
            given[cell] = True
    return given if sum(given) == count else None


def puzzle_text(grid: Sequence[int], given: Sequence[bool]) -> str:
    """A digit for each clue, `.` for each empty cell."""
    return "".join(str(digit) if known else "." for digit, known in zip(grid, given, strict=True))


def is_right(response: str, puzzle: str) -> bool:
    """Whether the response is a valid grid that agrees with the puzzle."""
    size = math.isqrt(len(puzzle))
    if len(response) != len(puzzle) or not response.isdigit():
        return False
    kept = all(clue in (".", digit) for clue, digit in zip(puzzle, response, strict=True))
    return kept and is_valid([int(digit) for digit in response], size)


def _permuted(count: int, size: int, part: int, rng: np.random.Generator) -> np.ndarray:
    """int [count, size]: permutations of lines that keep bands of `part` lines together."""
    bands = rng.permuted(np.tile(np.arange(size // part), (count, 1)), axis=1)
    within = rng.permuted(np.tile(np.arange(part), (count, size // part, 1)), axis=2)
    return (bands[:, :, None] * part + within).reshape(count, size)


@cache
def _bases(size: int) -> np.ndarray:
    rng = random.Random(size)
    empty = [0] * size * size
    return np.array([solutions(empty, size, limit=1, rng=rng)[0] for _ in range(BASES)], dtype=np.int8)


@cache
def _peers(size: int) -> list[list[int]]:
    """The cells that share a row, column or box with each cell."""
    lines = groups(size).tolist()
    return [sorted({c for line in lines if cell in line for c in line} - {cell}) for cell in range(size * size)]
