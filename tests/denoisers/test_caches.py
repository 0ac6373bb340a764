"""KV caches: exact ones change nothing, approximate ones do what a slow decoder does, and what is refused."""

import functools
import inspect
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MASK, PAD, tiny_model
from published import stand_in
from test_block_causal import BLOCK, STOCK
from test_block_causal import denoiser_of as block_denoiser
from test_loop import (
    DETERMINISTIC,
    SOME_EOS,
    Always,
    Watch,
    assert_same_rows,
    denoiser_of,
    padded,
    response,
    scorer_of,
    words,
)
from torch import Tensor
from transformers import DynamicCache

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import FAMILIES, Family
from hf_learned_order.interface.attach import attach

LAYERS = (0, 1, -1)  # all there are
RULES = [*DETERMINISTIC, "regret", "layers"]  # remasking ones among them
EXACT = ["llama", "qwen2", "SDARForCausalLM"]


def rule_of(sampler):
    """Rules that read hidden states, and unmasked positions, are made late: they need their scorer."""
    if sampler not in ("regret", "layers"):
        return sampler
    layers = None if sampler == "regret" else LAYERS
    return LearnedOrderSampler(scorer=scorer_of("llama", "regret", layers))


class SeesLayers(TopProbSampler):
    """Keeps the hidden states that it is shown."""

    needs_hidden_states = LAYERS

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "seen", [])

    def propose(self, step, state):
        self.seen.append(step.hidden_states)
        return super().propose(step, state)


@contextmanager
def sent(denoiser: Denoiser):
    """How many columns each call sends to the model."""
    counts: list[int] = []
    hook = denoiser.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: counts.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield counts
    hook.remove()


