"""What a scorer starts from, what it sees, and how large it may be."""

import dataclasses
from pathlib import Path

import pytest
import torch
from problems import ExactPairs
from test_elbo import chains_of
from test_scorer import CANVAS, SMALL, scorer_of, step_of

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.predictions import Predictions
from hf_learned_order.orders.configuration import LAWS, RANDOM_LAWS, OrderScorerConfig
from hf_learned_order.orders.features import FEATURES, features_of, width_of
from hf_learned_order.orders.laws.base import at_least_one
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.warm_starts import WARM_STARTS, warm_start
from hf_learned_order.training.objectives.elbo import OrderELBO

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUND = 0.4


def rule_of(name: str):
    options = {"threshold": {"threshold": 1 - BOUND}, "factor": {"factor": BOUND}}.get(name)
    return make_sampler(name, options)


def chosen_by(name: str, step):
    return at_least_one(rule_of(name).propose(step, ()).unmask, step.masked, step.predictions.confidence)


def start_of(law: str, rule: str, tau: float) -> OrderScorer:
    return scorer_of(law, trained=False, warm_start=rule, law_temperature=tau, bound=BOUND)


@pytest.mark.parametrize("rule", WARM_STARTS)
@pytest.mark.parametrize("law", RANDOM_LAWS)
def test_a_cold_start_is_the_rule(law, rule):
    """At nearly no temperature the draws are the choices of the rule, with as many positions, at every budget."""
    assert rule in SAMPLERS
    scorer = start_of(law, rule, 1e-3)
    for steps_left in (2, 3, 5, 20):
        step = step_of(rows=32, steps_left=steps_left)
        expected = chosen_by(rule, step)
        for _ in range(3):
            assert torch.equal(scorer.law(step, scorer(step)).sample(), expected)
    assert len(expected.sum(-1).unique()) > 1 or rule not in ("threshold", "factor")


@pytest.mark.parametrize("rule", WARM_STARTS)
@pytest.mark.parametrize("law", RANDOM_LAWS)
def test_a_warm_start_is_near_the_rule(law, rule):
    """At tau = 0.1 nearly all rows are those of the rule; the others are one position away. The warmer, the more."""
    step, means = step_of(rows=64, steps_left=3), []
    for tau in (0.1, 0.5):
        scorer = start_of(law, rule, tau)
        away = (scorer.law(step, scorer(step)).sample((20,)) != chosen_by(rule, step)).sum(-1).float()
        means.append(away.mean())
        assert tau == 0.5 or (away > 1).float().mean() < 0.01
    assert means[0] < 0.1 < means[1]


def test_it_decodes_as_the_rule_does():
    denoiser = ExactPairs(4)
    scorer = OrderScorer.for_denoiser(denoiser, law="count", law_temperature=1e-3, warm_start="entropy", **SMALL)
    prompt, clean = denoiser.examples(16, torch.Generator().manual_seed(0))
    orders = [
        decode(denoiser, prompt, sampler=sampler, max_new_tokens=8, max_denoising_steps=3, clean=clean).order
        for sampler in (LearnedOrderSampler(scorer=scorer), make_sampler("entropy"))
    ]
    assert torch.equal(*orders)


@pytest.mark.parametrize("law", [law for law in RANDOM_LAWS if law != "max_normalized"])
def test_bias_still_moves_the_count(law):
    scorer, step = start_of(law, "entropy", 0.1), step_of(rows=64)
    counts = [scorer.law(step, scorer(step), bias=bias).sample().sum(-1).float().mean() for bias in (-9.0, 0.0, 9.0)]
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("law", ["non_empty", "count", "repulsive"])
def test_the_posterior_starts_there_too(law, tau):
    scorer, step = start_of(law, "margin", tau), step_of()
    posterior, values = CleanPosterior(scorer.config), scorer(step)
    prior, q = scorer.law(step, values), posterior.law(step, torch.zeros(6, CANVAS, dtype=torch.long), values)
    sample = prior.sample((20,))
    torch.testing.assert_close(q.log_prob(sample), prior.log_prob(sample))
    other = CleanPosterior(scorer.config, law="max_normalized", temperature=1e-3)
    drawn = other.law(step, torch.zeros(6, CANVAS, dtype=torch.long), values).sample()
    assert torch.equal(drawn, chosen_by("margin", step))


