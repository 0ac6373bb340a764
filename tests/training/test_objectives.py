"""The objectives by name: which a law has by default, and which settings each is given."""

import pytest
import torch
from problems import ExactPairs
from test_elbo import SMALL

from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.table import DEFAULTS, OBJECTIVES, make_objective, settings_of
from hf_learned_order.training.objectives.updates import seeds_of


def scorer_of(law: str, **fields) -> OrderScorer:
    return OrderScorer.for_denoiser(ExactPairs(1), law=law, **fields, **SMALL)


@pytest.mark.parametrize("law", LAWS)
def test_each_law_has_one(law):
    name = DEFAULTS.get(law, "elbo")
    objective = make_objective(
        name, ExactPairs(1), scorer_of(law), max_denoising_steps=3, num_chains=2, eos_token_id=1, speed_exponent=2.0
    )
    assert type(objective) is OBJECTIVES[name]
    assert objective.scorer.config.law == law
    assert (objective.max_denoising_steps, objective.eos_token_id) == (3, 1)


def test_each_is_given_the_settings_that_it_has():
    settings = {"max_denoising_steps": 3, "num_chains": 2, "eos_token_id": 1, "speed_exponent": 2.0, "returns": "mean"}
    objective = make_objective("reward", ExactPairs(1), scorer_of("count"), **settings)
    assert (objective.max_denoising_steps, objective.num_chains, objective.speed_exponent) == (3, 2, 2.0)
    assert "returns" not in settings_of("reward")
    assert "returns" in settings_of("elbo")


@pytest.mark.parametrize(
    ("name", "start", "weight"), [("regret", 0, 0), ("reward", 0, 1), ("elbo", 0, 1), ("elbo", 2, 2)]
)
def test_pairs_count_where_nothing_else_gives_them_a_weight(name, start, weight):
    scorer = scorer_of("regret", pair_weight=float(start))
    make_objective(name, ExactPairs(1), scorer, max_denoising_steps=3)
    assert scorer.config.pair_weight == weight


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_weight_that_is_trained_gets_a_gradient(name, sees):
    """Processes that train together would wait for the others."""
    denoiser = ExactPairs(2)
    scorer = OrderScorer.for_denoiser(denoiser, law="regret", sees_tokens=sees, pair_weight=1.0, **SMALL)
    objective = make_objective(name, denoiser, scorer, max_denoising_steps=3, num_chains=2)
    prompt, clean = denoiser.examples(4, torch.Generator().manual_seed(0))
    objective.train()(prompt, torch.ones_like(prompt), clean, seeds=seeds_of(0, 0, first=0, rows=4))["loss"].backward()
    assert [key for key, each in scorer.named_parameters() if each.requires_grad and each.grad is None] == []


def test_unknown_name():
    with pytest.raises(ValueError, match="objective must be one of elbo, regret, reward, got 'best'"):
        make_objective("best", ExactPairs(1), scorer_of("non_empty"))
