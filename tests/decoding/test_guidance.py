"""Classifier-free guidance: the formula, both kinds of unconditional prompt, what it needs."""

import pytest
import torch
from models import MASK, MAX_LENGTH, PAD, VOCAB
from test_loop import denoiser_of, padded, response, words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler

PROMPTS = [words(5), words(3, seed=1)]
NEGATIVE = [words(2, seed=2), words(4, seed=3)]


def logits_of(family, prompt, canvas):
    ids = torch.cat([prompt, canvas])[None]
    with torch.no_grad():
        logits = denoiser_of(family)(ids, torch.ones_like(ids), len(prompt))[0][0].float()
    logits[:, MASK] = -torch.inf
    return logits


def best(conditional, unconditional, scale):
    """u + scale (c - u), token by token in plain Python."""
    tokens = []
    for c, u in zip(conditional.tolist(), unconditional.tolist(), strict=True):
        guided = {t: u[t] + scale * (c[t] - u[t]) for t in range(VOCAB) if t != MASK}
        tokens.append(max(guided, key=lambda t: guided[t]))
    return tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("scale", [0, 0.5, 3.0])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_the_formula(family, scale, negative, side):
    canvas = torch.full((4,), MASK)
    ids, mask = padded(PROMPTS, side)
    options = {}
    if negative:
        options = dict(
            zip(("negative_prompt_ids", "negative_prompt_attention_mask"), padded(NEGATIVE, side), strict=True)
        )
    output = decode(
        denoiser_of(family), ids, mask, sampler=TopProbSampler(), max_new_tokens=4, max_denoising_steps=1,
        guidance_scale=scale, **options,
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        other = NEGATIVE[row] if negative else torch.full_like(prompt, MASK)
        expected = best(logits_of(family, prompt, canvas), logits_of(family, other, canvas), scale)
        assert response(output)[row].tolist() == expected
    assert output.nfe.tolist() == [2, 2]


@pytest.mark.parametrize("negative", [False, True])
def test_in_blocks(negative):
    """One step a block: the second is guided with the first one on the canvas, in both calls."""
    prompt, other = PROMPTS[0], NEGATIVE[0] if negative else torch.full_like(PROMPTS[0], MASK)
    canvas = torch.full((6,), MASK)
    for block in (slice(0, 3), slice(3, 6)):
        guided = best(logits_of("bert", prompt, canvas), logits_of("bert", other, canvas), 2.0)
        canvas[block] = torch.tensor(guided[block])
    output = decode(
        denoiser_of("bert"),
        prompt[None],
        sampler=TopProbSampler(),
        max_new_tokens=6,
        max_denoising_steps=2,
        block_length=3,
        guidance_scale=2.0,
        negative_prompt_ids=NEGATIVE[0][None] if negative else None,
    )
    assert response(output)[0].tolist() == canvas.tolist()
    assert canvas[:3].tolist() != canvas[3:].tolist()


def test_rows_keep_their_own_negative_prompt():
    """Rows leave the batch at different steps; a row alone gives the same."""
    prompts, negative = words(8, 4), words(8, 3, seed=4)
    options = {
        "sampler": ThresholdSampler(threshold=0.6),
        "max_new_tokens": 8,
        "guidance_scale": 2.0,
        "block_length": 4,
    }
    output = decode(denoiser_of("llama"), prompts, negative_prompt_ids=negative, **options)
    assert len(output.nfe.unique()) > 1
    for row in range(8):
        alone = decode(denoiser_of("llama"), prompts[row, None], negative_prompt_ids=negative[row, None], **options)
        assert response(alone)[0].tolist() == response(output)[row].tolist()
        assert alone.nfe.item() == output.nfe[row].item()


def test_a_scale_of_one_is_no_guidance():
    options = {"sampler": TopProbSampler(), "max_new_tokens": 6}
    plain, one = (decode(denoiser_of("bert"), words(2, 3), guidance_scale=s, **options) for s in (None, 1))
    assert plain.sequences.tolist() == one.sequences.tolist()
    assert one.nfe.tolist() == [6, 6]


def test_infilling_is_guided_away_from_what_is_known():
    ids = words(1, 6)
    ids[0, [1, 4]] = MASK
    output = decode(
        denoiser_of("bert"), ids, sampler=TopProbSampler(), max_denoising_steps=1, infill=True, guidance_scale=2.0
    )
    nothing = torch.tensor([], dtype=torch.long)
    conditional, unconditional = (logits_of("bert", nothing, x) for x in (ids[0], torch.full((6,), MASK)))
    expected = best(conditional, unconditional, 2.0)
    assert output.sequences[0, [1, 4]].tolist() == [expected[1], expected[4]]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guidance_scale": -1}, "guidance_scale must be a number, 0 or more, got -1"),
            ({"guidance_scale": "2"}, "guidance_scale must be a number, 0 or more, got '2'"),
            (
                {"negative_prompt_ids": words(2, 3)},
                "guidance_scale must be given and not be 1 with negative_prompt_ids",
            ),
            (
                {"guidance_scale": 2.0, "negative_prompt_attention_mask": torch.ones(2, 3)},
                "negative_prompt_ids must be given with negative_prompt_attention_mask, got None",
            ),
            (
                {"guidance_scale": 2.0, "negative_prompt_ids": words(3, 3)},
                "negative_prompt_ids must have 2 rows, as input_ids, got 3",
            ),
            (
                {"guidance_scale": 2.0, "negative_prompt_ids": words(2, 3) - 50},
                r"negative_prompt_ids must hold ids in \[0, 40\), got -",
            ),
            (
                {
                    "guidance_scale": 2.0,
                    "negative_prompt_ids": words(2, 3),
                    "negative_prompt_attention_mask": torch.ones(2, 4),
                },
                r"negative_prompt_attention_mask must have the shape of negative_prompt_ids \(2, 3\), got \(2, 4\)",
            ),
            (
                {"guidance_scale": 2.0, "negative_prompt_ids": words(2, MAX_LENGTH)},
                "the negative prompt and max_new_tokens must fit",
            ),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            decode(denoiser_of("bert"), words(2, 4), sampler=TopProbSampler(), max_new_tokens=4, **options)

    def test_nothing_to_guide_away_from(self):
        mask = torch.tensor([[1, 1], [0, 0]])
        with pytest.raises(ValueError, match="guidance_scale needs a prompt in each row, or negative_prompt_ids"):
            decode(
                denoiser_of("bert"), words(2, 2), mask, sampler=TopProbSampler(), max_new_tokens=4, guidance_scale=2.0
            )

    def test_a_shifted_model_needs_a_negative_prompt(self):
        with pytest.raises(ValueError, match="each negative prompt must have at least one token"):
            decode(
                denoiser_of("qwen2"),
                words(1, 2),
                sampler=TopProbSampler(),
                max_new_tokens=4,
                guidance_scale=2.0,
                negative_prompt_ids=torch.full((1, 2), PAD),
                negative_prompt_attention_mask=torch.zeros(1, 2),
            )