def test_what_a_rule_says():
    """By hand: c of .9 .5 .8 and a position that is not masked."""
    logits = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.8, 0.2], [1.0, 0.0]]]).log()
    step = dataclasses.replace(
        step_of(1, steps_left=2),
        predictions=Predictions.from_logits(logits),
        masked=torch.tensor([[True, True, True, False]]),
    )
    for rule, bound, count in (
        *(("top_prob", 0.3, 2), ("threshold", 0.15, 1), ("threshold", 0.01, 1), ("threshold", 0.3, 2)),
        *(("factor", 0.3, 1), ("factor", 0.7, 2), ("factor", 0.1, 1)),
    ):
        start = warm_start(rule, step, bound=bound)
        rank = torch.tensor([1.0, 3.0, 2.0, 4.0])
        torch.testing.assert_close(start.offset[0], (count + 0.5 - rank).asinh())
        assert start.of_count(torch.arange(1.0, 5.0)).argmax().item() + 1 == start.count.item() == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warm_start": "confidence"},
            "warm_start must be one of entropy, margin, top_prob, threshold, factor, or None",
        ),
        ({"warm_start": "factor", "law": "factor"}, "warm_start must be None with law 'factor', .* got 'factor'"),
        ({"features": ["entropy", "hidden"]}, "features must be among confidence, .*, position, got 'hidden'"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrderScorerConfig(**options)


def test_types_are_checked():
    with pytest.raises(TypeError, match="features must be of type"):
        OrderScorerConfig(features="entropy")
    with pytest.raises(TypeError, match="warm_start must be of type"):
        OrderScorerConfig(warm_start=3)


# ---- what a scorer sees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("features", [[], ["entropy"], ["position", "confidence"], list(FEATURES)], ids=str)
def test_features_are_selected(law, features, tmp_path):
    scorer, step = scorer_of(law, features=features, warm_start=None), step_of()
    assert scorer.network.features.in_features == width_of(features)
    scorer.save_pretrained(tmp_path)
    loaded = OrderScorer.from_pretrained(tmp_path).eval()
    assert loaded.config.features == features
    assert torch.equal(loaded(step), scorer(step))
    other = dataclasses.replace(step, steps_left=9)
    if law != "dependent":
        assert torch.equal(scorer(step), scorer(other)) == ("budget" not in features)


def test_each_feature_is_what_it_is_called():
    """A feature changes with what it is about, and with nothing else."""
    step = step_of()
    changes = {
        "confidence": dataclasses.replace(step, predictions=_with(step, "confidence")),
        "margin": dataclasses.replace(step, predictions=_with(step, "margin")),
        "entropy": dataclasses.replace(step, predictions=_with(step, "entropy")),
        "budget": dataclasses.replace(step, steps_left=step.steps_left + 1),
    }
    for changed, after in changes.items():
        for name in FEATURES:
            same = torch.equal(features_of(step, [name]), features_of(after, [name]))
            assert same == (name != changed), (name, changed)
    assert features_of(step, ["position"])[0, :, 1].tolist() == pytest.approx([i / CANVAS for i in range(CANVAS)])
    share = step.masked.float().mean(-1, keepdim=True).expand(6, CANVAS)
    torch.testing.assert_close(features_of(step, ["mask_fraction"])[..., 1], share)
    assert torch.equal(features_of(step, [])[..., 0], step.masked.float())


def _with(step, name: str) -> Predictions:
    return dataclasses.replace(step.predictions, **{name: getattr(step.predictions, name) / 2})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_shipped_scorers_say_what_they_said(number):
    """Their files know neither features nor warm starts; the numbers are those of code that had none."""
    scorer = OrderScorer.from_pretrained(EXAMPLES / f"scorer-{number}").eval()
    assert scorer.config.features is scorer.config.warm_start is None
    generator = torch.Generator().manual_seed(0)
    step = dataclasses.replace(
        step_of(2),
        predictions=Predictions.from_logits(3 * torch.randn(2, 5, 38, generator=generator), 1),
        masked=torch.tensor([[True, True, False, True, True]] * 2),
        hidden_states=torch.randn(2, 5, 128, generator=generator),
    )
    torch.testing.assert_close(scorer(step)[0].detach(), torch.tensor(SAID[number]), rtol=1e-4, atol=1e-4)


SAID = [
    [-0.81843, 3.03599, 4.04915, -0.54891, -1.48367],
    [-1.25859, 2.60123, 3.53269, -0.98064, -1.64989],
    [-2.33159, 3.90867, 4.03623, -0.19866, -2.5342],
]


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ({"hidden_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2}, 1_500, 2_500),
        ({"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}, 4_500_000, 5_500_000),
    ],
)
def test_from_two_thousand_to_five_million_parameters(shape, low, high, tmp_path):
    denoiser = ExactPairs(2)
    scorer = OrderScorer.for_denoiser(denoiser, law="non_empty", warm_start="entropy", **shape)
    assert low < sum(p.numel() for p in scorer.parameters()) < high
    before = scorer.network.head.weight.clone()
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-3)
    objective = OrderELBO(denoiser, scorer, max_denoising_steps=2, num_chains=2)
    objective.surrogate(chains_of(objective, [0, 1, 0, 1], 2)).neg().backward()
    optimizer.step()
    scorer.save_pretrained(tmp_path)
    loaded = OrderScorer.from_pretrained(tmp_path)
    assert not torch.equal(loaded.network.head.weight, before)
    assert torch.equal(loaded.network.head.weight, scorer.network.head.weight)
