"""A block that an engine's loop fills comes out as our own decoding loop fills it."""

import pytest
import torch
from models import MASK, VOCAB, tiny_model
from test_export import exported, scorer_of
from test_loop import words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.serving.decision import BlockDecision
from hf_learned_order.serving.rollouts import step_maps

LENGTH = 8


def rules() -> list:
    return [TopProbSampler(), ThresholdSampler(threshold=0.4), LearnedOrderSampler(scorer=exported(), greedy=True)]


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("number", range(3))
def test_the_decoding_loop(number, steps):
    rule = rules()[number]
    denoiser, prompt = Denoiser(tiny_model("llama"), mask_token_id=MASK), words(2, 4)
    expected = decode(denoiser, prompt, sampler=rule, max_new_tokens=LENGTH, max_denoising_steps=steps)
    decision, order = BlockDecision(sampler=rule, mask_token_id=MASK, steps=steps), torch.zeros(2, LENGTH).long()
    ids, taken = torch.cat([prompt, torch.full((2, LENGTH), MASK)], 1), [0, 0]
    while (masked := ids[:, 4:] == MASK).any():
        with torch.no_grad():
            logits = denoiser(ids, torch.ones_like(ids), 4)[0]
        unmask, ids[:, 4:] = decision(logits, ids[:, 4:], masked, taken)
        taken = [steps + 1 for steps in taken]
        order[unmask] = taken[0]
    assert ids.tolist() == expected.sequences.tolist()
    assert order.tolist() == expected.order.tolist() == step_maps(expected)


def test_rows_of_different_budgets():
    """Each row as alone: one at its last step, one that is finished, one at its first."""
    logits = torch.randn(3, 5, VOCAB, generator=torch.Generator().manual_seed(0))
    ids = torch.full((3, 5), MASK)
    ids[1] = 9
    decision = BlockDecision(sampler=TopProbSampler(), mask_token_id=MASK, steps=5)
    unmask, filled = decision(logits, ids, ids == MASK, [4, 2, 0])
    assert unmask.sum(-1).tolist() == [5, 0, 1]
    assert filled[1].tolist() == [9] * 5
    assert (filled[0] != MASK).all()


def test_drawn_tokens_are_of_the_generator():
    logits, ids = torch.zeros(2, 6, VOCAB), torch.full((2, 6), MASK)

    def drawn(seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        options = {"mask_token_id": MASK, "steps": 1, "temperature": 1.0, "generator": generator}
        return BlockDecision(sampler=TopProbSampler(), **options)(logits, ids, ids == MASK, [0, 0])[1].tolist()

    assert drawn(0) == drawn(0) != drawn(1)


def test_step_maps_end_with_the_response():
    output = LearnedOrderOutput(
        sequences=torch.zeros(2, 7), order=torch.tensor([[2, 1, 3, 0], [1, 1, 2, 2]]), length=torch.tensor([3, 4])
    )
    assert step_maps(output) == [[2, 1, 3], [1, 1, 2, 2]]


def test_step_maps_need_an_order():
    with pytest.raises(ValueError, match="output must have order, but has none"):
        step_maps(LearnedOrderOutput(sequences=torch.zeros(2, 7)))
    with pytest.raises(ValueError, match="output must be of masks behind a prompt, got one of infill=True"):
        step_maps(LearnedOrderOutput(sequences=torch.zeros(2, 7), order=torch.zeros(2, 7)))


def test_refusals():
    hidden = LearnedOrderSampler(scorer=scorer_of(LAWS[0], denoiser_hidden_size=8))
    with pytest.raises(ValueError, match="sampler must read predictions only, but LearnedOrderSampler reads hidden"):
        BlockDecision(sampler=hidden, mask_token_id=MASK)
    for name in ("wino", "klass"):
        with pytest.raises(ValueError, match="sampler must not remask or remember anything between steps, but"):
            BlockDecision(sampler=make_sampler(name), mask_token_id=MASK)
    with pytest.raises(ValueError, match="steps must be 1 or more, or None, got 0"):
        BlockDecision(sampler=TopProbSampler(), mask_token_id=MASK, steps=0)
