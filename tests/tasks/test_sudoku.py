"""Grids, puzzles and the solver, against the rules written out and against all 288 grids of side 4."""

import itertools
import random

import numpy as np
import pytest

from hf_learned_order.tasks import sudoku

SIZES = [4, 6, 9]


def obeys_the_rules(grid: list[int], size: int) -> bool:
    """Cell by cell: no two cells of a row, a column or a box are equal."""
    high, wide = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    for a, b in itertools.combinations(range(size * size), 2):
        (i, j), (k, m) = divmod(a, size), divmod(b, size)
        together = i == k or j == m or (i // high == k // high and j // wide == m // wide)
        if together and grid[a] == grid[b]:
            return False
    return all(1 <= digit <= size for digit in grid)


def small_grids() -> set[tuple[int, ...]]:
    """Every complete grid of side 4, from all choices of rows."""
    rows = list(itertools.permutations(range(1, 5)))
    two = [a + b for a in rows for b in rows if obeys_the_rules([*a, *b, *[0] * 8], 4) or fits(a, b)]
    return {top + low for top in two for low in two if obeys_the_rules([*top, *low], 4)}


def fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len({*a[:2], *b[:2]}) == 4 and all(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_grids_obey_the_rules_and_differ(size):
    grids = sudoku.grids(40, size, np.random.default_rng(0)).tolist()
    assert all(obeys_the_rules(grid, size) and sudoku.is_valid(grid, size) for grid in grids)
    assert len({tuple(grid) for grid in grids}) > 30


def test_one_seed_one_set_of_grids():
    first, again, other = (sudoku.grids(5, 6, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_every_small_grid_is_drawn_and_none_is_much_more_likely():
    drawn = [tuple(grid) for grid in sudoku.grids(288 * 50, 4, np.random.default_rng(0)).tolist()]
    counts = {grid: 0 for grid in small_grids()}
    assert len(counts) == 288
    for grid in drawn:
        counts[grid] += 1
    assert min(counts.values()) > 15
    assert max(counts.values()) < 100


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_cell_is_no_valid_grid(size):
    grid = sudoku.grids(1, size, np.random.default_rng(3))[0].tolist()
    for cell in range(size * size):
        changed = [*grid[:cell], grid[cell] % size + 1, *grid[cell + 1 :]]
        assert not sudoku.is_valid(changed, size)
    assert not sudoku.is_valid(grid[:-1], size)


def test_columns_and_boxes_count():
    assert not sudoku.is_valid([1, 2, 3, 4] * 4, 4)  # rows alone
    latin = [1, 2, 3, 4, 2, 3, 4, 1, 3, 4, 1, 2, 4, 1, 2, 3]  # rows and columns
    assert not sudoku.is_valid(latin, 4)


def test_the_solver_finds_all_that_agree():
    everything = small_grids()
    assert set(sudoku.solutions([0] * 16, 4, limit=1000)) == everything
    rng = random.Random(0)
    for grid in rng.sample(sorted(everything), 20):
        puzzle = [digit if rng.random() < 0.25 else 0 for digit in grid]
        agree = {g for g in everything if all(p in (0, d) for p, d in zip(puzzle, g, strict=True))}
        found = sudoku.solutions(puzzle, 4, limit=1000, rng=rng)
        assert set(found) == agree
        assert len(found) == len(agree)
        assert len(sudoku.solutions(puzzle, 4)) == min(2, len(agree))


def test_clues_that_contradict_one_another_have_no_solution():
    assert sudoku.solutions([1, 1, *[0] * 14], 4) == []
    assert sudoku.solutions([1, 2, 3, 0, *[0] * 3, 4, *[0] * 8], 4) == []  # the last cell of the row has no digit left


@pytest.mark.parametrize(("unique", "count"), [(False, 6), (True, 14)])
def test_clues(unique, count):
    rng, several = random.Random(0), 0
    for grid in sudoku.grids(10, 6, np.random.default_rng(0)).tolist():
        given = sudoku.clues(grid, 6, count, unique=unique, rng=rng)
        assert sum(given) == count
        found = sudoku.solutions([d * g for d, g in zip(grid, given, strict=True)], 6)
        assert found == [tuple(grid)] if unique else found
        several += len(found) > 1
    assert (several == 0) == unique


def test_too_few_clues_for_one_solution():
    grid = sudoku.grids(1, 6, np.random.default_rng(0))[0].tolist()
    assert sudoku.clues(grid, 6, 5, unique=True, rng=random.Random(0)) is None


def test_right_is_a_valid_grid_that_keeps_the_clues():
    grid = [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]
    puzzle = sudoku.puzzle_text(grid, [i in (0, 5) for i in range(16)])
    assert puzzle == "1....4.........."
    text = "".join(map(str, grid))
    assert sudoku.is_right(text, puzzle)
    assert sudoku.is_right(text.translate(str.maketrans("23", "32")), puzzle)  # another solution
    for wrong in (
        "",
        text[:-1],
        text + "1",
        text[:-1] + "2",
        text[:-1] + "a",
        text.translate(str.maketrans("12", "21")),
    ):
        assert not sudoku.is_right(wrong, puzzle)


def test_another_size():
    with pytest.raises(ValueError, match="size must be one of 4, 6, 9, got 5"):
        sudoku.grids(1, 5, np.random.default_rng(0))
