"""`target_nfe`: generation without a knob lands on it, and a larger bias never makes generation slower."""

import math

import pytest
import torch
from datasets import concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MASK, WORDS, tiny_model
from problems import ExactShuffle
from test_trainer import PROBLEMS, trainer_of

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.configuration import LAWS, OrderScorerConfig
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.elbo import OrderELBO
from hf_learned_order.training.pace import EVERY, Pace

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
UPDATES = 24


def mean_nfe(denoiser, scorer, prompt, *, steps: int | None, length: int, seed: int = 0) -> float:
    sampler = LearnedOrderSampler(scorer=scorer)
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": length, "max_denoising_steps": steps, "generator": generator}
    return decode(denoiser, prompt, sampler=sampler, **options).nfe.float().mean().item()


@pytest.mark.parametrize(("law", "posterior"), [("non_empty", False), ("count", True)])
def test_shuffle_is_decoded_in_as_many_calls_as_asked(law, posterior):
    """Eight words, eight steps: a variational scorer takes more of them, because each one is worth its call."""
    steps, target = 8, 4.0
    nfe, scorer = nfe_of_shuffle(law, posterior=posterior, steps=steps, target=target)
    assert nfe == pytest.approx(target, rel=0.05)
    if law == "non_empty":
        assert scorer.config.law_bias != 0
        nfe, scorer = nfe_of_shuffle(law, posterior=posterior, steps=steps, target=None)
        assert scorer.config.law_bias == 0
        assert nfe > 1.3 * target


def nfe_of_shuffle(law, *, posterior: bool, steps: int, target: float | None) -> tuple[float, OrderScorer]:
    """Of a scorer that was trained with or without a target."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    problem = ExactShuffle(8)
    scorer = OrderScorer.for_denoiser(problem, law=law, max_denoising_steps=steps, **SMALL)
    q = CleanPosterior(scorer.config) if posterior else None
    objective = OrderELBO(problem, scorer, q, max_denoising_steps=steps, num_chains=4)
    pace = None if target is None else Pace(scorer, target=target, longest=steps)
    objective.holds_speed = target is not None
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for update in range(UPDATES):
        prompt, clean = problem.examples(32, generator)
        if pace is not None and update % EVERY == 0:
            pace.update(mean_nfe(problem, scorer, prompt, steps=steps, length=8, seed=update), number=update // EVERY)
        optimizer.zero_grad()
        outputs = objective(prompt, torch.ones_like(prompt), clean)
        outputs["loss"].backward()
        optimizer.step()
    if pace is not None:
        prompt, _ = problem.examples(256, generator)
        pace.solve(lambda: mean_nfe(problem, scorer, prompt, steps=steps, length=8, seed=1))
    prompt, _ = problem.examples(1000, generator)
    return mean_nfe(problem, scorer, prompt, steps=steps, length=8), scorer


def test_the_price_is_the_multiplier():
    """With it the bias has nothing to gain: the derivative of what an update maximises, by the bias, is 0."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    problem = ExactShuffle(6)
    scorer = OrderScorer.for_denoiser(problem, law="non_empty", max_denoising_steps=6, **SMALL)
    objective = OrderELBO(problem, scorer, max_denoising_steps=6, num_chains=4)
    prompt, clean = problem.examples(64, generator)
    scorer.tilt = torch.zeros((), requires_grad=True)
    chains = objective.chains(Batch(prompt, torch.ones_like(prompt), clean))
    price = objective._price(chains, scorer.tilt)
    total = objective.surrogate(chains) - price * chains.calls_surrogate()
    (slope,) = torch.autograd.grad(total, scorer.tilt)
    assert price > 0  # a call is worth something: 6 log 6 - log 6! are to be gained
    assert abs(slope.item()) < 1e-4


def test_calls_of_a_faster_law():
    """`calls_surrogate` follows the mean NFE: its derivative by the bias is that of a finite difference."""
    torch.manual_seed(0)
    problem = ExactShuffle(4)
    scorer = OrderScorer.for_denoiser(problem, law="non_empty", max_denoising_steps=4, **SMALL)
    objective = OrderELBO(problem, scorer, max_denoising_steps=4, num_chains=8)
    prompt, clean = problem.examples(2000, torch.Generator().manual_seed(0))
    mask, nfe = torch.ones_like(prompt), []
    for bias in (-0.2, 0.2):
        scorer.config.law_bias = bias
        nfe.append(objective.chains(Batch(prompt, mask, clean)).nfe.float().mean().item())
    scorer.config.law_bias, scorer.tilt = 0.0, torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(objective.chains(Batch(prompt, mask, clean)).calls_surrogate(), scorer.tilt)
    assert slope.item() == pytest.approx((nfe[1] - nfe[0]) / 0.4, rel=0.1)


@pytest.mark.parametrize(("law", "start"), [("regret", 0.001), ("regret", 300.0), ("non_empty", 9.0)])
def test_solving(law, start):
    """NFE that fall with the bias as 64 / (1 + e^b), from far off on either side."""
    scorer = OrderScorer(OrderScorerConfig(law=law, **SMALL))
    pace = Pace(scorer, target=4.0, longest=64)
    setattr(scorer.config, pace.setting, start)

    def measure():
        return 64 / (1 + (pace.value if law == "regret" else math.exp(pace.value)))

    assert pace.solve(measure) == measure() == pytest.approx(4.0, rel=0.01)


