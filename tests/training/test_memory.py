"""Peak memory is what docs/benchmarks.md says: logits, a few pieces of them, and nothing else as large."""

import pytest
import torch
from bench import TINY, denoiser_of, peak

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers import predictions
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.elbo import OrderELBO
from hf_learned_order.training.objectives.regret import RegretObjective

BATCH, PROMPT, CANVAS, VOCAB, CHAINS = 2, 4, 16, 20_000, 2
ROW = CANVAS * VOCAB * 4  # bytes of the logits of one row
# rows of the calls of an update by the bound: the first step is asked about once, and repeated for each chain
CALLS = [BATCH, BATCH * CHAINS]
EXPECTED = {
    "decode": BATCH * ROW,
    "regret": BATCH * ROW,
    "elbo": sum(CALLS) * ROW,
}


@pytest.mark.slow  # the profiler takes seconds
@pytest.mark.parametrize("case", EXPECTED)
def test_formula(case, monkeypatch):
    monkeypatch.setattr(predictions, "CPU_PIECE", VOCAB)  # one position: pieces are as good as nothing
    denoiser = denoiser_of(TINY, VOCAB).requires_grad_(False)
    prompt, clean = torch.randint(4, 100, (BATCH, PROMPT)), torch.randint(4, VOCAB, (BATCH, CANVAS))
    law = "regret" if case in ("decode", "regret") else "non_empty"
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}  # what it needs is not counted
    scorer = OrderScorer.for_denoiser(denoiser, law=law, **small)
    if case == "decode":
        call = lambda: decode(denoiser, prompt, sampler=LearnedOrderSampler(scorer=scorer), max_new_tokens=CANVAS)  # noqa: E731
    else:
        objective = (
            RegretObjective(denoiser, scorer, max_denoising_steps=3)
            if case == "regret"
            else OrderELBO(denoiser, scorer, max_denoising_steps=2, num_chains=CHAINS)
        ).train()
        call = lambda: objective(prompt, torch.ones_like(prompt), clean)["loss"].backward()  # noqa: E731
    ratio = peak(call) / EXPECTED[case]
    assert 0.99 < ratio < 1.2
