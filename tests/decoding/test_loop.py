"""The decoding loop: rows do not depend on their batch, the laws of the loop, EOS, scoring, seeds, bad input."""

import collections
import copy
import functools
import itertools
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DECODERS, EOS, FAMILIES, MASK, MAX_LENGTH, PAD, PLAIN, VOCAB, WORDS, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import (
    EntropyBoundSampler,
    FactorSampler,
    KLASSSampler,
    ThresholdSampler,
)
from hf_learned_order.decoding.samplers.base import Proposal, Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.remasking import ReMDMSampler, WINOSampler
from hf_learned_order.decoding.samplers.scheduled import IIDSampler, RandomSampler, TopProbSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers import predictions
from hf_learned_order.denoisers.attention import heeds_padding
from hf_learned_order.denoisers.calls import predict
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.orders.scorer import OrderScorer

RANDOM_NAMES = ("iid", "random", "random_sizes", "remdm")  # a new rule that draws has to be named here
DETERMINISTIC = [
    *(make_sampler(name) for name in PLAIN if name not in (*RANDOM_NAMES, "learned_order")),
    ThresholdSampler(threshold=0.4),
    EntropyBoundSampler(gamma=3.0),
    FactorSampler(factor=3.0),
    KLASSSampler(threshold=0.3, epsilon=1.0, history=1),
    WINOSampler(draft=0.3, verify=0.5),
]
RANDOM = [*map(make_sampler, RANDOM_NAMES), ReMDMSampler(eta=0.5, confidence=True), ReMDMSampler(eta=0.5)]
FINAL = [sampler for sampler in [*DETERMINISTIC, *RANDOM] if not sampler.remasks]
REMASKING = [sampler for sampler in [*DETERMINISTIC, *RANDOM] if sampler.remasks]
SOME_EOS = [EOS, *WORDS[::3]]  # many, so that short responses are common


@dataclass(frozen=True, kw_only=True)
class Always(Sampler):
    """Proposes every position, or none, eligible or not."""

    value: bool

    def propose(self, step, state):
        return Proposal(torch.full_like(step.masked, self.value))


