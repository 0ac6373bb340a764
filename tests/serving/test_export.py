"""The exported scorer is the eager one, for every law and any batch and canvas."""

import functools
from dataclasses import replace

import pytest
import torch
from models import MASK, VOCAB

from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.configuration import LAWS, OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.serving.export import ExportedScorer, export_scorer

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def scorer_of(law: str, *, denoiser_hidden_size: int = 0) -> OrderScorer:
    """With random weights: heads that start at zero would agree whatever they are given."""
    shape = {"denoiser_hidden_size": denoiser_hidden_size, "vocab_size": VOCAB, "mask_token_id": MASK}
    torch.manual_seed(0)
    scorer = OrderScorer(OrderScorerConfig(law=law, pair_weight=1.0, token_pairs=law == "regret", **shape, **SMALL))
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return scorer


def step_of(batch: int, canvas: int, *, steps_left: int = 3, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(seed)
    predictions = Predictions.from_logits(2 * torch.randn(batch, canvas, VOCAB, generator=generator), MASK)
    masked = torch.rand(batch, canvas, generator=generator) < 0.7
    masked[:, 0] = True
    return Step(predictions=predictions, masked=masked, steps_left=steps_left)


@functools.cache
def exported(law: str = LAWS[0]) -> ExportedScorer:
    return export_scorer(scorer_of(law))


@pytest.mark.parametrize("law", LAWS)
def test_the_eager_scorer(law):
    scorer = scorer_of(law).eval()
    for batch, canvas, steps_left in ((1, 1, 1), (3, 2, 4), (2, 33, 30)):
        step = step_of(batch, canvas, steps_left=steps_left)
        with torch.no_grad():
            torch.testing.assert_close(exported(law)(step), scorer(step))


def test_saved_and_loaded(tmp_path):
    """The file alone decides as the scorer does: same values, same law, same rule."""
    path, step = tmp_path / "scorer.pt2", step_of(3, 6)
    exported().save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["scorer.pt2"]
    loaded = ExportedScorer.load(path)
    assert loaded.config.to_dict() == exported().config.to_dict()
    torch.testing.assert_close(loaded(step), exported()(step), rtol=0, atol=0)
    rule = LearnedOrderSampler(scorer=loaded, greedy=True)
    assert rule.needs_hidden_states == ()
    assert rule.is_random == LearnedOrderSampler(scorer=scorer_of(LAWS[0]), greedy=True).is_random
    with torch.no_grad():
        values = exported()(step)
    expected = scorer_of(LAWS[0]).law(step, values).greedy()
    assert torch.equal(rule.propose(step, ()).unmask, expected)


def test_it_runs_where_its_input_is():
    """An engine's logits are on its device; nobody tells the scorer, whose file is read onto the CPU."""
    step, scorer = step_of(2, 5), export_scorer(scorer_of(LAWS[0]))
    beliefs = step.predictions
    there = {name: getattr(beliefs, name).to("meta") for name in ("confidence", "margin", "entropy", "tokens")}
    elsewhere = replace(step, predictions=replace(beliefs, **there), masked=step.masked.to("meta"))
    values = scorer.to("cpu")(step)
    assert torch.equal(values, exported()(step))
    assert scorer(elsewhere).device.type == "meta"
    assert scorer(elsewhere).shape == values.shape


def test_training_goes_on():
    scorer = scorer_of(LAWS[0]).train()
    export_scorer(scorer)
    assert scorer.training


def test_hidden_states():
    scorer = scorer_of(LAWS[0], denoiser_hidden_size=8)
    with pytest.raises(ValueError, match=r"scorer must see predictions only \(denoiser_hidden_size=0\), but it sees"):
        export_scorer(scorer)


def test_padding():
    step = step_of(2, 5)
    padded = Step(predictions=step.predictions, masked=step.masked, steps_left=2, padding=~step.masked)
    with pytest.raises(ValueError, match="padding must be None with an exported scorer"):
        exported()(padded)


def test_another_file(tmp_path):
    torch.export.save(exported().program, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"path must be a file that ExportedScorer.save wrote, got .*other.pt2"):
        ExportedScorer.load(tmp_path / "other.pt2")
