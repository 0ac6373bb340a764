"""Block-causal models go through their own blocks, on a grid that starts at the first token of each row."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MASK, PAD, tiny_model
from published import stand_in
from test_loop import DETERMINISTIC, SOME_EOS, Recorder, assert_same_rows, padded, response, words
from test_streaming import Collector

from hf_learned_order.decoding.canvas import Canvas
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family

BLOCK = 4
REMOTE = {
    "LLaDA2MoeModelLM": {"block_size": BLOCK},
    "SDARForCausalLM": {"block_size": BLOCK},
    "Fast_dLLM_QwenForCausalLM": {"bd_size": BLOCK},
}
# transformers' own decoders take the block mask as well, and shifted ones can be padded
STOCK = {"llama": 0, "qwen2": 1}
RAGGED = [*STOCK, "LLaDA2MoeModelLM", "SDARForCausalLM"]
ALL = [*RAGGED, "Fast_dLLM_QwenForCausalLM"]


@functools.cache
def denoiser_of(name: str) -> Denoiser:
    if name in STOCK:
        family = Family(attention="4d", block_size=BLOCK, shift=STOCK[name])
        return Denoiser(tiny_model(name), mask_token_id=MASK, family=family)
    return Denoiser(stand_in(name, **REMOTE[name]).double(), mask_token_id=MASK)


def shift_of(name: str) -> int:
    return denoiser_of(name).family.shift


def blocks_of(prompt: int, canvas: int) -> list[range]:
    """The places of a row that are decoded together."""
    places = range(prompt, prompt + canvas)
    return [range(min(b), max(b) + 1) for n in range(99) if (b := [place for place in places if place // BLOCK == n])]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prompt", [1, 3, 4, 6])
def test_the_obvious_block_decoder(name, prompt):
    """One token a step, the surest of the block; a call of all that the block sees, by hand."""
    ids, order, step = words(1, prompt), [], 0
    denoiser, shift = denoiser_of(name), shift_of(name)
    for block in blocks_of(prompt, 9):
        ids = torch.cat([ids, torch.full((1, len(block)), MASK)], 1)
        steps = dict.fromkeys(block, 0)
        for _ in block:
            step += 1
            with torch.no_grad():
                logits = denoiser(ids, torch.ones_like(ids), shift)[0][0]  # of the places from `shift` on
            logits[:, MASK] = -torch.inf
            confidence, best = logits.softmax(-1).max(-1)
            place = max((i for i in block if ids[0, i] == MASK), key=lambda i: float(confidence[i - shift]))
            ids[0, place], steps[place] = best[place - shift], step
        order += steps.values()
    output = decode(denoiser, words(1, prompt), sampler=TopProbSampler(), max_new_tokens=9)
    assert output.sequences.tolist() == ids.tolist()
    assert output.order[0].tolist() == order
    same = decode(denoiser, words(1, prompt), sampler=TopProbSampler(), max_new_tokens=9, block_length=BLOCK)
    assert_same_rows(same, output)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    seed=st.integers(0, 999),
    sampler=st.sampled_from(DETERMINISTIC),
    canvas=st.integers(1, 11),
    budget=st.sampled_from([None, 4, 7]),
    eos=st.sampled_from([None, SOME_EOS]),
    extra=st.integers(0, 2),
)
@pytest.mark.parametrize("name", RAGGED)
def test_a_row_of_a_ragged_batch_is_the_row_alone(name, lengths, seed, sampler, canvas, budget, eos, extra):
    prompts = [words(n, seed=seed + i) for i, n in enumerate(lengths)]
    options = {"sampler": sampler, "max_new_tokens": canvas, "max_denoising_steps": budget, "eos_token_id": eos}
    single = [decode(denoiser_of(name), prompt[None], pad_token_id=PAD, **options) for prompt in prompts]
    expected = LearnedOrderOutput(
        **{key: torch.cat([out[key] for out in single]) for key in single[0] if key != "sequences"},
        sequences=torch.cat([response(out) for out in single]),
    )
    for side in ("left", "right"):
        ids, mask = padded(prompts, side, extra)
        assert_same_rows(decode(denoiser_of(name), ids, mask, pad_token_id=PAD, **options), expected)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(2, 11), min_size=2, max_size=4),
    seed=st.integers(0, 999),
    budget=st.sampled_from([None, 4]),
)
@pytest.mark.parametrize("name", RAGGED)
def test_infilling_goes_by_the_same_grid(name, lengths, seed, budget):
    prompts = [words(n, seed=seed + i) for i, n in enumerate(lengths)]
    for i, prompt in enumerate(prompts):
        prompt[1:][torch.rand(len(prompt) - 1, generator=torch.Generator().manual_seed(seed + i)) < 0.5] = MASK
        prompt[-1] = MASK
    options = {"sampler": ThresholdSampler(threshold=0.4), "max_denoising_steps": budget, "infill": True}
    ids, mask = padded(prompts, "left", 1)
    output = decode(denoiser_of(name), ids, mask, **options)
    for row, prompt in enumerate(prompts):
        # the steps of a block are those of the row with most masks in it, unless they are given: threshold needs none
        alone, real = decode(denoiser_of(name), prompt[None], **options), mask[row].bool()
        assert output.sequences[row, real].tolist() == alone.sequences[0].tolist()
        assert output.order[row, real].tolist() == alone.order[0].tolist()
        last = [order for place, order in enumerate(alone.order[0].tolist()) if order and place // BLOCK == 0]
        later = [order for place, order in enumerate(alone.order[0].tolist()) if order and place // BLOCK > 0]
        assert max(last, default=0) < min(later, default=99)


def test_plan():
    """By hand: rows of 2, 6 and 5 tokens, blocks of 4; seven steps among three blocks."""
    ids, mask = padded([words(2), words(6), words(5)], "left", 1)
    canvas = Canvas.behind(ids, mask, length=8, mask_token_id=MASK)
    plan = canvas.plan(None, 7, block_size=BLOCK)
    assert [(rows.tolist(), block.start, block.stop, steps, group) for rows, block, steps, group in plan] == [
        ([0, 1], 0, 2, 3, 0),
        ([2], 0, 3, 3, 1),
        ([0, 1], 2, 6, 2, 0),
        ([2], 3, 7, 2, 1),
        ([0, 1], 6, 8, 2, 0),
        ([2], 7, 8, 2, 1),
    ]


def test_rows_whose_blocks_agree_are_decoded_together_and_nothing_behind_the_block_is_computed():
    recorder = Recorder(denoiser_of("SDARForCausalLM"))
    ids, mask = padded([words(2), words(6), words(5)], "left")
    decode(recorder, ids, mask, sampler=TopProbSampler(), max_new_tokens=8, max_denoising_steps=3)
    # rows 0 and 1 have blocks of 2, 4 and 2, row 2 of 3, 4 and 1: one step each
    assert [tuple(canvas.shape) for canvas in recorder.canvases] == [(2, 2), (1, 3), (2, 4), (1, 4), (2, 2), (1, 1)]


def test_streamed_as_returned():
    ids, mask = padded([words(n, seed=n) for n in (2, 7, 5)], "left")
    streamer = Collector()
    output = decode(denoiser_of("llama"), ids, mask, sampler=TopProbSampler(), max_new_tokens=9, streamer=streamer)
    assert torch.cat(streamer.blocks, 1).tolist() == output.sequences.tolist()
    assert len(streamer.blocks) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 8}, "block_length must be None or 4, the block in which this block-causal model .*, got 8"),
        ({"max_denoising_steps": 2}, "max_denoising_steps must be at least one for each of the 3 blocks, got 2"),
        (
            {"negative_prompt_ids": words(1, 2), "guidance_scale": 2.0},
            "negative_prompt_ids must be None with a block-causal model",
        ),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        decode(denoiser_of("llama"), words(1, 5), sampler=TopProbSampler(), max_new_tokens=8, **options)
