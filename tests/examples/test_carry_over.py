"""A scorer of the factor law, as version 0.1.0 saved it, by the regret law: the same positions at every step."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import carry_over
import oracles
import pytest
import torch
from files import equation_model, scorer_of
from safetensors.torch import save_file
from strategies import as_row, positions
from test_saved_before import SCORES, save, step

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Proposal, Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer


def carried(folder: Path, monkeypatch) -> OrderScorer:
    """By the script, and loaded."""
    monkeypatch.setattr(sys, "argv", ["carry_over.py", str(folder), "--output_dir", str(folder / "carried")])
    carry_over.main()
    return OrderScorer.from_pretrained(folder / "carried").eval()


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.5])
def test_a_factor_scorer_of_902aa70(bound, tmp_path, monkeypatch):
    save(tmp_path, "factor", bound=bound)
    scorer = carried(tmp_path, monkeypatch)
    with torch.no_grad():
        values = scorer(step())
    torch.testing.assert_close(values[..., 0], torch.tensor([SCORES["factor"]]), rtol=1e-4, atol=1e-4)
    (taken,) = scorer.law(step(), values).sample()
    right = torch.tensor(SCORES["factor"]).sigmoid().tolist()
    assert positions(taken) == oracles.factor(right, step().masked[0].tolist(), bound)


@dataclass(frozen=True, kw_only=True)
class FactorOfScorer(Sampler):
    """The factor rule on the probability that a scorer learned."""

    scorer: OrderScorer
    needs_hidden_states = (-1,)
    reads_unmasked = True

    def propose(self, step, state) -> Proposal:
        logits, _, _ = self.scorer.costs(step)
        rows = zip(logits.sigmoid().tolist(), step.masked.tolist(), strict=True)
        return Proposal(
            torch.stack([as_row(oracles.factor(c, m, self.scorer.config.bound), step.masked.shape[1]) for c, m in rows])
        )


def test_decoding_is_the_factor_rules(tmp_path, monkeypatch):
    model = equation_model()
    old = scorer_of(model, law="regret", bound=1.9, pair_weight=1.0).float()
    old.network.head.weight.data.mul_(20)  # far from the denoiser's own confidence
    old.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**fields, "law": "factor", "law_temperature": 0.1, "entropy_weight": 1.5, "pair_weight": 0.0})
    )
    weights = {
        name: value[:1].clone() if ".head." in name else value
        for name, value in old.state_dict().items()
        if not any(part in name for part in (".receives.", ".gives.", ".distance."))
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scorer = carried(tmp_path, monkeypatch)
    assert scorer.config.law_temperature == 0.5
    assert scorer.config.pair_weight == 0
    prompts = torch.randint(4, 30, (4, 6), generator=torch.Generator().manual_seed(0))
    samplers = (LearnedOrderSampler(scorer=scorer), FactorOfScorer(scorer=old))
    got, expected = (decode(Denoiser(model), prompts, sampler=each, max_new_tokens=12) for each in samplers)
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(got.order, expected.order)
    assert 1 < got.nfe.float().mean() < 12


def test_another_law_is_refused(tmp_path):
    save(tmp_path, "non_empty")
    with pytest.raises(ValueError, match=r"law must be \"factor\" in .*, got 'non_empty': train a new scorer"):
        carry_over.carried_over(tmp_path)