class TestExact:
    @settings(max_examples=15)
    @given(
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        seed=st.integers(0, 999),
        sampler=st.sampled_from(RULES),
        canvas=st.integers(1, 11),
        budget=st.sampled_from([None, 4, 7]),
        eos=st.sampled_from([None, SOME_EOS]),
        scale=st.sampled_from([None, None, 2.0]),
    )
    @pytest.mark.parametrize("name", EXACT)
    def test_nothing_changes(self, name, lengths, seed, sampler, canvas, budget, eos, scale):
        ids, mask = padded([words(n, seed=seed + i) for i, n in enumerate(lengths)], "left", 1)
        options = {"max_new_tokens": canvas, "max_denoising_steps": budget, "eos_token_id": eos, "pad_token_id": PAD}
        options |= {"sampler": rule_of(sampler), "guidance_scale": scale}
        plain, cached = (
            decode(block_denoiser(name), ids, mask, kv_cache=cache, **options) for cache in (None, "exact")
        )
        assert_same_rows(cached, plain)

    @pytest.mark.parametrize("name", EXACT)
    def test_hidden_states_of_every_layer(self, name):
        ids, mask = padded([words(n, seed=n) for n in (2, 6, 3)], "left", 1)
        rules = SeesLayers(), SeesLayers()
        for rule, cache in zip(rules, (None, "exact"), strict=True):
            decode(block_denoiser(name), ids, mask, sampler=rule, max_new_tokens=9, kv_cache=cache)
        plain, cached = (rule.seen for rule in rules)
        assert [states.shape for states in cached] == [states.shape for states in plain]
        for got, expected in zip(cached, plain, strict=True):
            torch.testing.assert_close(got, expected)

    @settings(max_examples=15)
    @given(seed=st.integers(0, 999), prompt=st.integers(1, 9), sampler=st.sampled_from(RULES))
    def test_a_model_that_masks_by_itself(self, seed, prompt, sampler):
        denoiser, ids = block_denoiser("Fast_dLLM_QwenForCausalLM"), words(3, prompt, seed=seed)
        options = {"sampler": rule_of(sampler), "max_new_tokens": 9, "eos_token_id": SOME_EOS, "pad_token_id": PAD}
        assert_same_rows(decode(denoiser, ids, kv_cache="exact", **options), decode(denoiser, ids, **options))

    @pytest.mark.parametrize("shift", [0, 1])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_in_float32(self, attention, shift):
        model = tiny_model(list(STOCK)[shift], attn_implementation=attention).float()
        denoiser = Denoiser(model, mask_token_id=MASK, family=Family(attention="4d", block_size=BLOCK, shift=shift))
        ids, mask = padded([words(n, seed=n) for n in (1, 3, 6, 8, 5)], "right")
        options = {"sampler": ThresholdSampler(threshold=0.4), "max_new_tokens": 14}
        plain, cached = (decode(denoiser, ids, mask, kv_cache=cache, **options) for cache in (None, "exact"))
        assert torch.equal(cached.sequences, plain.sequences)
        assert torch.equal(cached.order, plain.order)
        assert torch.equal(cached.nfe, plain.nfe)

    @settings(max_examples=10)
    @given(lengths=st.lists(st.integers(2, 13), min_size=2, max_size=4), seed=st.integers(0, 999))
    @pytest.mark.parametrize("name", STOCK)
    def test_infilling(self, name, lengths, seed):
        """Blocks without masks are passed over, and encoded with the next one."""
        prompts = [words(n, seed=seed + i) for i, n in enumerate(lengths)]
        for i, prompt in enumerate(prompts):
            prompt[1:][torch.rand(len(prompt) - 1, generator=torch.Generator().manual_seed(seed + i)) < 0.3] = MASK
            prompt[-1] = MASK
        ids, mask = padded(prompts, "left", 1)
        options = {"sampler": TopProbSampler(), "infill": True}
        plain, cached = (
            decode(block_denoiser(name), ids, mask, kv_cache=cache, **options) for cache in (None, "exact")
        )
        assert torch.equal(cached.sequences, plain.sequences)
        assert torch.equal(cached.order, plain.order)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            # blocks end at 8, 12 and 16; the prompt's 6 tokens end in a block that is not finished
            ("llama", [8, 4, 8, 4, 4, 4, 6, 2]),
            # what a place says stands one before it, so that one is sent once more
            ("qwen2", [8, 4, 8, 5, 5, 5, 7, 3]),
        ],
    )
    def test_finished_blocks_are_sent_once(self, name, expected):
        with sent(block_denoiser(name)) as counts:
            decode(block_denoiser(name), words(2, 6), sampler=TopProbSampler(), max_new_tokens=8, kv_cache="exact")
        assert counts == expected

    def test_grids_that_differ_are_kept_apart(self):
        """Rows of two grids take turns, and on a short canvas rows of two grids go together."""
        for lengths, canvas in (((2, 6, 5), 8), ((1, 2), 1)):
            ids, mask = padded([words(n, seed=n) for n in lengths], "left")
            options = {"sampler": TopProbSampler(), "max_new_tokens": canvas}
            plain, cached = (
                decode(block_denoiser("llama"), ids, mask, kv_cache=cache, **options) for cache in (None, "exact")
            )
            assert_same_rows(cached, plain)


