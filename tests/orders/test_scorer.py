"""The scorer: its configuration and its laws."""

import dataclasses
import json
import math

import pytest
import torch
from models import ENCODERS, EOS, MASK, VOCAB, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from hf_learned_order.decoding.samplers.adaptive import FactorSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.configuration import LAWS, RANDOM_LAWS, OrderScorerConfig
from hf_learned_order.orders.laws.base import at_least_one
from hf_learned_order.orders.laws.regret import RandomRegret
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = 12  # width of a made-up denoiser
CANVAS = 10


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars of saving and loading."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def scorer_of(law: str, *, trained: bool = True, **config) -> OrderScorer:
    torch.manual_seed(0)
    shape = {"denoiser_hidden_size": SIZE, "vocab_size": VOCAB, "mask_token_id": MASK}
    scorer = OrderScorer(OrderScorerConfig(law=law, **{**SMALL, **shape, **config})).eval()
    if trained:  # a head that has left its start, where every score is 0
        torch.nn.init.normal_(scorer.network.head.weight)
    return scorer


def step_of(rows: int = 6, *, steps_left: int = 4, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, CANVAS, VOCAB, generator=generator)
    return Step(
        predictions=Predictions.from_logits(logits, MASK),
        masked=torch.rand(rows, CANVAS, generator=generator) < 0.8,
        steps_left=steps_left,
        hidden_states=torch.randn(rows, CANVAS, SIZE, generator=generator),
    )


# ---- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "fast"}, "law must be one of regret, non_empty, max_normalized, count, got 'fast'"),
        ({"law_temperature": 0.0}, r"law_temperature must be positive, got 0\.0"),
        ({"law_temperature": math.nan}, "law_temperature must be positive, got nan"),
        ({"bound": -0.1}, r"bound must be 0 or more, got -0\.1"),
        ({"pair_weight": -1.0}, r"pair_weight must be 0 or more, got -1\.0"),
        ({"law_bias": math.nan}, "law_bias must be finite, got nan"),
        ({"law_bias": -math.inf}, "law_bias must be finite, got -inf"),
    ],
)
def test_configuration_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        OrderScorerConfig(**options)


def test_configuration_round_trip(tmp_path):
    config = OrderScorerConfig(law="regret", bound=0.7, pair_weight=0.1, max_denoising_steps=5, hidden_size=32)
    config.save_pretrained(tmp_path)
    for loaded in (OrderScorerConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is OrderScorerConfig
        assert (loaded.law, loaded.bound, loaded.pair_weight) == ("regret", 0.7, 0.1)
        assert (loaded.max_denoising_steps, loaded.hidden_size) == (5, 32)


def test_for_denoiser_takes_its_shape():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    config = OrderScorer.for_denoiser(denoiser, law="max_normalized", **SMALL).config
    assert (config.denoiser_hidden_size, config.vocab_size, config.mask_token_id) == (denoiser.hidden_size, VOCAB, MASK)
    assert config.law == "max_normalized"


def test_for_denoiser_knows_its_fields():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    with pytest.raises(TypeError, match="hiden_size, laws must be fields of OrderScorerConfig, but it has none"):
        OrderScorer.for_denoiser(denoiser, hiden_size=16, laws="count", hidden_size=16)
    assert OrderScorer.for_denoiser(denoiser, architectures=["Mine"], **SMALL).config.architectures == ["Mine"]


@pytest.mark.parametrize("law", LAWS)
def test_a_scorer_of_predictions_only(law):
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    scorer = OrderScorer.for_denoiser(denoiser, law=law, denoiser_hidden_size=0, **SMALL)
    scorer.check_fits(denoiser)
    step = step_of()
    blind = dataclasses.replace(step, hidden_states=None)
    assert torch.equal(scorer(step), scorer(blind))
    assert not [name for name, _ in scorer.named_parameters() if "hidden_states" in name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("denoiser_hidden_size", "another denoiser .*: its hidden size must be 33, but this model's is 32"),
        ("vocab_size", "another denoiser .*: its vocabulary size must be 41, but this model's is 40"),
        ("mask_token_id", r"another denoiser \(user/base\): its mask token id must be 4, but this model's is 3"),
    ],
)
def test_another_denoiser_is_refused(name, message):
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    scorer = OrderScorer.for_denoiser(denoiser, **SMALL)
    scorer.check_fits(denoiser)
    scorer.config.base_model_name_or_path = "user/base"
    setattr(scorer.config, name, getattr(scorer.config, name) + 1)
    with pytest.raises(ValueError, match=message):
        scorer.check_fits(denoiser)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (3, TypeError, r"hidden_layers must be of type .*, got 3"),
        (["last"], TypeError, r"hidden_layers must hold integers, got \['last'\]"),
        ([True], TypeError, r"hidden_layers must hold integers, got \[True\]"),
        ([], ValueError, "hidden_layers must not be empty: a scorer with denoiser_hidden_size 0 sees no hidden states"),
        ([1, -1, 1], ValueError, r"hidden_layers must be different ones, got \[1, -1, 1\]"),
    ],
)
def test_hidden_layers_are_checked(layers, error, message):
    with pytest.raises(error, match=message):
        OrderScorerConfig(hidden_layers=layers)