@dataclass(frozen=True, kw_only=True)
class Remembers(Sampler):
    """Unmasks, at step k, the k positions from the one that it saw as the surest at the first step, around the end."""

    def init_state(self, step):
        return step.predictions.confidence.argmax(-1), torch.zeros(len(step.masked), dtype=torch.long)

    def propose(self, step, state):
        first, calls = state
        distance = (torch.arange(step.masked.shape[1]) - first[:, None]) % step.masked.shape[1]
        return Proposal(distance < (calls[:, None] + 1) * (calls[:, None] + 2) // 2, (first, calls + 1))


@dataclass(frozen=True, kw_only=True)
class Remasks(Sampler):
    """Unmasks the surest position and asks to mask every position again, the masked ones too; or none, with `given`."""

    remasks = True
    given: bool = True

    def propose(self, step, state):
        nothing = torch.zeros_like(step.masked)
        return Proposal(nothing, remask=torch.ones_like(nothing) if self.given else None)


@dataclass(frozen=True, kw_only=True)
class RemasksOnce(Sampler):
    """Two positions a step from the left; what steps 1 and 2 unmasked at even places is masked again at step 3."""

    remasks = True

    def init_state(self, step):
        return (torch.ones(len(step.masked), dtype=torch.long),)

    def propose(self, step, state):
        (number,) = state
        even = torch.arange(step.masked.shape[1]) % 2 == 0
        remask = (number == 3)[:, None] & even & ~step.masked
        return Proposal(step.masked & (step.masked.cumsum(-1) <= 2), (number + 1,), remask)


class Recorder(Denoiser):
    """Keeps the canvas of each call."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser.model, mask_token_id=denoiser.mask_token_id)
        heeds_padding(denoiser)  # the model is asked once, by calls that are none of a decoding
        self.canvases: list[Tensor] = []

    def forward(self, input_ids, attention_mask, start, **kwargs):
        self.canvases.append(input_ids[:, start:].clone())
        return super().forward(input_ids, attention_mask, start, **kwargs)


@functools.cache
def denoiser_of(family: str) -> Denoiser:
    return Denoiser(tiny_model(family), mask_token_id=MASK)


@functools.cache
def scorer_of(family: str, law: str = "non_empty", hidden_layers: list[int] | None = None) -> OrderScorer:
    torch.manual_seed(0)
    denoiser, shape = denoiser_of(family), {"hidden_size": 8, "num_attention_heads": 2, "hidden_layers": hidden_layers}
    scorer = OrderScorer.for_denoiser(denoiser, law=law, bound=1.0, pair_weight=1.0, **shape).eval()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return scorer


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(WORDS.start, WORDS.stop, shape, generator=torch.Generator().manual_seed(seed))


def padded(prompts: list[Tensor], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged prompts as `input_ids`, `attention_mask`, at least `extra` padding in each row."""
    width = max(map(len, prompts)) + extra
    ids, mask = torch.full((len(prompts), width), PAD), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids[row, where], mask[row, where] = prompt, 1
    return ids, mask


def response(output: LearnedOrderOutput) -> Tensor:
    return output.sequences[:, -output.order.shape[1] :]


def assert_same_rows(got: LearnedOrderOutput, expected: LearnedOrderOutput) -> None:
    assert response(got).tolist() == response(expected).tolist()
    assert got.order.tolist() == expected.order.tolist()
    assert got.nfe.tolist() == expected.nfe.tolist()
    assert got.length.tolist() == expected.length.tolist()
    assert got.tokens_per_forward.tolist() == expected.tokens_per_forward.tolist()
    torch.testing.assert_close(got.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(got.token_log_probs, expected.token_log_probs)


def first_eos(row: list[int], eos: list[int]) -> int:
    """Index of the first EOS, the length of the row where there is none."""
    return next((i for i, token in enumerate(row) if token in eos), len(row))


@st.composite
def tasks(draw):
    """Ragged prompts and options of `decode`."""
    seed = draw(st.integers(0, 9999))
    lengths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    canvas = draw(st.integers(1, 8))
    return [words(n, seed=seed + i) for i, n in enumerate(lengths)], {
        "max_new_tokens": canvas,
        "max_denoising_steps": draw(st.one_of(st.none(), st.integers(1, canvas + 2))),
        "eos_token_id": draw(st.sampled_from([None, EOS, SOME_EOS])),
        "pad_token_id": draw(st.sampled_from([None, PAD])),
    }


# 1,000 ragged batches over the families: 500 tasks, padded on either side
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=-(-500 // len(FAMILIES)))
@given(
    task=tasks(),
    sampler=st.sampled_from([*DETERMINISTIC, "regret"]),
    extra=st.integers(0, 3),
    blocks=st.sampled_from([1, 1, 2, 3]),
)
def test_a_row_does_not_depend_on_its_batch_nor_on_padding(family, task, sampler, extra, blocks):
    prompts, options = task
    length, budget = options["max_new_tokens"], options["max_denoising_steps"] or blocks
    if length % blocks == 0 and budget >= blocks:
        options |= {"block_length": length // blocks}
    denoiser = denoiser_of(family)
    if sampler == "regret":  # the learned law without chance
        sampler = LearnedOrderSampler(scorer=scorer_of(family, "regret"))
    single = [decode(denoiser, prompt[None], sampler=sampler, **options) for prompt in prompts]
    expected = LearnedOrderOutput(
        **{name: torch.cat([out[name] for out in single]) for name in single[0] if name != "sequences"},
        sequences=torch.cat([response(out) for out in single]),
    )
    for side in ("left", "right"):
        ids, mask = padded(prompts, side, extra)
        output = decode(denoiser, ids, mask, sampler=sampler, **options)
        assert_same_rows(output, expected)
        assert output.sequences[:, : ids.shape[1]].tolist() == ids.tolist()


@settings(max_examples=100)
@given(
    task=tasks(),
    sampler=st.sampled_from([*FINAL, Always(value=True), Always(value=False), "learned_order", "greedy"]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
    family=st.sampled_from(["bert", "qwen2"]),
)
def test_laws_of_the_loop(task, sampler, temperature, seed, family):
    prompts, options = task
    denoiser = Recorder(denoiser_of(family))
    if isinstance(sampler, str):
        sampler = LearnedOrderSampler(scorer=scorer_of(family), greedy=sampler == "greedy")
    ids, mask = padded(prompts, "left")
    generator = torch.Generator().manual_seed(seed)
    output = decode(denoiser, ids, mask, sampler=sampler, temperature=temperature, generator=generator, **options)
    eos = torch.tensor(options["eos_token_id"] or []).reshape(-1).tolist()
    budget, length = options["max_denoising_steps"] or options["max_new_tokens"], options["max_new_tokens"]

    # how many rows each call was made for is what nfe says
    assert [len(canvas) for canvas in denoiser.canvases] == [
        int((output.nfe >= call).sum()) for call in range(1, int(output.nfe.max()) + 1)
    ]
    assert output.sequences[:, : ids.shape[1]].tolist() == ids.tolist()
    assert MASK not in response(output)
    for row in range(len(prompts)):
        tokens, order, nfe = response(output)[row].tolist(), output.order[row].tolist(), int(output.nfe[row])
        end = first_eos(tokens, eos)
        # something at each step, and nothing behind the last one
        assert set(order) - {0} == set(range(1, nfe + 1))
        assert nfe <= min(budget, length)
        assert 0 not in order[: end + 1]
        assert set(tokens[end + 1 :]) <= {eos[0] if eos and options["pad_token_id"] is None else PAD}
        assert output.length[row] == min(end + 1, length)
        assert output.tokens_per_forward[row].item() == pytest.approx(min(end + 1, length) / nfe)

        canvases = [c[int((output.nfe[:row] > call).sum())].tolist() for call, c in enumerate(denoiser.canvases[:nfe])]
        for call, canvas in enumerate(canvases):
            # masked exactly where the order says so: every position is written once, at its step
            assert [token == MASK for token in canvas] == [step == 0 or step > call for step in order]
            seen = first_eos(canvas, eos)
            assert seen == length or MASK in canvas[:seen], "finished, but called"
            written = [i for i in range(min(end + 1, length)) if canvas[i] != MASK]
            assert [canvas[i] for i in written] == [tokens[i] for i in written]


@settings(max_examples=60)
@given(
    task=tasks(),
    sampler=st.sampled_from([*REMASKING, Remasks(), RemasksOnce()]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
)
def test_laws_of_the_loop_with_rules_that_remask(task, sampler, temperature, seed):
    prompts, options = task
    denoiser = Recorder(denoiser_of("bert"))
    ids, mask = padded(prompts, "left")
    generator = torch.Generator().manual_seed(seed)
    output = decode(denoiser, ids, mask, sampler=sampler, temperature=temperature, generator=generator, **options)
    eos = torch.tensor(options["eos_token_id"] or []).reshape(-1).tolist()
    budget, length = options["max_denoising_steps"] or options["max_new_tokens"], options["max_new_tokens"]
    assert [len(canvas) for canvas in denoiser.canvases] == [
        int((output.nfe >= call).sum()) for call in range(1, int(output.nfe.max()) + 1)
    ]
    assert output.sequences[:, : ids.shape[1]].tolist() == ids.tolist()
    assert MASK not in response(output)
    for row in range(len(prompts)):
        tokens, order, nfe = response(output)[row].tolist(), output.order[row].tolist(), int(output.nfe[row])
        end = first_eos(tokens, eos)
        assert max(order) == nfe <= budget
        assert 0 not in order[: end + 1]
        canvases = [c[int((output.nfe[:row] > call).sum())].tolist() for call, c in enumerate(denoiser.canvases[:nfe])]
        for before, after in itertools.pairwise([*canvases, tokens]):
            seen = first_eos(before, eos)
            assert seen == length or MASK in before[:seen], "finished, but called"
            written = [i for i in range(length) if before[i] == MASK != after[i]]
            assert written, "each step unmasks something"
            kept = [i for i in range(min(end + 1, length)) if MASK not in (before[i], after[i])]
            assert [before[i] for i in kept] == [after[i] for i in kept], "a token changes by way of the mask only"
        for i in range(min(end + 1, length)):
            # the order is the step after the last canvas with a mask here
            assert order[i] == max(call for call, canvas in enumerate(canvases, 1) if canvas[i] == MASK)


@pytest.mark.parametrize("family", ["bert", "llama", "qwen2"])
def test_one_token_a_step_is_the_obvious_decoder(family):
    denoiser, prompt, length = denoiser_of(family), words(1, 5), 9

    tokens, order = [MASK] * length, [0] * length
    for step in range(1, length + 1):
        ids = torch.cat([prompt, torch.tensor([tokens])], 1)
        see_all = {"attention_mask": torch.ones(1, 1, 14, 14, dtype=torch.bool)} if family in DECODERS else {}
        with torch.no_grad():
            logits = denoiser.model(input_ids=ids, **see_all).logits[0]
        logits[:, MASK] = -torch.inf
        probs = logits[4:13] if family == "qwen2" else logits[5:]
        confidence, best = probs.softmax(-1).max(-1)
        i = max((i for i in range(length) if tokens[i] == MASK), key=lambda i: confidence[i].item())
        tokens[i], order[i] = int(best[i]), step

    output = decode(denoiser, prompt, sampler=TopProbSampler(), max_new_tokens=length)
    assert response(output)[0].tolist() == tokens
    assert output.order[0].tolist() == order
    assert output.nfe.tolist() == [length]


def test_the_last_step_takes_what_is_left():
    output = decode(
        denoiser_of("bert"), words(2, 3), sampler=Always(value=False), max_new_tokens=8, max_denoising_steps=3
    )
    for order in output.order.tolist():
        assert sorted(order) == [1, 2, 3, 3, 3, 3, 3, 3]


def test_one_step_takes_everything():
    output = decode(
        denoiser_of("bert"), words(2, 3), sampler=Always(value=False), max_new_tokens=8, max_denoising_steps=1
    )
    assert output.order.unique().tolist() == [1]
    assert output.tokens_per_forward.tolist() == [8.0, 8.0]


def test_a_rule_that_takes_everything_needs_one_call():
    output = decode(denoiser_of("bert"), words(2, 3), sampler=Always(value=True), max_new_tokens=8)
    assert output.nfe.tolist() == [1, 1]


def test_a_rule_that_takes_nothing_gets_the_most_confident_position():
    expected = decode(denoiser_of("bert"), words(2, 3), sampler=TopProbSampler(), max_new_tokens=8)
    output = decode(denoiser_of("bert"), words(2, 3), sampler=Always(value=False), max_new_tokens=8)
    assert_same_rows(output, expected)


def test_a_state_follows_its_row():
    """Rows leave the batch at different steps, each with its own state."""
    output = decode(denoiser_of("bert"), words(12, 3), sampler=Remembers(), max_new_tokens=12, eos_token_id=SOME_EOS)
    assert len(output.nfe.unique()) > 2
    for row, prompt in enumerate(words(12, 3)):
        predictions, _ = predict(
            denoiser_of("bert"), prompt[None], torch.ones(1, 3).long(), torch.full((1, 12), MASK), hidden_states=False
        )
        first = int(predictions.confidence.argmax())
        # 1, then 2, then 3 positions, ...
        walk = [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5]
        expected = [walk[(i - first) % 12] for i in range(12)]
        assert output.order[row].tolist() == [step if step <= output.nfe[row] else 0 for step in expected]


def test_one_sampler_serves_two_generations_at_once():
    class Interrupted(Denoiser):
        """Runs another generation with the same sampler before each call."""

        def forward(self, *args, **kwargs):
            decode(denoiser_of("bert"), words(3, 4, seed=8), sampler=sampler, max_new_tokens=12)
            return super().forward(*args, **kwargs)

    for sampler in (Remembers(), RemasksOnce()):
        denoiser = denoiser_of("bert")
        expected = decode(denoiser, words(3, 4), sampler=sampler, max_new_tokens=12)
        interrupted = Interrupted(denoiser.model, mask_token_id=MASK)
        assert_same_rows(decode(interrupted, words(3, 4), sampler=sampler, max_new_tokens=12), expected)


def test_what_a_step_says_of_the_canvas():
    seen: list[Step] = []

    class Watching(Remasks):
        def propose(self, step, state):
            seen.append(step)
            return super().propose(step, state)

    output = decode(
        denoiser_of("bert"), words(2, 3), sampler=Watching(), max_new_tokens=4, max_denoising_steps=4, temperature=1.0
    )
    assert len(seen) == 3
    assert (seen[0].token_log_probs == 0).all()
    for before, after in itertools.pairwise(seen):
        assert torch.equal(after.canvas == MASK, after.masked)
        new = before.masked & ~after.masked
        assert new.sum(-1).tolist() == [1, 1]
        at_new = before.predictions.log_probs.gather(-1, after.canvas[..., None])[..., 0]
        torch.testing.assert_close(after.token_log_probs, at_new.masked_fill(~new, 0.0))
    assert output.nfe.tolist() == [4, 4]


class TestRemasking:
    def test_a_remasked_position_is_decoded_again(self):
        denoiser = Recorder(denoiser_of("bert"))
        output = decode(denoiser, words(1, 3), sampler=RemasksOnce(), max_new_tokens=8)
        # 1 1 2 2 - - - -, then 4 and 5 while 0 and 2 are masked again, and two more steps of two from the left
        assert output.order.tolist() == [[4, 1, 4, 2, 3, 3, 5, 5]]
        assert output.nfe.tolist() == [5]
        assert [(canvas[0] == MASK).tolist() for canvas in denoiser.canvases[3:]] == [
            [True, False, True, False, False, False, True, True],
            [False] * 6 + [True] * 2,
        ]

    def test_the_likelihood_counts_the_last_token_of_a_position_only(self):
        denoiser = Recorder(denoiser_of("bert"))
        output = decode(denoiser, words(1, 3), sampler=RemasksOnce(), max_new_tokens=8)
        total = 0.0
        for number, canvas in enumerate(denoiser.canvases, 1):
            predictions, _ = predict(
                denoiser_of("bert"), words(1, 3), torch.ones(1, 3).long(), canvas, hidden_states=False
            )
            log_prob = predictions.log_prob(response(output))
            total += log_prob[output.order == number].sum().item()
        assert output.log_likelihood.item() == pytest.approx(total, rel=1e-5)

    def test_the_last_step_ends_a_rule_that_would_not(self):
        """Each step unmasks one position and remasks the one before it, never one that is masked or just unmasked."""
        denoiser = Recorder(denoiser_of("bert"))
        output = decode(denoiser, words(2, 3), sampler=Remasks(), max_new_tokens=5, max_denoising_steps=7)
        assert output.nfe.tolist() == [7, 7]
        masked = [(canvas == MASK).sum(-1).tolist() for canvas in denoiser.canvases]
        assert masked == [[5, 5]] + [[4, 4]] * 6
        assert [sorted(order) for order in output.order.tolist()] == [[6, 7, 7, 7, 7]] * 2
        assert MASK not in output.sequences

    def test_steps_are_counted_for_each_row(self):
        options = {"sampler": Remasks(), "max_new_tokens": 3, "max_denoising_steps": 6, "eos_token_id": SOME_EOS}
        output = decode(denoiser_of("bert"), words(24, 3), **options)
        assert {1, 6} <= set(output.nfe.tolist())
        for row, prompt in enumerate(words(24, 3)):
            alone = decode(denoiser_of("bert"), prompt[None], **options)
            assert (alone.nfe.item(), alone.order.tolist()) == (output.nfe[row].item(), [output.order[row].tolist()])

    def test_nothing_to_remask(self):
        expected = decode(denoiser_of("bert"), words(2, 3), sampler=TopProbSampler(), max_new_tokens=8)
        output = decode(denoiser_of("bert"), words(2, 3), sampler=Remasks(given=False), max_new_tokens=8)
        assert_same_rows(output, expected)

    def test_a_rule_that_does_not_say_so_remasks_nothing(self):
        class Silent(RemasksOnce):
            remasks = False

        output = decode(denoiser_of("bert"), words(1, 3), sampler=Silent(), max_new_tokens=8)
        assert output.order.tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]

    def test_no_bound(self):
        with pytest.raises(ValueError, match="sampler must not remask when clean is given, got RemasksOnce"):
            decode(denoiser_of("bert"), words(1, 3), sampler=RemasksOnce(), max_new_tokens=4, clean=words(1, 4))


def test_rows_of_a_batch_need_different_numbers_of_calls():
    rule = ThresholdSampler(threshold=0.6)
    output = decode(denoiser_of("bert"), words(16, 3), sampler=rule, max_new_tokens=8, eos_token_id=SOME_EOS)
    assert len(output.nfe.unique()) > 2
    assert (output.order == 0).any()
    assert output.nfe.tolist() == output.order.amax(-1).tolist()


def test_without_eos_every_position_is_decoded():
    output = decode(denoiser_of("bert"), words(8, 3), sampler=ThresholdSampler(threshold=0.4), max_new_tokens=8)
    assert (output.order > 0).all()
    assert torch.isin(response(output), torch.tensor(SOME_EOS)).any()


def test_default_budget_is_one_step_a_position():
    output = decode(denoiser_of("bert"), words(1, 3), sampler=RandomSampler(), max_new_tokens=6)
    assert sorted(output.order[0].tolist()) == [1, 2, 3, 4, 5, 6]


def test_integers_of_either_width():
    expected, output = (
        decode(denoiser_of("bert"), words(2, 3).to(dtype), sampler=TopProbSampler(), max_new_tokens=4)
        for dtype in (torch.long, torch.int)
    )
    assert_same_rows(output, expected)


class TestScoring:
    @settings(max_examples=25)
    @given(task=tasks(), sampler=st.sampled_from(FINAL), seed=st.integers(0, 99))
    @pytest.mark.parametrize("family", ["modernbert", "qwen2"])
    def test_log_likelihood_is_that_of_the_replayed_order(self, family, task, sampler, seed):
        prompts, options = task
        denoiser = denoiser_of(family)
        clean = words(len(prompts), options["max_new_tokens"], seed=seed)
        ids, mask = padded(prompts, "right")
        generator = torch.Generator().manual_seed(seed)
        output = decode(denoiser, ids, mask, sampler=sampler, clean=clean, generator=generator, **options)
        eos = torch.tensor(options["eos_token_id"] or []).reshape(-1).tolist()
        for row, prompt in enumerate(prompts):
            order, terms = output.order[row], [0.0] * len(clean[row])
            for number in range(1, int(output.nfe[row]) + 1):
                done = (order > 0) & (order < number)
                canvas = torch.where(done, clean[row], torch.tensor(MASK))
                joined = torch.cat([prompt, canvas])[None]
                with torch.no_grad():
                    logits = denoiser(joined, torch.ones_like(joined), len(prompt))[0][0].float()
                logits[:, MASK] = -torch.inf
                for i in (order == number).nonzero().flatten().tolist():
                    terms[i] = logits.log_softmax(-1)[i, clean[row, i]].item()
            assert output.token_log_probs[row].tolist() == pytest.approx(terms, rel=1e-4, abs=1e-4)
            assert output.log_likelihood[row].item() == pytest.approx(sum(terms), rel=1e-4, abs=1e-4)
            end = first_eos(clean[row].tolist(), eos)
            assert response(output)[row, : end + 1].tolist() == clean[row, : end + 1].tolist()

    def test_scoring_what_was_generated_gives_the_same_order(self):
        options = {"sampler": EntropyBoundSampler(gamma=2.0), "max_new_tokens": 8}
        output = decode(denoiser_of("bert"), words(3, 4), **options)
        assert_same_rows(decode(denoiser_of("bert"), words(3, 4), clean=response(output), **options), output)


class TestSeeds:
    @pytest.mark.parametrize("sampler", [IIDSampler(), RandomSampler()], ids=["iid", "random"])
    def test_random_rules(self, sampler):
        first, same, other = (self.decode(seed, sampler=sampler) for seed in (1, 1, 2))
        assert_same_rows(same, first)
        assert first.order.tolist() != other.order.tolist()

    def test_learned_order(self):
        first, same, other = (self.decode(s, sampler=LearnedOrderSampler(scorer=scorer_of("bert"))) for s in (1, 1, 2))
        assert_same_rows(same, first)
        assert first.order.tolist() != other.order.tolist()

    @pytest.mark.parametrize("law", ["non_empty", "max_normalized", "count"])
    def test_the_greedy_learned_order_ignores_it(self, law):
        sampler = LearnedOrderSampler(scorer=scorer_of("bert", law), greedy=True)
        first, other = (self.decode(seed, sampler=sampler) for seed in (1, 2))
        assert_same_rows(other, first)

    def test_drawn_tokens(self):
        first, same, other = (self.decode(seed, sampler=TopProbSampler(), temperature=1.0) for seed in (1, 1, 2))
        assert_same_rows(same, first)
        assert response(first).tolist() != response(other).tolist()

    def test_deterministic_rules_ignore_the_seed(self):
        first, other = (self.decode(seed, sampler=TopProbSampler()) for seed in (1, 2))
        assert_same_rows(other, first)

    def test_a_low_temperature_is_greedy(self):
        expected = self.decode(1, sampler=TopProbSampler())
        assert_same_rows(self.decode(1, sampler=TopProbSampler(), temperature=1e-4), expected)

    def test_the_global_generator_by_default(self):
        torch.manual_seed(5)
        first = self.decode(None, sampler=IIDSampler())
        torch.manual_seed(5)
        assert_same_rows(self.decode(None, sampler=IIDSampler()), first)

    @staticmethod
    def decode(seed: int | None, **options) -> LearnedOrderOutput:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return decode(
            denoiser_of("bert"), words(3, 4), max_new_tokens=12, max_denoising_steps=5, generator=generator, **options
        )


class TestBadInput:
    @pytest.mark.parametrize(
        ("ids", "got"),
        [
            (torch.zeros(1, 3), r"torch.float32 \(1, 3\)"),
            (torch.zeros(3, dtype=torch.long), r"torch.int64 \(3,\)"),
            ([[4, 5]], "list"),
        ],
    )
    def test_input_ids(self, ids, got):
        with pytest.raises(TypeError, match=rf"input_ids must be an integer tensor \[batch, prompt\], got {got}"):
            self.decode(ids)

    def test_attention_mask(self):
        with pytest.raises(ValueError, match=r"attention_mask must have the shape of input_ids \(1, 3\), got \(1, 4\)"):
            self.decode(words(1, 3), torch.ones(1, 4))

    @pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
    def test_attention_mask_of_other_numbers(self, value):
        mask = torch.tensor([[1, 1, 1], [0, value, 1]])
        with pytest.raises(ValueError, match=rf"^attention_mask must hold 0 and 1 only, got {value}"):
            self.decode(words(2, 3), mask)
        with pytest.raises(ValueError, match=rf"negative_prompt_attention_mask must hold 0 and 1 only, got {value}"):
            self.decode(
                words(2, 3),
                guidance_scale=2.0,
                negative_prompt_ids=words(2, 3),
                negative_prompt_attention_mask=mask,
            )

    def test_attention_mask_of_another_type(self):
        with pytest.raises(TypeError, match="attention_mask must be a tensor, got list"):
            self.decode(words(2, 3), [[1, 1, 1], [0, 1, 1]])

    @pytest.mark.parametrize("kind", [torch.bool, torch.int, torch.long, torch.float, torch.half])
    @pytest.mark.parametrize("family", ["bert", "llama"])
    def test_attention_mask_of_any_dtype(self, kind, family):
        ids, mask = words(2, 3), torch.tensor([[1, 1, 1], [0, 1, 1]])
        assert_same_rows(self.decode(ids, mask.to(kind), family=family), self.decode(ids, mask, family=family))

    @pytest.mark.parametrize("value", [0, -1, True, 2.0, "8"])
    @pytest.mark.parametrize("name", ["max_new_tokens", "max_denoising_steps"])
    def test_counts(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
            self.decode(words(1, 3), **{name: value})

    @pytest.mark.parametrize("token", [-1, -100, VOCAB, 99])
    def test_ids_outside_the_vocabulary(self, token):
        ids = words(2, 3)
        ids[1, 1] = token
        with pytest.raises(ValueError, match=rf"input_ids must hold ids in \[0, {VOCAB}\), got {token}"):
            self.decode(ids)

    def test_a_mask_in_the_prompt(self):
        ids = words(2, 3)
        ids[1, 0] = MASK
        with pytest.raises(ValueError, match="input_ids must not hold the mask token 3 unless infill=True"):
            self.decode(ids)
        self.decode(ids, torch.tensor([[1, 1, 1], [0, 1, 1]]))  # padding may look like it

    def test_nothing_to_put_behind_an_end(self):
        criteria = StoppingCriteriaList([MaxLengthCriteria(5)])
        with pytest.raises(ValueError, match="pad_token_id must be given with stopping_criteria and no eos_token_id"):
            self.decode(words(1, 3), stopping_criteria=criteria)

    @pytest.mark.parametrize("value", [-0.5, float("nan"), True, "hot"])
    def test_temperature(self, value):
        with pytest.raises(ValueError, match=f"temperature must be 0 or more, got {value!r}"):
            self.decode(words(1, 3), temperature=value)

    def test_clean(self):
        with pytest.raises(ValueError, match=r"clean must have the shape \(2, 4\), got \(2, 5\)"):
            self.decode(words(2, 3), max_new_tokens=4, clean=words(2, 5))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draft": words(1, 4)}, r"draft must have the shape \[2, canvas\], got \(1, 4\)"),
            ({"draft": words(2, 4)[0]}, r"draft must have the shape \[2, canvas\], got \(4,\)"),
            ({"draft": words(2, 4), "max_new_tokens": 4}, "max_new_tokens must not be given with a draft, .*, got 4"),
            ({"draft": words(2, 4), "infill": True}, "infill must not be given with a draft, .*, got True"),
            (
                {"draft": words(2, 4), "sampler": WINOSampler(draft=0.3, verify=0.5)},
                "sampler must not remask when a draft is given, got WINOSampler",
            ),
        ],
    )
    def test_draft(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.decode(words(2, 3), **{"max_new_tokens": None, **options})

    @pytest.mark.parametrize("family", FAMILIES)
    def test_too_long(self, family):
        prompt = words(1, 3)
        message = (
            rf"the prompt and max_new_tokens must fit the model's {MAX_LENGTH} positions, got 3 \+ {MAX_LENGTH - 2}"
        )
        with pytest.raises(ValueError, match=message):
            self.decode(prompt, family=family, max_new_tokens=MAX_LENGTH - 2)
        longest = self.decode(prompt, family=family, max_new_tokens=MAX_LENGTH - 3, max_denoising_steps=1)
        assert longest.sequences.shape == (1, MAX_LENGTH)

    def test_a_shifted_model_needs_a_prompt(self):
        mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
        with pytest.raises(ValueError, match="each prompt must have at least one token"):
            self.decode(words(2, 3), mask, family="qwen2")

    @pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
    def test_other_models_need_no_prompt(self, family):
        expected = self.decode(torch.zeros(1, 0, dtype=torch.long), family=family)
        assert expected.sequences.shape == (1, 4)
        output = self.decode(words(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), family=family)
        assert response(output)[1].tolist() == response(expected)[0].tolist()

    @staticmethod
    def decode(ids, mask=None, *, family="bert", **options) -> LearnedOrderOutput:
        return decode(denoiser_of(family), ids, mask, **{"sampler": TopProbSampler(), "max_new_tokens": 4, **options})


class TestLogitsThatSayNothing:
    MESSAGE = "logits of a masked position must be finite or -inf, and not all -inf, but some are not"

    @pytest.mark.parametrize("sampler", PLAIN)
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_damaged_weight(self, sampler, temperature, value):
        denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
        denoiser.model.cls.predictions.decoder.bias.data[WORDS[3]] = value
        rule = make_sampler(sampler, scorer=scorer_of("bert"))
        with pytest.raises(ValueError, match=self.MESSAGE):
            decode(denoiser, words(2, 3), sampler=rule, max_new_tokens=4, temperature=temperature, eos_token_id=EOS)

    @pytest.mark.parametrize("law", LAWS)
    @pytest.mark.parametrize("greedy", [False, True])
    def test_whatever_the_law(self, law, greedy):
        denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
        denoiser.model.cls.predictions.decoder.bias.data[WORDS[3]] = float("nan")
        sampler = LearnedOrderSampler(scorer=scorer_of("bert", law), greedy=greedy)
        with pytest.raises(ValueError, match=self.MESSAGE):
            decode(denoiser, words(2, 3), sampler=sampler, max_new_tokens=9, max_denoising_steps=4)

    @pytest.mark.parametrize("value", [float("nan"), -float("inf")])
    @pytest.mark.parametrize("options", [{}, {"clean": words(2, 4)}], ids=["drawn", "scored"])
    def test_a_logits_processor(self, value, options):
        """In one row and behind the first step."""
        calls = []

        def processor(ids, scores):
            calls.append(len(scores))
            return torch.where((ids[:, :1] == ids[-1, 0]) & (len(calls) > 1), value, scores)

        with pytest.raises(ValueError, match=self.MESSAGE):
            decode(
                denoiser_of("bert"),
                words(2, 3),
                sampler=TopProbSampler(),
                max_new_tokens=4,
                logits_processor=LogitsProcessorList([processor]),
                **options,
            )
        assert 2 <= len(calls) <= 4

    def test_tokens_that_are_ruled_out(self):
        def processor(_, scores):
            return scores.index_fill(-1, torch.tensor(WORDS[:-1]), -torch.inf)

        output = decode(
            denoiser_of("bert"),
            words(2, 3),
            sampler=TopProbSampler(),
            max_new_tokens=4,
            logits_processor=LogitsProcessorList([processor]),
            clean=words(2, 4),
        )
        assert (output.log_likelihood == -torch.inf).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["processor", "warper"])
def test_in_pieces_each_position_is_changed_with_its_own_row(temperature, monkeypatch):
    """Whatever is shown first in its row is all that is left to say there; two or three rows begin within a piece."""

    def echo(ids, scores):
        return scores.masked_fill(ids[:, :1] != torch.arange(VOCAB), -torch.inf)

    monkeypatch.setattr(predictions, "CPU_PIECE", 5 * VOCAB // torch.get_num_threads())
    ids = torch.tensor(WORDS[:7])[:, None].repeat(1, 2)
    kind = "logits_processor" if temperature == 0 else "logits_warper"
    options = {kind: LogitsProcessorList([echo]), "temperature": temperature}
    output = decode(denoiser_of("bert"), ids, sampler=TopProbSampler(), max_new_tokens=3, **options)
    assert torch.equal(response(output), ids[:, :1].expand(-1, 3))


class Watch(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS:
            self.counts[name] += 1
        if name.startswith("index") and isinstance(args[1], list | tuple):
            self.counts["bool index"] += any(part is not None and part.dtype == torch.bool for part in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", PLAIN)
def test_a_step_waits_for_the_device_once(name, temperature):
    """What decides the sizes of the next step is copied to the host; all that waits happens on this copy."""
    counts = []
    scorer = scorer_of("llama")
    for steps in (3, 6):
        with Watch() as watch:
            output = decode(
                denoiser_of("llama"),
                words(2, 3),
                sampler=make_sampler(name, {"base": 3} if name == "dilated" else None, scorer=scorer),
                max_new_tokens=8,
                max_denoising_steps=steps,
                temperature=temperature,
                eos_token_id=EOS,
            )
        # rows going on, positions to look at, which of them are masked; before the first step and after each
        assert watch.counts.pop("nonzero") == 3 * (1 + int(output.nfe.max()))
        counts.append(watch.counts)
    assert counts[0] == counts[1], "more steps, more waiting"


def test_a_rule_is_told_of_masked_positions_unless_it_asks_for_more():
    class Curious(TopProbSampler):
        reads_unmasked = True

        def propose(self, step, state):
            assert not step.predictions.confidence.isnan().any()
            return super().propose(step, state)

    class Modest(TopProbSampler):
        def propose(self, step, state):
            assert torch.equal(step.predictions.confidence.isnan(), ~step.masked)
            return super().propose(step, state)

    options = {"max_new_tokens": 8, "max_denoising_steps": 8, "block_length": 4}
    modest, curious = (decode(denoiser_of("qwen2"), words(3, 4), sampler=s(), **options) for s in (Modest, Curious))
    assert_same_rows(curious, modest)


@pytest.mark.parametrize(("name", "law"), [*((name, "non_empty") for name in PLAIN), ("learned_order", "regret")])
def test_a_rule_asks_for_all_that_it_reads(name, law):
    """Beliefs at every position change nothing."""
    sampler = make_sampler(name, {"draft": 0.3, "verify": 0.5} if name == "wino" else {}, scorer=scorer_of("bert", law))
    told = copy.copy(sampler)
    object.__setattr__(told, "reads_unmasked", True)
    got, expected = (
        decode(
            denoiser_of("bert"),
            words(4, 3),
            sampler=rule,
            max_new_tokens=8,
            temperature=1.0,
            generator=torch.Generator().manual_seed(0),
        )
        for rule in (sampler, told)
    )
    assert_same_rows(got, expected)


def test_the_logits_of_a_step_are_let_go_before_the_next():
    seen = []

    class Watching(TopProbSampler):
        def propose(self, step, state):
            seen.append(weakref.ref(step.predictions.logits))
            return super().propose(step, state)

    class Alone(Denoiser):
        def forward(self, *args, **kwargs):
            assert all(logits() is None for logits in seen)
            return super().forward(*args, **kwargs)

    denoiser = Alone(denoiser_of("bert").model, mask_token_id=MASK)
    decode(denoiser, words(2, 3), sampler=Watching(), max_new_tokens=4)
    assert len(seen) == 3
