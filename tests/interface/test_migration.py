"""docs/migration.md says that our call gives the tokens of theirs: their loops, written from what they do, and ours.

In both the mask token is out of the softmax and no EOS ends a row, the two differences that the page names.
"""

import pytest
import torch
from models import MASK, WORDS, tiny_model

from hf_learned_order.interface.attach import attach

LENGTH = 16


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("bert"), mask_token_id=MASK)


def prompt(seed: int) -> torch.Tensor:
    return torch.randint(WORDS.start, WORDS.stop, (1, 5), generator=torch.Generator().manual_seed(seed))


def beliefs(model, ids: list[int], size: int, guidance: float) -> list[tuple[float, int]]:
    """(probability, token) of the most likely token at each position; classifier-free guidance masks the prompt."""
    bare = [MASK] * size + ids[size:]
    with torch.no_grad():
        given, free = (model(input_ids=torch.tensor([row])).logits[0] for row in (ids, bare))
    logits = free + (guidance + 1) * (given - free)
    logits[:, MASK] = -torch.inf
    top = logits.softmax(-1).max(-1)
    return list(zip(top.values.tolist(), top.indices.tolist(), strict=True))


def theirs(model, input_ids, *, steps, block_length, cfg_scale=0.0, threshold=None) -> tuple[list[int], int]:
    """LLaDA's loop; with a threshold Fast-dLLM's without a cache. The response and the calls of the model."""
    ids, size, calls = input_ids[0].tolist() + [MASK] * LENGTH, input_ids.shape[1], 0
    for start in range(size, size + LENGTH, block_length):
        base, over = divmod(block_length, steps // (LENGTH // block_length))
        number = 0
        while MASK in ids[start : start + block_length]:
            top = beliefs(model, ids, size, cfg_scale)
            masked = [i for i in range(start, start + block_length) if ids[i] == MASK]
            surest = sorted(masked, key=lambda i: -top[i][0])
            if threshold is None:
                chosen = surest[: base + (number < over)]
            else:
                chosen = surest[:1] + [i for i in surest[1:] if top[i][0] >= threshold]
            for i in chosen:
                ids[i] = top[i][1]
            number, calls = number + 1, calls + 1
    return ids[size:], calls


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("steps", "block_length", "cfg_scale"), [(16, 16, 0.0), (6, 16, 0.0), (8, 4, 0.0), (12, 8, 1.5)]
)
def test_llada(model, seed, steps, block_length, cfg_scale):
    expected, calls = theirs(model, prompt(seed), steps=steps, block_length=block_length, cfg_scale=cfg_scale)
    out = model.generate(
        prompt(seed),
        sampler="top_prob",
        max_new_tokens=LENGTH,
        max_denoising_steps=steps,
        block_length=block_length,
        guidance_scale=cfg_scale + 1,
        eos_token_id=[],
        return_dict_in_generate=True,
    )
    assert out.sequences[0, 5:].tolist() == expected
    assert out.nfe.item() == calls * (1 if cfg_scale == 0 else 2) == steps * (1 if cfg_scale == 0 else 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("block_length", "threshold"), [(16, 0.9), (8, 0.25), (4, 0.2)])
def test_fast_dllm(model, seed, block_length, threshold):
    expected, calls = theirs(model, prompt(seed), steps=LENGTH, block_length=block_length, threshold=threshold)
    out = model.generate(
        prompt(seed),
        sampler="threshold",
        sampler_config={"threshold": threshold},
        max_new_tokens=LENGTH,
        block_length=block_length,
        eos_token_id=[],
        return_dict_in_generate=True,
    )
    assert out.sequences[0, 5:].tolist() == expected
    assert out.nfe.item() == calls
    assert threshold > 0.5 or calls < LENGTH  # several at once


def test_kept_tokens_of_guidance(model):
    """dLLM's `cfg_keep_tokens` is a negative prompt in which the other tokens are masks."""
    ids = prompt(0)
    kept = torch.where(ids == ids[0, 0], ids, MASK)
    bare, guided = (
        model.generate(ids, sampler="top_prob", max_new_tokens=LENGTH, guidance_scale=2.0, negative_prompt_ids=negative)
        for negative in (torch.full_like(ids, MASK), kept)
    )
    assert bare.tolist() == model.generate(ids, sampler="top_prob", max_new_tokens=LENGTH, guidance_scale=2.0).tolist()
    assert guided.tolist() != bare.tolist()
