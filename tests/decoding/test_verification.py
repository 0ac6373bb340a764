"""A verified decoding is the slow rule's own, token for token and step for step, in fewer calls; what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EOS, MASK, PAD, tiny_model
from problems import ExactCopy
from test_attach import attached, generated
from test_block_causal import denoiser_of as block_denoiser
from test_causal_context import denoiser as causal_denoiser
from test_loop import (
    DETERMINISTIC,
    FAMILIES,
    SOME_EOS,
    Always,
    Recorder,
    Remembers,
    denoiser_of,
    padded,
    response,
    scorer_of,
    words,
)
from test_streaming import Collector
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.base import Proposal, Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.remasking import WINOSampler
from hf_learned_order.decoding.samplers.scheduled import IIDSampler, LeftToRightSampler, TopProbSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.decoding.verification import branches

SLOW = [rule for rule in DETERMINISTIC if not (rule.remasks or rule.is_random or rule.needs_attentions)]
SLOW += [Remembers(), Always(value=False), Always(value=True)]
DRAFTERS = [*map(make_sampler, ("top_prob", "margin", "left_to_right", "position", "random")), "regret", "non_empty"]


def drafter_of(name, family: str):
    return LearnedOrderSampler(scorer=scorer_of(family, name)) if isinstance(name, str) else name


def assert_verified(denoiser, ids, mask=None, *, sampler, verify, count=None, **options):
    """Both decodings agree in everything but the calls; returns (verified, slow)."""
    slow = decode(denoiser, ids, mask, sampler=verify, **options)
    got = decode(denoiser, ids, mask, sampler=sampler, verify=verify, num_assistant_tokens=count, **options)
    for name in ("sequences", "order", "length"):
        assert got[name].tolist() == slow[name].tolist(), name
    torch.testing.assert_close(got.token_log_probs, slow.token_log_probs)
    assert (got.nfe <= slow.nfe).all()
    assert (got.nfe <= got.canvases).all()
    assert (got.canvases <= (count or 8) * got.nfe).all()
    return got, slow


@st.composite
def tasks(draw):
    """Ragged prompts and options of `decode`."""
    seed = draw(st.integers(0, 9999))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    blocks, size = draw(st.sampled_from([(1, 9), (1, 5), (2, 4), (3, 3), (1, 1)]))
    options = {"max_new_tokens": blocks * size, "block_length": None if blocks == 1 else size}
    options |= {"eos_token_id": draw(st.sampled_from([None, EOS, SOME_EOS])), "pad_token_id": PAD}
    options |= {"guidance_scale": draw(st.sampled_from([None, None, 2.0]))}
    return padded([words(n, seed=seed + i) for i, n in enumerate(lengths)], "left", draw(st.integers(0, 2))), options


# 1,000 ragged batches over the families with `-m slow`, some of them always
@pytest.mark.parametrize("size", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_slow_rules_own_response(family, size):
    @settings(max_examples=-(-size // len(FAMILIES)))
    @given(task=tasks(), verify=st.sampled_from(SLOW), sampler=st.sampled_from(DRAFTERS), count=st.integers(1, 6))
    def check(task, verify, sampler, count):
        (ids, mask), options = task
        sampler = drafter_of(sampler, family)
        assert_verified(denoiser_of(family), ids, mask, sampler=sampler, verify=verify, count=count, **options)

    check()


class TestModes:
    @settings(max_examples=8)
    @given(seed=st.integers(0, 999), cache=st.sampled_from([None, "exact"]), scale=st.sampled_from([None, 2.0]))
    @pytest.mark.parametrize("name", ["llama", "SDARForCausalLM"])
    def test_block_causal_with_an_exact_cache(self, name, seed, cache, scale):
        ids, mask = padded([words(n, seed=seed + n) for n in (2, 6, 3, 1)], "left")
        options = {"kv_cache": cache, "guidance_scale": scale, "max_new_tokens": 11}
        options |= {"eos_token_id": SOME_EOS, "pad_token_id": PAD, "count": 3}
        top = TopProbSampler()
        assert_verified(block_denoiser(name), ids, mask, sampler=top, verify=top, **options)

    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    def test_an_approximate_cache_is_that_of_the_slow_rule(self, cache):
        ids, mask = padded([words(n, seed=n) for n in (2, 6, 3)], "left")
        options = {"kv_cache": cache, "block_length": 5, "max_new_tokens": 10}
        top = TopProbSampler()
        assert_verified(denoiser_of("qwen2"), ids, mask, sampler=top, verify=top, count=4, **options)

    @pytest.mark.parametrize("cache", [None, "exact"])
    def test_a_causal_context(self, cache):
        ids, mask = padded([words(n, seed=n) for n in (2, 6, 3)], "left")
        top = TopProbSampler()
        assert_verified(causal_denoiser(), ids, mask, sampler=top, verify=top, kv_cache=cache, max_new_tokens=10)

    @settings(max_examples=10)
    @given(seed=st.integers(0, 999), block_length=st.sampled_from([None, 3]), verify=st.sampled_from(SLOW))
    @pytest.mark.parametrize("family", ["bert", "qwen2"])
    def test_infilling(self, family, seed, block_length, verify):
        ids, mask = padded([words(n, seed=seed + n) for n in (5, 9, 3)], "right")
        hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
        hidden[:, 0] = False
        hidden[0, 1] = True
        ids = ids.masked_fill(hidden & mask.bool(), MASK)
        assert_verified(
            denoiser_of(family),
            ids,
            mask,
            sampler=TopProbSampler(),
            verify=verify,
            infill=True,
            block_length=block_length,
        )

    def test_a_draft_to_begin_with(self):
        draft = words(2, 8, seed=3).masked_fill(torch.tensor([[1, 0] * 4, [1] * 8]).bool(), MASK)
        top = TopProbSampler()
        assert_verified(denoiser_of("bert"), words(2, 4), sampler=top, verify=top, draft=draft)

    def test_processors_see_what_is_tried(self):
        penalty = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(5.0)])
        top = TopProbSampler()
        options = {"logits_processor": penalty, "max_new_tokens": 9}
        got, _ = assert_verified(denoiser_of("bert"), words(3, 4), sampler=top, verify=top, **options)
        plain = decode(denoiser_of("bert"), words(3, 4), sampler=top, max_new_tokens=9)
        assert response(got).tolist() != response(plain).tolist()

    def test_criteria_end_a_row(self):
        options = {
            "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(max_length=9)]),
            "pad_token_id": PAD,
            "max_new_tokens": 12,
        }
        top = TopProbSampler()
        got, _ = assert_verified(denoiser_of("bert"), words(3, 4), sampler=top, verify=top, **options)
        assert got.length.tolist() == [5, 5, 5]

    @pytest.mark.parametrize("block_length", [None, 3])
    def test_a_streamer_gets_final_tokens_only(self, block_length):
        streamer, top = Collector(), TopProbSampler()
        options = {"verify": top, "max_new_tokens": 9, "block_length": block_length, "eos_token_id": SOME_EOS}
        output = decode(denoiser_of("bert"), words(3, 4), sampler=top, streamer=streamer, pad_token_id=PAD, **options)
        seen = torch.cat(streamer.blocks, 1)
        assert torch.equal(seen, output.sequences[:, : seen.shape[1]])
        assert streamer.ended == 1


def test_branches_by_hand():
    assert branches(8) == [(0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (2, 1), (1, 2), (4, 0)]
    assert branches(1) == [(0, 0)]


class TestCalls:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 20])
    def test_of_a_draft_that_is_always_right(self, count):
        """One call begins, then each confirms as many tokens as it has canvases of the chain."""
        denoiser, rule = ExactCopy(9), LeftToRightSampler()
        prompt = torch.arange(9).repeat(2, 1)
        got, slow = assert_verified(denoiser, prompt, sampler=rule, verify=rule, count=count, max_new_tokens=9)
        assert slow.nfe.tolist() == [9, 9] == slow.canvases.tolist()
        chain = sum(d == 0 for _, d in branches(count))
        assert got.nfe.tolist() == [1 + -(-8 // chain)] * 2
        if count <= 3:
            assert got.canvases.tolist() == [9, 9]  # a full canvas is not looked at

    def test_two_that_come_in_the_other_order(self):
        """The draft has 1 before 2, 3 before 4, ...; the slow rule has not. A canvas beside the chain catches that."""

        class Swapped(Sampler):
            def preference(self, step):
                return -torch.tensor([0.0, 2, 1, 4, 3, 6, 5, 8, 7]).expand(step.masked.shape)

        options = {"sampler": Swapped(), "verify": LeftToRightSampler(), "max_new_tokens": 9}
        prompt = torch.arange(9)[None]
        chain, _ = assert_verified(ExactCopy(9), prompt, count=3, **options)
        branched, _ = assert_verified(ExactCopy(9), prompt, count=4, **options)
        assert (chain.nfe.item(), branched.nfe.item()) == (6, 5)

    def test_of_a_draft_that_is_always_wrong(self):
        class FromTheRight(Sampler):
            def preference(self, step):
                return torch.arange(9.0).expand(step.masked.shape)

        options = {"sampler": FromTheRight(), "verify": LeftToRightSampler(), "max_new_tokens": 9}
        got, _ = assert_verified(ExactCopy(9), torch.arange(9)[None], count=3, **options)
        assert got.nfe.tolist() == [9]

    def test_counted_as_they_are_made(self):
        denoiser, top = Recorder(denoiser_of("bert")), TopProbSampler()
        ids, mask = padded([words(n, seed=n) for n in (2, 6, 3)], "left")
        options = {"verify": top, "num_assistant_tokens": 3, "max_new_tokens": 12, "eos_token_id": SOME_EOS}
        output = decode(denoiser, ids, mask, sampler=top, **options)
        calls = [canvas for canvas in denoiser.canvases if canvas.shape[1] == 12]  # not those that look for padding
        assert len(calls) == output.nfe.max()
        assert sum(map(len, calls)) == output.canvases.sum()
        assert len({tuple(row) for row in calls[1].tolist()}) == 9
        guided = decode(denoiser, ids, mask, sampler=top, guidance_scale=2.0, **options)
        assert (guided.nfe % 2 == 0).all()
        assert (guided.canvases % 2 == 0).all()

    def test_with_one_canvas_nothing_is_drafted(self):
        top = TopProbSampler()
        got, slow = assert_verified(
            denoiser_of("bert"), words(3, 4), sampler=top, verify=top, count=1, max_new_tokens=9
        )
        assert got.nfe.tolist() == slow.nfe.tolist() == got.canvases.tolist()

    def test_the_drafter_decides_what_is_tried(self):
        seen = {}
        for name, sampler in (("confidence", TopProbSampler()), ("left", LeftToRightSampler())):
            denoiser = Recorder(denoiser_of("bert"))
            options = {"verify": TopProbSampler(), "num_assistant_tokens": 3, "max_new_tokens": 9}
            decode(denoiser, words(1, 4), sampler=sampler, **options)
            seen[name] = denoiser.canvases[1]
        first, *more = seen["left"]
        assert first.tolist() == seen["confidence"][0].tolist()
        left = [i for i, token in enumerate(first.tolist()) if token == MASK]
        for number, canvas in enumerate(more, 1):
            assert [i for i, token in enumerate(canvas.tolist()) if token == MASK] == left[number:]
        assert seen["left"].tolist() != seen["confidence"].tolist()


class TestGenerate:
    def test_is_the_rules_own(self):
        model = attached(scorer=True)
        slow = generated(model, "margin", max_denoising_steps=None)
        got = generated(model, "learned_order", verify="margin", num_assistant_tokens=4, max_denoising_steps=None)
        for name in ("sequences", "order", "length"):
            assert got[name].tolist() == slow[name].tolist()
        assert got.canvases.sum() > got.nfe.sum()

    def test_saved_settings(self):
        model = attached()
        model.generation_config.num_assistant_tokens = 3  # of another decoding, as long as nothing is verified
        assert (generated(model).canvases == generated(model).nfe).all()
        model.generation_config.verify = "top_prob"
        model.generation_config.max_denoising_steps = 2  # not that of the slow rule
        got = generated(model, max_denoising_steps=None)
        assert (got.nfe < got.canvases).any()
        assert (got.canvases <= 3 * got.nfe).all()

    def test_without_attach(self):
        model = tiny_model("llama")
        options = {"mask_token_id": MASK, "max_new_tokens": 6, "return_dict_in_generate": True}
        slow, got = (
            model.generate(words(2, 4), custom_generate=TopProbSampler(), **more, **options)
            for more in ({}, {"verify": "top_prob"})
        )
        assert got.sequences.tolist() == slow.sequences.tolist()
        assert (got.nfe <= slow.nfe).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"verify": "iid"}, "verify must be a rule that neither draws, nor remasks, nor is learned.*got 'iid'"),
            ({"verify": "wino"}, "verify must be a rule that .*got 'wino'"),
            ({"verify": "learned_order"}, "verify must be a rule that .*got 'learned_order'"),
            ({"verify": "fast"}, "verify must be a rule that .*top_prob.*got 'fast'"),
            ({"verify": "top_prob", "do_sample": True}, "temperature must be 0 with verify, got 1.0"),
            ({"verify": "top_prob"}, "max_denoising_steps must be None with verify"),
            ({"num_assistant_tokens": 4}, "num_assistant_tokens must not be set without verify, got 4"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(ValueError, match=message):
            generated(attached(), **options)

    def test_a_configuration_may_name_it(self):
        config = GenerationConfig(verify="top_prob", num_assistant_tokens=2)
        got = generated(attached(), generation_config=config, max_denoising_steps=None)
        assert (got.canvases > got.nfe).any()


class Hidden(Sampler):
    needs_hidden_states = True

    def propose(self, step, state):
        return Proposal(step.masked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": IIDSampler()}, "verify must be a rule that draws nothing, got IIDSampler"),
        ({"verify": WINOSampler()}, "verify must not remask in a verified decoding, got WINOSampler"),
        ({"sampler": WINOSampler()}, "sampler must not remask in a verified decoding, got WINOSampler"),
        ({"verify": Hidden()}, "verify must be a rule that looks at predictions only, got Hidden"),
        ({"temperature": 0.5}, "temperature must be 0 with verify, got 0.5"),
        ({"num_assistant_tokens": 0}, "num_assistant_tokens must be a positive integer, got 0"),
        ({"verify": None, "num_assistant_tokens": 4}, "num_assistant_tokens must be None without verify, got 4"),
        ({"max_denoising_steps": 4}, "max_denoising_steps must be None with verify"),
        ({"clean": words(2, 6)}, "clean must be None with verify"),
    ],
)
def test_bad_input(options, message):
    options = {"sampler": ThresholdSampler(), "verify": TopProbSampler(), "max_new_tokens": 6, **options}
    with pytest.raises(ValueError, match=message):
        decode(denoiser_of("bert"), words(2, 4), **options)