def test_hidden_layers_of_a_scorer_of_predictions_only():
    with pytest.raises(ValueError, match=r"hidden_layers must be None with denoiser_hidden_size 0, got \[1\]"):
        OrderScorerConfig(hidden_layers=[1], denoiser_hidden_size=0)


def test_hidden_layers_of_another_denoiser_are_refused():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    message = r"hidden_layers must be in \[-3, 2\] with BertForMaskedLM of 2 layers, got \[3, -1\]"
    with pytest.raises(ValueError, match=message):
        OrderScorer.for_denoiser(denoiser, hidden_layers=[3, -1], **SMALL)
    with pytest.raises(ValueError, match=r"hidden_layers must be different ones, got \[2, -1\]"):
        OrderScorer.for_denoiser(denoiser, hidden_layers=[2, -1], **SMALL)
    deep = Denoiser(tiny_model("bert", num_hidden_layers=3), mask_token_id=MASK)
    scorer = OrderScorer.for_denoiser(deep, hidden_layers=[3, 0], **SMALL)
    scorer.check_fits(deep)
    with pytest.raises(ValueError, match=message.replace("-1", "0")):
        scorer.check_fits(denoiser)


def test_a_configuration_from_before_hidden_layers(tmp_path):
    scorer_of("regret").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert fields.pop("hidden_layers") is None
    path.write_text(json.dumps(fields))
    loaded, step = OrderScorer.from_pretrained(tmp_path).eval(), step_of()
    assert loaded.config.layers_seen == (-1,)
    assert torch.equal(loaded(step), scorer_of("regret")(step))


@pytest.mark.parametrize("law", LAWS)
def test_several_hidden_states(law, tmp_path):
    """Each matters, whatever its scale; the last one alone is the default, to the bit."""
    scorer, step = scorer_of(law, hidden_layers=[0, -1]), step_of()
    more = torch.randn(step.hidden_states.shape, generator=torch.Generator().manual_seed(1))
    both = dataclasses.replace(step, hidden_states=torch.cat([more, 100 * step.hidden_states], -1))
    values = scorer(both)
    same = dataclasses.replace(step, hidden_states=torch.cat([more, 200 * step.hidden_states], -1))
    torch.testing.assert_close(scorer(same), values, rtol=1e-3, atol=1e-3)
    for other in ((more.flip(0), step.hidden_states), (more, step.hidden_states.flip(0)), (step.hidden_states, more)):
        assert not torch.allclose(scorer(dataclasses.replace(step, hidden_states=torch.cat(other, -1))), values)
    scorer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.layers_seen == (0, -1)
    assert torch.equal(loaded(both), values)
    assert torch.equal(scorer_of(law, hidden_layers=[-1])(step), scorer_of(law)(step))


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen2"])
def test_what_a_scorer_is_shown_in_generate(family, monkeypatch):
    """Hidden states of the chosen layers at the canvas, with and without a cache of the prompt."""
    model, tokenizer, seen = tiny_model(family), tiny_tokenizer(), []
    denoiser = Denoiser(model, mask_token_id=MASK)
    scorer = OrderScorer.for_denoiser(denoiser, law="regret", hidden_layers=[1, -1], **SMALL)
    attach(model, scorer, tokenizer=tokenizer)
    law_of = OrderScorer.law_of
    monkeypatch.setattr(
        OrderScorer, "law_of", lambda self, step, bias: seen.append(step) or law_of(self, step, bias=bias)
    )
    inputs = tokenizer("w5 w6 w7", return_tensors="pt")
    caches = (None,) if family in ENCODERS else (None, "prefix")
    for cache in caches:
        seen.clear()
        options = {"block_length": 3, "kv_cache": cache, "max_new_tokens": 6}
        model.generate(**inputs, sampler="learned_order", sampler_config={"bias": -8.0}, **options)
        ids = torch.cat([inputs["input_ids"], seen[0].canvas, torch.full((1, 3), MASK)], 1)
        expected = denoiser(ids, torch.ones_like(ids), 3, hidden_states=(1, -1))[1][:, :3]
        torch.testing.assert_close(seen[0].hidden_states, expected)
        assert all(step.hidden_states.shape == (1, 3, 64) for step in seen)


