"""Nemotron-Labs-Diffusion: a causal context, a block that sees all of itself, and a first token from before it."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EOS, MASK, PAD, special_tokens
from published import NEMOTRON, nemotron_weights, write_checkpoint
from test_loop import DETERMINISTIC, assert_same_rows, padded, response, words
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM

from hf_learned_order.decoding.canvas import Canvas
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.attention import check_attention
from hf_learned_order.denoisers.causal_context import reading
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import FAMILIES, Family
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.scorer import OrderScorer

BLOCK = NEMOTRON["block_size"]


@functools.cache
def denoiser() -> Denoiser:
    """In float64: rows of different batches, and calls with and without a cache, then agree."""
    fields = {key: value for key, value in NEMOTRON.items() if key not in ("auto_map", "architectures", "model_type")}
    model = Ministral3ForCausalLM(Ministral3Config(**{**fields, "pad_token_id": PAD})).double().eval()
    names = {"encoder.": "model.", "diffusion_head.": "lm_head."}
    weights = nemotron_weights(NEMOTRON)
    for old, new in names.items():
        weights = {name.replace(old, new, 1): weight for name, weight in weights.items()}
    model.load_state_dict(weights)
    return Denoiser(model, family=Family(attention="4d", block_size=BLOCK, causal_context=True))


def allowed(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone()
    logits[..., MASK] = -torch.inf
    return logits


@torch.no_grad()
def by_hand(prompt: torch.Tensor, length: int, threshold: float | None) -> tuple[list[int], list[int]]:
    """Tokens and orders of one row, with the stock class as it is: a causal prefill into its own cache, the greedy
    token of the place before a block, full attention in the block over that cache, then a causal pass of the block.
    """
    model, cache, order, step = denoiser().model, DynamicCache(), [], 0
    ids, new, name = prompt[None], prompt[None], denoiser()._cache_argument
    for start in range(0, length, BLOCK):
        size = min(BLOCK, length - start)
        output = model(new, use_cache=True, **{name: cache})
        past = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        block, steps = torch.full((1, size), MASK), [0] * size
        step += 1
        block[0, 0], steps[0] = allowed(output.logits[0, -1]).argmax(), step
        while (block == MASK).any():
            step += 1
            copy = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                copy.update(keys, values, layer)
            full = torch.ones(1, 1, size, ids.shape[1] + size, dtype=torch.bool)
            places = torch.arange(ids.shape[1], ids.shape[1] + size)[None]
            logits = allowed(
                model(block, attention_mask=full, position_ids=places, use_cache=True, **{name: copy}).logits[0]
            )
            confidence, best = logits.softmax(-1).max(-1)
            confidence[block[0] != MASK] = -1.0
            chosen = {int(confidence.argmax())}
            if threshold is not None:
                chosen |= set((confidence > threshold).nonzero().flatten().tolist())
            for place in chosen:
                block[0, place], steps[place] = best[place], step
        ids, new, order = torch.cat([ids, block], 1), block, order + steps
    return ids[0].tolist(), order


@pytest.mark.parametrize("kv_cache", [None, "exact"])
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("prompt", [1, 4, 6])
def test_the_obvious_decoder(prompt, threshold, kv_cache):
    """Canvas of two blocks and a rest, for prompts that begin, fill and overflow a block."""
    sampler = TopProbSampler() if threshold is None else ThresholdSampler(threshold=threshold)
    output = decode(denoiser(), words(1, prompt), sampler=sampler, max_new_tokens=11, kv_cache=kv_cache)
    ids, order = by_hand(words(1, prompt)[0], 11, threshold)
    assert output.sequences[0].tolist() == ids
    assert output.order[0].tolist() == order
    assert output.nfe.tolist() == [max(order)]


def test_calls_send_what_is_not_known_yet():
    """With a cache: the prompt, then each finished block once, and a block with the place before it."""
    sent, model = [], denoiser().model
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: sent.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        decode(denoiser(), words(1, 5), sampler=TopProbSampler(), max_new_tokens=8, kv_cache="exact")
    finally:
        hook.remove()
    assert sent == [6, 5, 5, 5, 6, 5, 5, 5]


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 999),
    sampler=st.sampled_from(DETERMINISTIC),
    canvas=st.integers(1, 10),
    budget=st.sampled_from([None, 3, 7]),
    eos=st.sampled_from([None, [5, 9, 17]]),
    extra=st.integers(0, 2),
    kv_cache=st.sampled_from([None, "exact"]),
)
def test_a_row_of_a_ragged_batch_is_the_row_alone(lengths, seed, sampler, canvas, budget, eos, extra, kv_cache):
    prompts = [words(n, seed=seed + i) for i, n in enumerate(lengths)]
    options = {"sampler": sampler, "max_new_tokens": canvas, "max_denoising_steps": budget, "eos_token_id": eos}
    single = [decode(denoiser(), prompt[None], pad_token_id=PAD, **options) for prompt in prompts]
    expected = LearnedOrderOutput(
        **{key: torch.cat([out[key] for out in single]) for key in single[0] if key != "sequences"},
        sequences=torch.cat([response(out) for out in single]),
    )
    ids, mask = padded(prompts, "left", extra)
    assert_same_rows(decode(denoiser(), ids, mask, pad_token_id=PAD, kv_cache=kv_cache, **options), expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.9), size=st.integers(2, 11))
def test_all_blocks_at_once_say_what_each_says_as_the_last(seed, share, size):
    """The call of training: a canvas of several blocks with masks anywhere, hidden states too."""
    generator = torch.Generator().manual_seed(seed)
    ids = words(2, 5 + size, seed=seed)
    ids[:, 5:][torch.rand(2, size, generator=generator) < share] = MASK
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.no_grad():
        logits, hidden = denoiser()(ids, mask, 5, hidden_states=True)
        for start in range(5, 5 + size, BLOCK):
            stop = min(start + BLOCK, 5 + size)
            alone, seen = denoiser()(ids[:, :stop], mask[:, :stop], start, hidden_states=True)
            torch.testing.assert_close(logits[:, start - 5 : stop - 5], alone)
            torch.testing.assert_close(hidden[:, start - 5 : stop - 5], seen)
        rows, places = torch.tensor([1, 0, 0]), torch.tensor([0, size - 1, 1])
        chosen, _ = denoiser()(ids, mask, 5, at=(rows, places))
    torch.testing.assert_close(chosen, logits[rows, places])


def test_reading_by_hand():
    """Two tokens, one of them padding, then a block of 2 and the first token of another."""
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    read = reading(mask, torch.tensor([[0, 0, 1, 2, 3]]), 2, 2)
    assert read.columns.tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert read.places.tolist() == [1, 5, 3]
    expected = [".x.....", ".x.....", ".xx....", ".xxx...", ".x..xx.", ".x..xx.", ".xxx..x"]
    assert ["".join(".x"[int(one)] for one in row) for row in read.seen[0]] == expected


def test_plan():
    """Rows whose first token of a block is given do without the call for it; so does a block of one step."""
    draft = torch.full((2, 7), MASK)
    draft[1, 4] = 9
    canvas = Canvas.behind(words(2, 3), torch.ones(2, 3), length=7, mask_token_id=MASK, draft=draft)

    def shown(steps: int | None) -> list:
        plan = canvas.plan(None, steps, block_size=BLOCK, causal_context=True)
        return [(part.rows.tolist(), part.window.start, part.window.stop, part.steps) for part in plan]

    assert shown(None) == [
        ([0], 0, 1, 1), ([0], 0, 4, 3), ([1], 0, 1, 1), ([1], 0, 4, 3), ([0], 4, 5, 1), ([0], 4, 7, 2), ([1], 4, 7, 2)
    ]  # fmt: skip
    assert shown(3) == [([0], 0, 1, 1), ([0], 0, 4, 1), ([1], 0, 1, 1), ([1], 0, 4, 1), ([0], 4, 7, 1), ([1], 4, 7, 1)]


def test_guidance():
    """A negative prompt of any length: blocks are counted from its end too."""
    options = {"sampler": TopProbSampler(), "max_new_tokens": 6}
    other = words(1, 7, seed=5)
    plain = decode(denoiser(), words(1, 4), **options)
    assert_same_rows(decode(denoiser(), words(1, 4), guidance_scale=1.0, **options), plain)
    cached, guided = (
        decode(denoiser(), words(1, 4), guidance_scale=0.0, negative_prompt_ids=other, kv_cache=cache, **options)
        for cache in ("exact", None)
    )
    assert_same_rows(cached, guided)
    # at scale 0 the negative prompt alone decides
    assert response(guided).tolist() == response(decode(denoiser(), other, **options)).tolist()


class TestCheckpoint:
    def test_a_ministral3_of_the_published_weights(self, tmp_path):
        name = write_checkpoint(tmp_path, NEMOTRON, nemotron_weights(NEMOTRON))
        model = load_denoiser(name)
        assert type(model) is Ministral3ForCausalLM
        loaded = Denoiser(model.double())
        assert loaded.family == Family(attention="4d", block_size=BLOCK, causal_context=True, mask_token_id=100)
        ids = words(2, 9)
        with torch.no_grad():
            expected = denoiser()(ids, torch.ones_like(ids), 3)[0]
            torch.testing.assert_close(loaded(ids, torch.ones_like(ids), 3)[0], expected)

    def test_published_facts(self, tmp_path):
        """The mask token and the block come from the table where the configuration does not name them."""
        config = NEMOTRON | {"vocab_size": 128}
        del config["mask_token_id"], config["block_size"]
        model = attach(load_denoiser(write_checkpoint(tmp_path, config, nemotron_weights(config))))
        found = model._denoiser()
        assert (found.mask_token_id, found.family.block_size) == (100, 32)
        assert special_tokens(model) == [EOS, None]
        assert FAMILIES["NemotronLabsDiffusionModel"].causal_context

    def test_learned_order_saved_again(self, tmp_path):
        """A scorer that sees hidden states decodes it; so does the checkpoint that `save_pretrained` writes."""
        name = write_checkpoint(tmp_path / "published", NEMOTRON, nemotron_weights(NEMOTRON))
        model = attach(load_denoiser(name))
        torch.manual_seed(0)
        scorer = OrderScorer.for_denoiser(model._denoiser(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        options = {"sampler": LearnedOrderSampler(scorer=scorer), "max_new_tokens": 6, "seed": 0}
        out = model.generate(words(2, 5), return_dict_in_generate=True, **options)
        assert out.order[:, 0].tolist() == [1, 1]
        assert (out.sequences != MASK).all()
        model.save_pretrained(tmp_path / "again")
        again = attach(load_denoiser(tmp_path / "again")).generate(words(2, 5), return_dict_in_generate=True, **options)
        assert again.sequences.tolist() == out.sequences.tolist()

    @pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
    def test_what_is_no_ministral3(self, field, tmp_path):
        name = write_checkpoint(tmp_path, NEMOTRON | {field: True}, nemotron_weights(NEMOTRON))
        with pytest.raises(ValueError, match=f"must have {field}=False to load as a Ministral3, got True"):
            load_denoiser(name)

    def test_autoregressive(self, tmp_path):
        name = write_checkpoint(tmp_path, NEMOTRON | {"dlm_paradigm": "autoregressive"}, nemotron_weights(NEMOTRON))
        with pytest.raises(ValueError, match="must not have dlm_paradigm='autoregressive' to denoise"):
            load_denoiser(name)


class TestRefusals:
    def test_infill(self):
        ids = words(1, 5)
        ids[0, 2] = MASK
        with pytest.raises(ValueError, match="infill must be False with a model that has a causal context"):
            decode(denoiser(), ids, sampler=TopProbSampler(), infill=True)

    def test_empty_prompt(self):
        ids, mask = padded([words(0), words(2)], "left", 0)
        with pytest.raises(ValueError, match="each prompt must have at least one token"):
            decode(denoiser(), ids, mask, sampler=TopProbSampler(), max_new_tokens=4)

    def test_start(self):
        ids = words(1, 4)
        with pytest.raises(ValueError, match="start must be at least 1 with a causal context"):
            denoiser()(ids, torch.ones_like(ids), 0)

    @pytest.mark.parametrize("facts", [{"attention": "4d"}, {"attention": "4d", "block_size": 4, "shift": 1}])
    def test_family(self, facts):
        with pytest.raises(ValueError, match="causal_context=True needs a block_size, shift=0 and attention '4d'"):
            Family(causal_context=True, **facts)

    def test_a_model_that_is_causal_everywhere(self, monkeypatch):
        check_attention(denoiser())
        causal = Denoiser(denoiser().model, family=denoiser().family)
        monkeypatch.setattr(causal, "_mask", lambda seen: {"attention_mask": seen[:, None].tril()})
        with pytest.raises(ValueError, match="model must attend in both directions within a block, but in Ministral3"):
            check_attention(causal)

    def test_a_model_that_is_causal_nowhere(self, monkeypatch):
        full = Denoiser(denoiser().model, family=denoiser().family)
        monkeypatch.setattr(full, "_mask", lambda seen: {"attention_mask": torch.ones_like(seen[:, None])})
        with pytest.raises(ValueError, match="model must read what is before a block causally, but in Ministral3"):
            check_attention(full)