def slow_decoder(
    family: str, prompt: Tensor, *, length: int, block_length: int, dual: bool
) -> tuple[list, list, list, list[Tensor]]:
    """One row, the surest token a step, transformers' own cache: what is kept first, then what is sent.

    Tokens, order, log-likelihoods, and at each step the block's hidden states of all layers.
    """
    model, shift = denoiser_of(family).model, int(family == "qwen2")
    ids = torch.cat([prompt, torch.full((length,), MASK)])
    total, order, log_probs, hidden = len(ids), [0] * length, [0.0] * length, []
    for step in range(length):
        start = len(prompt) + step // block_length * block_length
        stop = start + block_length
        first = step % block_length == 0
        behind = stop if dual else total
        sent = range(total) if first else range(start - shift, behind)
        kept = [i for i in range(total) if i not in sent]
        cache = DynamicCache() if first else DynamicCache([(k[:, :, kept], v[:, :, kept]) for k, v in pairs])  # noqa: F821
        with torch.no_grad():
            output = model(
                input_ids=ids[None, list(sent)],
                position_ids=torch.tensor([list(sent)]),
                attention_mask=torch.ones(1, 1, len(sent), total, dtype=torch.bool),
                use_cache=True,
                output_hidden_states=True,
                **{"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache},
            )
        if first:
            pairs = [(layer.keys, layer.values) for layer in cache.layers]  # noqa: F841
        block = [place - shift - sent[0] for place in range(start, stop)]
        hidden.append(torch.cat([states[:, block] for states in output.hidden_states], -1))
        logits = output.logits[0].float()
        logits[:, MASK] = -torch.inf
        log_p = logits.log_softmax(-1)
        value, place = max((float(log_p[i - shift - sent[0]].max()), i) for i in range(start, stop) if ids[i] == MASK)
        ids[place] = log_p[place - shift - sent[0]].argmax()
        order[place - len(prompt)], log_probs[place - len(prompt)] = step + 1, value
    return ids[len(prompt) :].tolist(), order, log_probs, hidden


class TestApproximate:
    @pytest.mark.parametrize("block_length", [3, 4, 12])
    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    @pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
    def test_the_slow_decoder(self, family, cache, block_length):
        rule = SeesLayers()
        options = {"sampler": rule, "max_new_tokens": 12, "block_length": block_length}
        output = decode(denoiser_of(family), words(1, 5), kv_cache=cache, **options)
        tokens, order, log_probs, hidden = slow_decoder(
            family, words(5), length=12, block_length=block_length, dual=cache == "dual"
        )
        # at the last step of a block no rule is asked
        shown = [states for step, states in enumerate(hidden, 1) if step % block_length]
        for got, expected in zip(rule.seen, shown, strict=True):
            torch.testing.assert_close(got, expected)
        assert response(output)[0].tolist() == tokens
        assert output.order[0].tolist() == order
        assert output.token_log_probs[0].tolist() == pytest.approx(log_probs, rel=1e-4, abs=1e-5)
        plain = decode(denoiser_of(family), words(1, 5), **options)
        assert output.token_log_probs[0].tolist() != pytest.approx(plain.token_log_probs[0].tolist(), abs=1e-3)

    @settings(max_examples=12)
    @given(
        lengths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
        seed=st.integers(0, 999),
        sampler=st.sampled_from(RULES),
        cache=st.sampled_from(["prefix", "dual"]),
        eos=st.sampled_from([None, SOME_EOS]),
        scale=st.sampled_from([None, 2.0]),
    )
    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    def test_a_row_is_the_row_alone(self, family, lengths, seed, sampler, cache, eos, scale):
        prompts = [words(n, seed=seed + i) for i, n in enumerate(lengths)]
        options = {"sampler": rule_of(sampler), "max_new_tokens": 8, "block_length": 4, "kv_cache": cache}
        options |= {"eos_token_id": eos, "pad_token_id": PAD, "guidance_scale": scale}
        single = [decode(denoiser_of(family), prompt[None], **options) for prompt in prompts]
        expected = LearnedOrderOutput(
            **{key: torch.cat([out[key] for out in single]) for key in single[0] if key != "sequences"},
            sequences=torch.cat([response(out) for out in single]),
        )
        ids, mask = padded(prompts, "right", 1)
        assert_same_rows(decode(denoiser_of(family), ids, mask, **options), expected)

    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    def test_one_step_a_block_is_exact(self, family, cache):
        options = {"sampler": Always(value=True), "max_new_tokens": 9, "block_length": 3, "guidance_scale": 2.0}
        plain, cached = (decode(denoiser_of(family), words(3, 4), kv_cache=c, **options) for c in (None, cache))
        assert_same_rows(cached, plain)

    @pytest.mark.parametrize(("cache", "expected"), [("prefix", [11, 6, 6, 11, 3, 3]), ("dual", [11, 3, 3, 11, 3, 3])])
    def test_what_is_sent(self, cache, expected):
        options = {"sampler": TopProbSampler(), "max_new_tokens": 6, "block_length": 3}
        with sent(denoiser_of("llama")) as counts:
            decode(denoiser_of("llama"), words(2, 5), kv_cache=cache, **options)
        assert counts == expected
        with sent(denoiser_of("qwen2")) as counts:
            decode(denoiser_of("qwen2"), words(2, 5), kv_cache=cache, **options)
        assert counts == [count if count == 11 else count + 1 for count in expected]

    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    def test_guided_by_the_negative_prompt_alone(self, cache):
        """At scale 0 only the unconditional call counts, and it keeps what stands around its own window."""
        options = {"sampler": TopProbSampler(), "max_new_tokens": 6, "block_length": 3, "kv_cache": cache}
        ids, mask = padded([words(2, seed=7), words(5, seed=8)], "left")
        expected = decode(denoiser_of("llama"), ids, mask, **options)
        negative = {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask, "guidance_scale": 0.0}
        output = decode(denoiser_of("llama"), words(2, 4), **negative, **options)
        assert response(output).tolist() == response(expected).tolist()
        assert output.order.tolist() == expected.order.tolist()

    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    def test_masks_at_the_end_of_a_prompt_are_a_canvas(self, cache):
        options = {"sampler": TopProbSampler(), "block_length": 3, "kv_cache": cache}
        behind = decode(denoiser_of("qwen2"), words(2, 6), max_new_tokens=6, **options)
        within = torch.cat([words(2, 6), torch.full((2, 6), MASK)], 1)
        output = decode(denoiser_of("qwen2"), within, infill=True, **options)
        assert output.sequences.tolist() == behind.sequences.tolist()


@functools.cache
def unwritten() -> Denoiser:
    """Remote code that reads a cache and is not told to write to it."""
    family = Family(attention="4d", block_size=BLOCK, head_input=True)
    return Denoiser(stand_in("SDARForCausalLM", block_size=BLOCK).double(), mask_token_id=MASK, family=family)


@pytest.mark.parametrize(
    ("denoiser", "options", "message"),
    [
        (
            lambda: denoiser_of("llama"),
            {"kv_cache": "all"},
            "kv_cache must be None or one of exact, prefix, dual, got 'all'",
        ),
        (
            lambda: denoiser_of("llama"),
            {"kv_cache": True},
            "kv_cache must be None or one of exact, prefix, dual, got True",
        ),
        (
            lambda: denoiser_of("llama"),
            {"kv_cache": "exact", "block_length": 4},
            "kv_cache must be None, prefix or dual with LlamaForCausalLM, which attends in both directions, got 'exact'",  # noqa: E501
        ),
        (
            lambda: block_denoiser("llama"),
            {"kv_cache": "dual"},
            "kv_cache must be None or exact with LlamaForCausalLM, which is block-causal, got 'dual'",
        ),
        (
            lambda: denoiser_of("llama"),
            {"kv_cache": "prefix"},
            "block_length must be given with kv_cache='prefix', got None",
        ),
        *(
            (
                lambda family=family: denoiser_of(family),
                {"kv_cache": "prefix", "block_length": 4},
                f"kv_cache must be None with {name}, got 'prefix': it takes no keys and values",
            )
            for family, name in (("bert", "BertForMaskedLM"), ("modernbert", "ModernBertForMaskedLM"))
        ),
        (
            lambda: block_denoiser("LLaDA2MoeModelLM"),
            {"kv_cache": "exact"},
            "kv_cache must be None with LLaDA2MoeModelLM, got 'exact': it takes no keys and values",
        ),
        (
            unwritten,
            {"kv_cache": "exact"},
            "kv_cache must be None with SDARForCausalLM: it did not write the keys and values .* "
            r"\(use_cache=True\)",
        ),
    ],
)
def test_bad_input(denoiser, options, message):
    with pytest.raises(ValueError, match=message):
        decode(denoiser(), words(1, 5), sampler=TopProbSampler(), max_new_tokens=8, **options)


def test_a_layer_that_writes_only_some_of_what_it_got():
    model = stand_in("SDARForCausalLM", block_size=BLOCK).double()
    trunk = model.trunk

    def forgetful(ids, mask, positions, cache):
        part = torch.zeros(len(ids), 2, ids.shape[1] - 1, 16)
        cache.update(part, part, 2)
        return trunk(ids, mask, positions, cache)

    model.trunk = forgetful
    with pytest.raises(ValueError, match="kv_cache must be None with SDARForCausalLM: it did not write"):
        decode(
            Denoiser(model, mask_token_id=MASK),
            words(1, 5),
            sampler=TopProbSampler(),
            max_new_tokens=8,
            kv_cache="exact",
        )


def test_published_families_say_what_they_take():
    assert FAMILIES["SDARForCausalLM"].cache == "store_kv"
    assert FAMILIES["Fast_dLLM_QwenForCausalLM"].cache == "update_past_key_values"
    own = "ExactChainForMaskedLM"  # of an example that another test may have imported
    assert [name for name, family in FAMILIES.items() if not family.takes_cache and name != own] == [
        "roberta", "xlm-roberta", "LLaDAMoEModelLM", "LLaDA2MoeModelLM", "MDLM",
    ]  # fmt: skip


@pytest.mark.parametrize("cache", ["prefix", "dual", "exact"])
def test_steps_do_not_wait_for_the_device_longer(cache):
    denoiser, counts = block_denoiser("llama") if cache == "exact" else denoiser_of("llama"), []
    for steps in (4, 6):
        options = {"max_new_tokens": 8, "max_denoising_steps": steps, "block_length": 4}
        with Watch() as watch:
            decode(denoiser, words(2, 4), sampler=TopProbSampler(), kv_cache=cache, **options)
        assert watch.counts.pop("nonzero") == 3 * (2 + steps)  # as without a cache, once more for each block
        counts.append(watch.counts)
    assert counts[0] == counts[1]


class TestSetting:
    def test_saved_and_loaded(self, tmp_path):
        model = attach(tiny_model("llama"), mask_token_id=MASK)
        model.generation_config.update(
            max_new_tokens=12, block_length=4, kv_cache="dual", sampler_config={"sampler": "top_prob"},
            allow_custom_entries=True,
        )  # fmt: skip
        model.save_pretrained(tmp_path)
        loaded = attach(type(tiny_model("llama")).from_pretrained(tmp_path, dtype=torch.float64), mask_token_id=MASK)
        expected = model.generate(words(2, 5), return_dict_in_generate=True)
        with sent(Denoiser(loaded, mask_token_id=MASK)) as counts:
            output = loaded.generate(words(2, 5), return_dict_in_generate=True)
        assert counts == [17, 4, 4, 4] * 3
        assert_same_rows(output, expected)
        plain = loaded.generate(words(2, 5), block_length=12, return_dict_in_generate=True, output_order=False)
        assert plain.sequences.shape == (2, 17)
        # settings saved for a canvas do not hold for masks within a prompt
        ids = words(1, 6)
        ids[0, 3] = MASK
        loaded.generate(ids, infill=True)

    def test_without_attach(self):
        model, options = tiny_model("llama"), {"max_new_tokens": 12, "block_length": 4, "kv_cache": "prefix"}
        expected = attach(tiny_model("llama"), mask_token_id=MASK).generate(words(2, 5), sampler="top_prob", **options)
        with sent(Denoiser(model, mask_token_id=MASK)) as counts:
            output = model.generate(words(2, 5), custom_generate=TopProbSampler(), mask_token_id=MASK, **options)
        assert output.tolist() == expected.tolist()
        assert counts == [17, 12, 12, 12, 17, 8, 8, 8, 17, 4, 4, 4]