def test_what_cannot_be_met_is_approached():
    scorer = OrderScorer(OrderScorerConfig(law="regret", **SMALL))
    pace = Pace(scorer, target=4.0, longest=64)
    assert pace.solve(lambda: 3.5 if pace.value > 1 else 9.0) == 3.5
    assert pace.value > 1


@pytest.mark.parametrize(
    ("law", "target", "options"),
    [
        ("regret", 6.0, {"max_denoising_steps": 12}),
        ("regret", 6.0, {"max_denoising_steps": 12, "objective": "elbo", "posterior": "prior", "num_chains": 2}),
        ("non_empty", 3.0, {"posterior": "clean"}),
    ],
)
def test_trainer_lands_on_the_target(law, target, options, tmp_path):
    tokenizer = equation_tokenizer()
    rows = equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=32)
    defaults = {"max_denoising_steps": 5, "per_device_train_batch_size": len(rows), "max_steps": 24}
    # small steps of plain gradient descent: Adam makes large ones of what is rounding, and the speed would follow it
    defaults |= {"optim": "sgd", "learning_rate": 0.01}
    if law == "non_empty":  # an evaluation draws anew: so many rows that the mean can be told
        rows = concatenate_datasets([rows] * 16)
    options = {**defaults, **options, "target_nfe": target, "logging_steps": 24, "per_device_eval_batch_size": 64}
    trainer = trainer_of(tmp_path, tokenizer, rows, law=law, **options)
    trainer.compute_metrics = lambda prediction: {}
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_generated_nfe"] == pytest.approx(target, rel=0.05)
    name = "law_bias" if law == "non_empty" else "law_bound"
    last = next(log for log in reversed(trainer.state.log_history) if "loss" in log)
    # on the way: what was solved for at the end is not far from what the updates came to
    assert name in last
    assert getattr(trainer.scorer.config, name.replace("law_bound", "bound")) == pytest.approx(
        last[name], rel=0.5, abs=1
    )
    trainer.save_model()
    assert getattr(OrderScorerConfig.from_pretrained(tmp_path), trainer.pace.setting) == trainer.pace.value


@pytest.mark.parametrize("law", [law for law in LAWS if law != "max_normalized"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), low=st.floats(-3, 3), more=st.floats(0, 4))
def test_a_larger_bias_is_never_slower(law, seed, low, more):
    """Of a whole decoding in the mean, up to the noise of random laws: a deterministic law has none."""
    torch.manual_seed(seed)
    denoiser = Denoiser(tiny_model("bert", seed=seed % 3), mask_token_id=MASK)
    scorer = OrderScorer.for_denoiser(denoiser, law=law, pair_weight=1.0, **SMALL).eval()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    rows = 64
    prompt = torch.randint(WORDS.start, WORDS.stop, (rows, 4))
    options = {"max_new_tokens": 8, "max_denoising_steps": 8}
    nfe = []
    for bias in (low, low + more):
        sampler = LearnedOrderSampler(scorer=scorer, bias=bias)
        output = decode(denoiser, prompt, sampler=sampler, generator=torch.Generator().manual_seed(seed), **options)
        nfe.append(output.nfe.float())
    slow, fast = nfe
    noise = 0.0 if not scorer.is_random else 4 * ((slow.var() + fast.var()) / rows).sqrt().item()
    assert fast.mean() <= slow.mean() + noise + 0.05


def test_steps_shrink_and_keep_a_sense():
    scorer = OrderScorer(OrderScorerConfig(law="regret", bound=0.5, **SMALL))
    pace = Pace(scorer, target=4.0, longest=64)
    pace.update(8.0, number=0)
    assert scorer.config.bound == pytest.approx(1.0)  # twice the calls: twice the bound
    pace.update(2.0, number=5)
    assert scorer.config.bound == pytest.approx(0.5**0.5)
    pace.update(8.0, number=10_000)
    assert scorer.config.bound == pytest.approx(math.exp(0.1 * math.log(2)) * 0.5**0.5)
    assert pace.value == scorer.config.bound


@pytest.mark.parametrize("target", [1.0, 8.0, 9.5])
def test_targets_out_of_reach_are_refused(target):
    scorer = OrderScorer(OrderScorerConfig(**SMALL))
    with pytest.raises(ValueError, match=f"target_nfe must be more than 1 and less than the budget, 8, got {target}"):
        Pace(scorer, target=target, longest=8)


def test_a_law_without_bias_is_refused():
    scorer = OrderScorer(OrderScorerConfig(law="max_normalized", **SMALL))
    with pytest.raises(ValueError, match='target_nfe must be None with the law "max_normalized"'):
        Pace(scorer, target=4.0, longest=8)


def test_a_posterior_of_another_law_is_refused(tmp_path):
    tokenizer = equation_tokenizer()
    rows = equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=32)
    with pytest.raises(ValueError, match="posterior_law must be None with target_nfe, got 'max_normalized'"):
        trainer_of(tmp_path, tokenizer, rows, target_nfe=2.5, posterior_law="max_normalized")