# ---- the network and its laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_save_and_load(law, tmp_path):
    scorer, step = scorer_of(law), step_of()
    scorer.save_pretrained(tmp_path)
    for loaded in (OrderScorer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is OrderScorer
        torch.testing.assert_close(loaded.eval()(step), scorer(step), rtol=0, atol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bias", [-2.0, 0.0, 2.0])
def test_law_is_over_the_masked_positions(law, bias):
    scorer, step = scorer_of(law), step_of()
    unmask = scorer.law(step, scorer(step), bias=bias).sample()
    assert unmask.any(-1).all()
    assert not (unmask & ~step.masked).any()


def test_untrained_scores_are_zero():
    for law in RANDOM_LAWS:
        assert (scorer_of(law, trained=False)(step_of()) == 0).all()


@pytest.mark.parametrize("steps_left", [1, 4])
@pytest.mark.parametrize("bias", [-1.5, 0.0, 2.0])
def test_an_untrained_counted_law_is_ancestral_sampling(steps_left, bias):
    step = step_of(steps_left=steps_left)
    scorer, free = scorer_of("count", trained=False), scorer_of("non_empty", trained=False)
    got, expected = (s.law(step, s(step), bias=bias) for s in (scorer, free))
    value = expected.sample((50,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got.log_prob(value), expected.log_prob(value), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("law", ["non_empty", "count"])
def test_bias_unmasks_more(law):
    scorer, step = scorer_of(law), step_of(rows=64)
    if scorer.network.counts:
        torch.nn.init.normal_(scorer.network.counts.head.weight, std=0.1)
    with torch.no_grad():
        values = scorer(step)
        counts = [scorer.law(step, values, bias=b).sample().sum(-1).float() for b in (-200.0, -2.0, 0.0, 2.0, 300.0)]
    means = [count.mean().item() for count in counts]
    assert means == sorted(set(means))
    assert (counts[0] == 1).all()
    assert counts[-1].equal(step.masked.sum(-1).float())


def test_counts_of_a_scorer():
    """Log-weights are of the canvas as a whole and of the count, up to counts that share a place of the table."""
    scorer, step = scorer_of("count"), step_of()
    torch.nn.init.normal_(scorer.network.counts.head.weight)
    values = scorer(step)
    assert values.shape == (6, CANVAS, 2)
    assert len(values[0, :, 1].unique()) == CANVAS
    assert not torch.allclose(values[0, :, 1], values[1, :, 1])
    free = scorer_of("count", trained=False).law(step, torch.zeros_like(values)).log_count_probs[:, 1:]
    learned = scorer.law(step, values).log_count_probs[:, 1:]
    ratio = (learned - free - values[..., 1] / scorer.config.law_temperature)[step.masked.sum(-1) == CANVAS]
    assert len(ratio)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    long = scorer.network.counts(torch.randn(1, 70_000, SMALL["hidden_size"]))
    assert long.shape == (1, 70_000, 1)
    assert long[0, 2**16 - 1] == long[0, -1]


def test_close_counts_start_alike():
    """So that what is learned of one holds for its neighbours; all places of the table can be learned."""
    table = scorer_of("count", hidden_size=256, num_attention_heads=2).network.counts.sizes.weight
    apart = lambda octaves: torch.cosine_similarity(table[: -8 * octaves], table[8 * octaves :]).abs().mean()  # noqa: E731
    assert torch.cosine_similarity(table[:-1], table[1:]).min() > 0.95
    assert apart(1) < 0.8
    assert apart(4) < 0.3
    assert table.square().mean().item() == pytest.approx(1.0, abs=0.1)
    assert table.requires_grad


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("law", ["non_empty", "count"])
def test_an_untrained_posterior_of_the_same_law_is_the_prior(law, tau):
    scorer, step = scorer_of(law, law_temperature=tau), step_of()
    posterior, values = CleanPosterior(scorer.config), scorer(step)
    clean = torch.zeros(6, CANVAS, dtype=torch.long)
    prior, q = scorer.law(step, values), posterior.law(step, clean, values)
    sample = prior.sample((20,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(q.log_prob(sample), prior.log_prob(sample))


def test_pairs_of_a_scorer():
    """They start small, count as much as their weight says, and are nothing where a position is certain."""
    scorer, step = scorer_of("regret", pair_weight=0.7), step_of()
    _, _, start = scorer.costs(step)
    with torch.no_grad():
        for module in (scorer.network.receives, scorer.network.gives):
            module.weight.mul_(20)
        sure = torch.full((6, CANVAS, VOCAB), -50.0).index_fill(-1, torch.tensor([5]), 50.0)
        logits, certain = 3 * torch.randn(6, CANVAS, VOCAB), torch.rand(6, CANVAS) < 0.3
        predictions = Predictions.from_logits(torch.where(certain[..., None], sure, logits), MASK)
        values, (_, _, pairs) = (
            get(dataclasses.replace(step, predictions=predictions)) for get in (scorer, scorer.costs)
        )
    share = start / torch.minimum(step.predictions.entropy[:, :, None], step.predictions.entropy[:, None, :])
    assert share.max() < 1
    assert pairs.shape == (6, CANVAS, CANVAS)
    assert (pairs >= 0).all()
    either = certain[:, :, None] | certain[:, None, :]
    torch.testing.assert_close(pairs[either], torch.zeros_like(pairs[either]))
    assert pairs[~either].max() > 1
    assert not torch.allclose(pairs, pairs.mT)  # what one position costs another need not be mutual
    torch.testing.assert_close(values[..., 2:], 0.7 * pairs)


def test_the_regret_law_does_not_see_the_budget():
    scorer = scorer_of("regret", pair_weight=1.0)
    torch.testing.assert_close(scorer(step_of(steps_left=1)), scorer(step_of(steps_left=9)), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [-1.0, 0.5])
def test_the_regret_law_explores_around_its_set(bias):
    """By its random form, with the bound that the bias gives; elsewhere it is the set itself."""
    scorer, step = scorer_of("regret", pair_weight=1.0, law_temperature=0.3), step_of()
    values, everywhere = scorer(step), torch.ones_like(step.masked)
    own = scorer.law(step, values, bias=bias).sample()
    fixed = scorer.exploring_law(step, values, bias=bias, where=~everywhere)
    assert torch.equal(fixed.sample(), own)
    law = scorer.exploring_law(step, values, bias=bias, where=everywhere)
    expected = RandomRegret(values, step.masked, bound=0.5 * math.exp(bias), temperature=0.3)
    sample = expected.sample((20,))
    torch.testing.assert_close(law.log_prob(sample), expected.log_prob(sample))


@pytest.mark.parametrize("bias", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_an_untrained_scorer_is_the_factor_rule(bias):
    scorer, step = scorer_of("regret", trained=False), step_of(rows=64)
    unmask = scorer.law(step, scorer(step), bias=bias).sample()
    rule = FactorSampler(factor=scorer.config.bound * math.exp(bias)).propose(step, ()).unmask
    torch.testing.assert_close(unmask, at_least_one(rule, step.masked, step.predictions.confidence))


@pytest.mark.parametrize("law", RANDOM_LAWS)
def test_a_bias_of_scores_may_be_larger_than_exp_takes(law):
    scorer, step = scorer_of(law), step_of()
    unmask = scorer.law(step, scorer(step), bias=1000.0).sample()
    if law == "non_empty":
        assert torch.equal(unmask, step.masked)
    assert unmask.any(-1).all()


@pytest.mark.parametrize("pair_weight", [0.0, 1.0])
def test_bias_of_the_regret_law(pair_weight):
    scorer, step = scorer_of("regret", pair_weight=pair_weight), step_of(rows=64)
    counts = [scorer.law(step, scorer(step), bias=b).mean.sum(-1) for b in (-60.0, -1.0, 0.0, 1.0, 60.0)]
    means = [count.mean().item() for count in counts]
    assert means == sorted(set(means))
    torch.testing.assert_close(counts[-1], step.masked.sum(-1).float())


@pytest.mark.parametrize("law", LAWS)
def test_generate(law):
    model = tiny_model("modernbert")
    torch.manual_seed(0)
    scorer = OrderScorer.for_denoiser(Denoiser(model, mask_token_id=MASK), law=law, **SMALL)
    tokenizer = tiny_tokenizer()
    attach(model, scorer, tokenizer=tokenizer)
    inputs = tokenizer(["w5 w6 w7", "w8"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 12, "seed": 3, "return_dict_in_generate": True, "eos_token_id": EOS}
    by_name, again = (model.generate(**inputs, sampler="learned_order", **options) for _ in range(2))
    by_instance = model.generate(**inputs, sampler=LearnedOrderSampler(scorer=scorer), **options)
    assert MASK not in by_name.sequences
    assert (by_name.nfe == by_name.order.max(-1).values).all()
    for other in (again, by_instance):
        assert torch.equal(by_name.sequences, other.sequences)
        assert torch.equal(by_name.order, other.order)
    if law != "max_normalized":  # which does not feel it
        slow, fast = (
            model.generate(**inputs, sampler="learned_order", sampler_config={"bias": bias}, **options).nfe.sum()
            for bias in (-8.0, 20.0)
        )
        assert slow > fast == 2


def test_a_pair_sees_whether_both_would_take_the_same_token():
    """And no more of the tokens: which one it is, and what the others would take, is left to the hidden states."""
    scorer, step = scorer_of("regret", token_pairs=True), step_of()
    torch.nn.init.normal_(scorer.network.tokens.gives.weight)
    twins = step.predictions.tokens.clone()
    twins[:, 3] = twins[:, 7]
    for tokens in (twins, (twins + 1) % VOCAB):
        other = dataclasses.replace(step, predictions=dataclasses.replace(step.predictions, tokens=tokens))
        changed = (scorer.costs(other)[2] - scorer.costs(step)[2]).abs() > 0
        same = [of.predictions.tokens[:, :, None] == of.predictions.tokens[:, None] for of in (step, other)]
        assert changed.any()
        assert not changed[same[0] == same[1]].any()
        scorer.config.sees_tokens = False
        assert torch.equal(scorer.costs(other)[2], scorer.costs(step)[2])
        scorer.config.sees_tokens = True


def test_what_is_blind_to_tokens_is_fitted_as_if_nothing_saw_them():
    scorer, step = scorer_of("regret", token_pairs=True), step_of()
    blind, seeing = scorer.pairs_by_tokens(step)
    assert torch.equal(blind, scorer.costs(step)[2])  # they start as equals
    network = scorer.network
    parts = [network.receives.weight, network.gives.weight, network.distance.weight, network.tokens.gives.weight]
    gradients = torch.autograd.grad(seeing.sum(), parts, allow_unused=True, retain_graph=True)
    assert [gradient is None for gradient in gradients] == [True, True, True, False]
    gradients = torch.autograd.grad(blind.sum(), parts, allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False, False, False, True]
    (only,) = scorer_of("regret").pairs_by_tokens(step)
    assert only.shape == blind.shape


def test_a_scorer_that_is_made_for_a_denoiser_sees_tokens_of_pairs():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    assert OrderScorerConfig.for_denoiser(denoiser, law="regret").token_pairs
    assert not OrderScorerConfig.for_denoiser(denoiser, law="count").token_pairs
    for name in ("token_pairs", "sees_tokens"):
        with pytest.raises(TypeError, match=f"{name} must be of type bool, got 1"):
            OrderScorerConfig(**{name: 1})


@pytest.mark.parametrize("bias", [-60.0, -1.0, 0.0, 2.0, 60.0])
@pytest.mark.parametrize("pair_weight", [0.0, 0.7])
def test_pairs_of_what_can_be_accepted_are_enough(bias, pair_weight):
    """Also where a row has nothing masked, where positions are equal, and at padding."""
    scorer, step = scorer_of("regret", pair_weight=pair_weight, token_pairs=True).eval(), step_of(rows=64)
    torch.nn.init.normal_(scorer.network.tokens.gives.weight)
    masked, padding = step.masked.clone(), torch.zeros_like(step.masked)
    masked[0], padding[1:9, -2:] = False, True
    step = dataclasses.replace(step, masked=masked & ~padding, padding=padding)
    with torch.no_grad():
        some = scorer.law_of(step, bias=bias)
        every = scorer.law(step, scorer(step), bias=bias)
    assert torch.equal(some.sample(), every.sample())
    assert torch.equal(some.greedy(), every.greedy())


def test_attention_over_a_long_canvas_is_not_kept():
    """PyTorch's layer has the same weights and says the same, in training and in evaluation."""
    scorer, inputs = scorer_of("regret"), torch.randn(3, CANVAS, 16, generator=torch.Generator().manual_seed(0))
    layer = scorer.network.encoder.layers[0]
    theirs = torch.nn.TransformerEncoderLayer(
        16, layer.self_attn.num_heads, 64, 0.0, "gelu", batch_first=True, norm_first=True
    )
    theirs.load_state_dict(layer.state_dict())
    padding = torch.zeros(3, CANVAS).index_fill(1, torch.tensor([CANVAS - 1]), -torch.inf)
    for training in (True, False):
        for mask in (None, padding):
            got, expected = (module.train(training)(inputs, src_key_padding_mask=mask) for module in (layer, theirs))
            torch.testing.assert_close(got, expected)
