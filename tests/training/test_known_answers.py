"""The problems with known answers: their optima, their conditionals, and what loses nothing."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from bench_known_answers import PROBLEMS, measure
from problems import ExactReplaceRandom, ExactShuffle

from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.orders.scorer import OrderScorer

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("n", range(4, 9))
def test_what_one_step_loses(n):
    """The total correlations of arXiv 2510.04767; with n steps nothing is lost."""
    replaced, shuffled = ExactReplaceRandom(n), ExactShuffle(n)
    entropy = math.log(n)
    assert -entropy - replaced.optimum(1) == pytest.approx((n - 1) * math.log(n / (n - 1)))
    assert replaced.optimum(n) == pytest.approx(-entropy)
    assert -math.lgamma(n + 1) - shuffled.optimum(1) == pytest.approx(n * math.log(n) - math.lgamma(n + 1))
    assert shuffled.optimum(n) == pytest.approx(-math.lgamma(n + 1))
    for problem in (replaced, shuffled):
        values = [problem.optimum(steps) for steps in range(1, n + 1)]
        assert all(low < high for low, high in pairwise(values))  # short of n steps, some is lost


def test_shuffle_conditionals_are_those_of_its_permutations():
    problem = ExactShuffle(4)
    prompt = torch.tensor([[7, 1, 9, 3]])
    canvas = torch.tensor([[problem.mask_token_id, 9, problem.mask_token_id, problem.mask_token_id]])
    agree = [p for p in permutations(prompt[0].tolist()) if p[1] == 9]
    probs = problem.probs(prompt, canvas)
    for token in (7, 1, 3):
        assert probs[0, 0, token].item() == pytest.approx(sum(p[0] == token for p in agree) / len(agree))


@pytest.mark.parametrize("known", [[], [0], [0, 2], [1]])
def test_replace_random_conditionals_are_those_of_its_responses(known):
    problem = ExactReplaceRandom(4)
    prompt = torch.tensor([[5, 6, 7, 8, 11]])
    responses = [[11 if i == j else prompt[0, i].item() for i in range(4)] for j in range(4)]
    clean = responses[1]
    canvas = torch.tensor([[clean[i] if i in known else problem.mask_token_id for i in range(4)]])
    agree = [r for r in responses if all(r[i] == clean[i] for i in known)]
    probs = problem.probs(prompt, canvas)
    for i in set(range(4)) - set(known):
        assert probs[0, i, 11].item() == pytest.approx(sum(r[i] == 11 for r in agree) / len(agree))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("law", ["count", "non_empty"])
@pytest.mark.parametrize("greedy", [False, True])
def test_bounds_are_measured_against_the_optimum(name, law, greedy):
    """One step is optimal whatever the law; an untrained one is not above the optimum at two; copying loses nothing."""
    torch.manual_seed(0)
    problem = PROBLEMS[name](4)
    sampler = LearnedOrderSampler(scorer=OrderScorer.for_denoiser(problem, law=law, **SMALL).eval(), greedy=greedy)
    bound, regret, optimal, nfe = measure(problem, sampler, 1, 512)
    assert nfe == optimal == 1
    assert regret == 0
    assert bound == pytest.approx(problem.optimum(1), abs=0.15)
    bound, regret, optimal, _ = measure(problem, sampler, 2, 512)
    assert bound == pytest.approx(problem.optimum(2) - regret, abs=0.15)
    lossless = name in ("copy", "replace_at")
    assert (bound == 0) == lossless
    if greedy and not lossless:
        return  # half of the positions, from the left: by luck that may be optimal
    assert (optimal == 1) == lossless
    assert bound < problem.optimum(2) or lossless
