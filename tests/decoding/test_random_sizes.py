"""The rule that draws how many positions go: its law, and the loss that it promises."""

import math
from functools import lru_cache
from itertools import combinations, pairwise

import oracles
import pytest
import torch
from oracles import chi_square_excess
from problems import ExactShuffle, ExactTable
from strategies import VOCAB, counts, step_of

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.random_sizes import RandomSizesSampler, log_weights


def law_of(masked: int, steps_left: int, *, length: int) -> dict[int, float]:
    """The law of the size, from the weights of a canvas of that length."""
    sizes = range(1, masked - steps_left + 2)
    weights = log_weights(steps_left, length).exp()
    total = sum(weights[masked - s].item() for s in sizes)
    return {s: weights[masked - s].item() / total for s in sizes}


@pytest.mark.parametrize("steps_left", [2, 3, 5])
@pytest.mark.parametrize("masked", [6, 9])
def test_the_law_is_the_one_that_counts_every_entropy_alike(masked, steps_left):
    law, _ = oracles.random_sizes(masked, steps_left)
    for length in (masked, 12):
        assert law_of(masked, steps_left, length=length) == pytest.approx(law, abs=1e-9)


@pytest.mark.parametrize(("masked", "steps_left"), [([True] * 5, 2), ([True, False, True, True, True, True], 3)])
def test_what_is_drawn_has_that_law(masked, steps_left):
    step = step_of(
        torch.zeros(20_000, len(masked), VOCAB), torch.tensor(masked).expand(20_000, -1), steps_left=steps_left
    )
    places = oracles.eligible(masked)
    sizes, _ = oracles.random_sizes(len(places), steps_left)
    law = {
        frozenset(chosen): p / math.comb(len(places), s) for s, p in sizes.items() for chosen in combinations(places, s)
    }
    assert chi_square_excess(counts(RandomSizesSampler().propose(step, ()).unmask), law) < 5


def entropies(problem: ExactTable) -> list[float]:
    """h_j of the table, by every set of j positions."""
    n = problem.length

    def entropy(kept: tuple[int, ...]) -> float:
        others = [i for i in range(n) if i not in kept]
        p = problem.table.view([2] * n).sum(others).flatten() if others else problem.table
        return -(p * p.log()).sum().item()

    mean = [torch.tensor([entropy(kept) for kept in combinations(range(n), j)]).mean().item() for j in range(n + 1)]
    return [after - before for before, after in pairwise(mean)]


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_same_share_of_the_total_correlation_whatever_the_distribution(seed):
    h = entropies(ExactTable.random(6, seed=seed))
    correlation = sum(h[0] - x for x in h)

    @lru_cache
    def loss(known: int, steps_left: int) -> float:
        masked = len(h) - known
        if masked == 0:
            return 0.0
        if steps_left >= masked:
            return loss(known + 1, steps_left - 1)
        law = {masked: 1.0} if steps_left == 1 else law_of(masked, steps_left, length=len(h))
        return sum(
            p * (sum(h[known] - x for x in h[known : known + s]) + loss(known + s, steps_left - 1))
            for s, p in law.items()
        )

    assert correlation > 0.1
    shares = [loss(0, steps) / correlation for steps in range(1, 7)]
    assert shares == pytest.approx([oracles.random_sizes(6, steps)[1] for steps in range(1, 7)], abs=1e-4)
    assert shares[:2] == pytest.approx([1, 1 - 1 / (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5)], abs=1e-4)


def test_the_whole_budget_is_used():
    problem = ExactShuffle(6)
    prompts, _ = problem.examples(50, torch.Generator().manual_seed(0))
    for steps in (2, 4, 6, 9):
        output = decode(
            problem,
            prompts,
            sampler=RandomSizesSampler(),
            max_new_tokens=6,
            max_denoising_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
        assert set(output.nfe.tolist()) == {min(steps, 6)}


def test_a_budget_of_a_thousand_steps():
    weights = log_weights(1000, 1024)
    assert not weights.isnan().any()
    assert weights.isfinite().sum() == 1024 - 999
