"""Attention maps of a model, and the rule that reads them."""

import dataclasses
import itertools

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, MASK, tiny_model
from strategies import VOCAB, as_row, positions, step_of, steps
from test_loop import Watch, assert_same_rows, padded, words
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.dapd import DAPDSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.interface.attach import attach

THRESHOLDS = (0.0, 0.2, 0.45, 0.7, 1.0)


def eager(family: str, **config) -> PreTrainedModel:
    model = tiny_model(family, **config)
    model.set_attn_implementation("eager")
    return model


# ---- the rule ----------------------------------------------------------------------------------------------------


def first_half(step, tau: float):
    sampler = DAPDSampler(threshold=tau)
    return sampler.propose(step, sampler.init_state(step)).unmask


@given(step=steps(), tau=st.sampled_from(THRESHOLDS))
def test_the_set_is_that_of_the_formula(step, tau):
    c, got = step.predictions.confidence.tolist(), first_half(step, tau)
    for row, masked in enumerate(step.masked.tolist()):
        assert positions(got[row]) == oracles.independent_set(c[row], step.attentions[row].tolist(), masked, tau)


@settings(max_examples=30)
@given(step=steps(), tau=st.sampled_from(THRESHOLDS))
def test_no_two_are_joined_and_no_other_could_go_too(step, tau):
    both = (step.attentions + step.attentions.mT) / 2
    for row, got in enumerate(map(positions, first_half(step, tau))):
        masked = positions(step.masked[row])
        assert got <= masked
        assert all(both[row, i, j] <= tau for i, j in itertools.combinations(got, 2))
        assert all(any(both[row, i, j] > tau for j in got) for i in masked - got)


def test_who_is_seen_by_many_goes_first():
    """A star: its centre alone, though it is the least sure; without edges all at once."""
    attention = torch.zeros(1, 5, 5)
    attention[0, 2, [0, 1, 3, 4]] = 0.2  # 0.1 each way
    logits = torch.zeros(1, 5, VOCAB)
    logits[0, :, 0] = torch.tensor([3.0, 3.0, 1.0, 3.0, 3.0])
    step = dataclasses.replace(step_of(logits, torch.ones(1, 5, dtype=torch.bool)), attentions=attention)
    assert [positions(first_half(step, tau)[0]) for tau in (0.05, 0.15)] == [{2}, {0, 1, 2, 3, 4}]


def test_the_second_half_is_what_is_sure():
    logits = torch.zeros(1, 6, VOCAB)
    logits[0, [1, 4], 0] = 9.0
    for masked, expected in (({0, 1, 2}, {0, 1, 2}), ({1, 2}, {1}), ({1, 2, 4, 5}, {1, 2, 4, 5})):
        step = dataclasses.replace(step_of(logits, as_row(masked, 6)[None]), attentions=torch.zeros(1, 6, 6))
        assert positions(DAPDSampler().propose(step, (torch.tensor([[6]]),)).unmask[0]) == expected


@pytest.mark.parametrize("name", ["threshold", "confidence"])
def test_options_out_of_range(name):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0.0, 1.0\], got 1.5"):
        DAPDSampler(**{name: 1.5})
    assert vars(DAPDSampler()) == {"threshold": 0.05, "confidence": 0.9}


# ---- attention of a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [2, 4])
def test_the_maps_are_those_of_the_last_layers(family, layers):
    """Of 2 layers the last one, of 4 the last two; a shifted model predicts one place before."""
    model = eager(family, num_hidden_layers=layers)
    denoiser = Denoiser(model, mask_token_id=MASK)
    ids, mask = words(2, 9), torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    maps, seen = [], []
    hook = model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.attentions))
    denoiser(ids, mask, 4, attentions=maps)
    hook.remove()
    every = torch.stack(seen[0]).float().mean(2)
    shift = denoiser.family.shift
    expected = every[-1 if layers == 2 else -2 :].mean(0)[:, 4 - shift : 9 - shift, 4:]
    assert torch.equal(maps[0], expected)
    assert expected.std() > 0.01


@pytest.mark.parametrize("family", ["bert", "qwen2", "llama"])
def test_rows_do_not_depend_on_the_batch(family):
    denoiser = Denoiser(eager(family), mask_token_id=MASK)
    ids, mask = padded([words(1, 3)[0], words(1, 6)[0]], "left")
    options = {"sampler": DAPDSampler(threshold=0.08), "max_new_tokens": 12, "max_denoising_steps": 9}
    together = decode(denoiser, ids, mask, **options)
    alone = decode(denoiser, ids[:1], mask[:1], **options)
    assert together.order[0].tolist() == alone.order[0].tolist()
    assert 1 < together.nfe.max() < 9


def test_in_blocks_a_rule_sees_the_block():
    shapes = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watching(DAPDSampler):
        def propose(self, step, state):
            shapes.append(tuple(step.attentions.shape))
            return super().propose(step, state)

    denoiser = Denoiser(eager("bert"), mask_token_id=MASK)
    decode(denoiser, words(2, 3), sampler=Watching(), max_new_tokens=8, block_length=4, max_denoising_steps=6)
    assert {shape[1:] for shape in shapes} == {(4, 4)}


def test_a_step_waits_for_the_device_once():
    denoiser, counts = Denoiser(eager("llama"), mask_token_id=MASK), []
    for steps_in_all in (3, 6):
        with Watch() as watch:
            output = decode(
                denoiser, words(2, 3), sampler=DAPDSampler(), max_new_tokens=8, max_denoising_steps=steps_in_all
            )
        assert watch.counts.pop("nonzero") == 3 * (1 + int(output.nfe.max()))
        counts.append(watch.counts)
    assert counts[0] == counts[1], "more steps, more waiting"


def test_generate():
    model = attach(eager("bert"), mask_token_id=MASK)
    options = {"max_new_tokens": 8, "return_dict_in_generate": True}
    named = model.generate(words(2, 3), sampler="dapd", sampler_config={"threshold": 0.1}, **options)
    assert_same_rows(named, model.generate(words(2, 3), sampler=DAPDSampler(threshold=0.1), **options))


def test_a_model_that_is_not_eager():
    denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
    message = r"attention maps with BertForMaskedLM as it is loaded: .* must be \"eager\", got 'sdpa'; load it with"
    with pytest.raises(ValueError, match=message):
        decode(denoiser, words(2, 3), sampler=DAPDSampler(), max_new_tokens=4)


def test_calls_about_a_part_of_the_sequence():
    message = "sampler must not read attention maps with a kv_cache or a causal context"
    denoiser = Denoiser(eager("llama"), mask_token_id=MASK)
    options = {"sampler": DAPDSampler(), "max_new_tokens": 8, "block_length": 4}
    with pytest.raises(ValueError, match=message):
        decode(denoiser, words(2, 3), kv_cache="dual", **options)
    causal = Denoiser(
        eager("llama"), mask_token_id=MASK, family=Family(attention="4d", block_size=4, causal_context=True)
    )
    with pytest.raises(ValueError, match=message):
        decode(causal, words(2, 3), sampler=DAPDSampler(), max_new_tokens=8)


def test_a_model_that_returns_none():
    model = eager("bert")
    model.register_forward_hook(lambda _module, _inputs, output: MaskedLMOutput(logits=output.logits))
    with pytest.raises(ValueError, match="attention maps with BertForMaskedLM: it returns none with output_attentions"):
        decode(Denoiser(model, mask_token_id=MASK), words(2, 3), sampler=DAPDSampler(), max_new_tokens=4)
