"""Where the loop may write: blocks from left to right, and the masks within a prompt."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DECODERS, FAMILIES, MASK, MAX_LENGTH
from test_loop import (
    DETERMINISTIC,
    SOME_EOS,
    Always,
    Recorder,
    assert_same_rows,
    denoiser_of,
    padded,
    response,
    words,
)
from transformers import MaxLengthCriteria, StoppingCriteriaList

from hf_learned_order.decoding.canvas import Canvas, given_layout, left_padded
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.base import Proposal, Sampler
from hf_learned_order.decoding.samplers.scheduled import DilatedSampler, IIDSampler, TopProbSampler
from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.orders.features import FEATURES
from hf_learned_order.orders.scorer import OrderScorer


@dataclass(frozen=True, kw_only=True)
class Watching(Sampler):
    """Takes what `Always` takes, and keeps what it saw: steps left, masked positions."""

    seen: list = field(default_factory=list)

    def init_state(self, step):
        self.seen.append("begin")
        return ()

    def propose(self, step, state):
        self.seen.append((step.steps_left, step.masked.tolist(), (step.canvas == MASK).tolist()))
        return Proposal(torch.zeros_like(step.masked))


def probabilities(family: str, ids: torch.Tensor) -> torch.Tensor:
    """[length, vocab] of one row, by a plain call of the model."""
    length = ids.shape[1]
    see_all = {"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool)} if family in DECODERS else {}
    with torch.no_grad():
        logits = denoiser_of(family).model(input_ids=ids, **see_all).logits[0].clone()
    logits[:, MASK] = -torch.inf
    return (logits.roll(1, 0) if family == "qwen2" else logits).softmax(-1)


class TestBlocks:
    @pytest.mark.parametrize("family", ["bert", "llama", "qwen2"])
    @pytest.mark.parametrize("block_length", [1, 3, 9])
    def test_the_obvious_semi_autoregressive_decoder(self, family, block_length):
        prompt, tokens, order = words(1, 5), [MASK] * 9, [0] * 9
        for step in range(9):
            start = step // block_length * block_length
            confidence, best = probabilities(family, torch.cat([prompt, torch.tensor([tokens])], 1))[5:].max(-1)
            i = max((i for i in range(start, start + block_length) if tokens[i] == MASK), key=lambda i: confidence[i])
            tokens[i], order[i] = int(best[i]), step + 1
        output = decode(
            denoiser_of(family), prompt, sampler=TopProbSampler(), max_new_tokens=9, block_length=block_length
        )
        assert (response(output)[0].tolist(), output.order[0].tolist()) == (tokens, order)

    def test_one_block_is_no_block(self):
        options = {"sampler": TopProbSampler(), "max_new_tokens": 6, "max_denoising_steps": 4}
        plain, block = (decode(denoiser_of("bert"), words(2, 4), block_length=b, **options) for b in (None, 6))
        assert_same_rows(block, plain)

    def test_a_rule_sees_its_block_only_and_begins_anew_in_each(self):
        rule = Watching()
        decode(denoiser_of("bert"), words(1, 3), sampler=rule, max_new_tokens=6, max_denoising_steps=5, block_length=3)
        assert [x if x == "begin" else x[0] for x in rule.seen] == ["begin", 3, 2, "begin", 2]
        assert all(len(x[1][0]) == 3 and x[1] == x[2] for x in rule.seen if x != "begin")

    def test_rows_that_wait_for_others_count_their_own_steps(self):
        options = {"sampler": ThresholdSampler(threshold=0.3), "max_new_tokens": 9, "block_length": 3}
        output = decode(denoiser_of("bert"), words(12, 4), **options)
        assert len(output.order[:, :3].amax(-1).unique()) > 1, "no row waits"
        for row, prompt in enumerate(words(12, 4)):
            alone = decode(denoiser_of("bert"), prompt[None], **options)
            assert output.order[row].tolist() == alone.order[0].tolist()
            assert set(output.order[row].tolist()) == set(range(1, int(output.nfe[row]) + 1))

    def test_a_response_that_ends_needs_no_further_block(self):
        recorder = Recorder(denoiser_of("bert"))
        options = {"sampler": IIDSampler(), "max_new_tokens": 12, "block_length": 3, "eos_token_id": SOME_EOS}
        generator = torch.Generator().manual_seed(0)
        output = decode(recorder, words(12, 4), generator=generator, **options)
        blocks = (output.order > 0).view(12, 4, 3).any(-1)
        assert not blocks.all()
        ended = torch.isin(response(output), torch.tensor(SOME_EOS)).view(12, 4, 3).any(-1)
        assert torch.equal(blocks, ended.long().cumsum(-1) - ended.long() == 0)

    @pytest.mark.parametrize(
        ("length", "block", "steps", "expected"),
        [
            (6, None, None, [(0, 6, 6)]),
            (6, None, 4, [(0, 6, 4)]),
            (6, 2, None, [(0, 2, 2), (2, 4, 2), (4, 6, 2)]),
            (6, 2, 7, [(0, 2, 3), (2, 4, 2), (4, 6, 2)]),
            (6, 2, 3, [(0, 2, 1), (2, 4, 1), (4, 6, 1)]),
        ],
    )
    def test_steps_are_divided_among_blocks(self, length, block, steps, expected):
        prompt = torch.zeros(1, 2, dtype=torch.long)
        canvas = Canvas.behind(prompt, torch.ones_like(prompt), length=length, mask_token_id=MASK)
        assert [(w.start, w.stop, n) for w, n in canvas.windows(block, steps)] == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"block_length": 4}, "block_length must divide max_new_tokens 6, got 4"),
            ({"block_length": 12}, "block_length must divide max_new_tokens 6, got 12"),
            ({"block_length": 0}, "block_length must be a positive integer, got 0"),
            ({"block_length": 2.0}, "block_length must be a positive integer, got 2.0"),
            (
                {"block_length": 2, "max_denoising_steps": 2},
                "max_denoising_steps must be at least one for each of the 3 blocks, got 2",
            ),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(ValueError, match=message):
            decode(denoiser_of("bert"), words(1, 3), sampler=TopProbSampler(), max_new_tokens=6, **options)


def holes(prompts: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Some tokens masked, never the first, at least one in all."""
    generator = torch.Generator().manual_seed(seed)
    punched = [torch.where(torch.rand(len(p), generator=generator) < 0.5, MASK, p) for p in prompts]
    for row, prompt in zip(punched, prompts, strict=True):
        row[0] = prompt[0]
    punched[0][1] = MASK
    return punched


class TestInfilling:
    @settings(max_examples=25)
    @given(
        lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
        seed=st.integers(0, 999),
        # `dilated` goes by where a position stands in the padded row
        sampler=st.sampled_from([r for r in [*DETERMINISTIC, Always(value=False)] if r != DilatedSampler()]),
        steps=st.sampled_from([None, 1, 3]),
        extra=st.integers(0, 2),
    )
    @pytest.mark.parametrize("family", ["bert", "llama", "qwen2"])
    def test_only_masks_are_filled_and_rows_are_alone(self, family, lengths, seed, sampler, steps, extra):
        rows = holes([words(n, seed=seed + i) for i, n in enumerate(lengths)], seed)
        options = {"sampler": sampler, "max_denoising_steps": steps, "infill": True, "eos_token_id": SOME_EOS}
        single = [decode(denoiser_of(family), row[None], **options) if (row == MASK).any() else None for row in rows]
        for side in ("left", "right"):
            ids, mask = padded(rows, side, extra)
            output = decode(denoiser_of(family), ids, mask, **options)
            was_masked = ids == MASK
            assert output.sequences.shape == output.order.shape == ids.shape
            assert torch.equal(output.sequences[~was_masked], ids[~was_masked])
            assert MASK not in output.sequences
            if not sampler.remasks:
                assert torch.equal(output.order > 0, was_masked)
            for i, (row, alone) in enumerate(zip(rows, single, strict=True)):
                real = mask[i].bool()
                if alone is None:
                    assert (output.nfe[i], output.tokens_per_forward[i]) == (0, 0)
                    continue
                assert output.sequences[i, real].tolist() == alone.sequences[0].tolist()
                assert output.order[i, real].tolist() == alone.order[0].tolist()
                assert output.nfe[i] == alone.nfe[0]
                assert output.tokens_per_forward[i] == pytest.approx((row == MASK).sum().item() / int(output.nfe[i]))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_masks_at_the_end_are_a_canvas(self, family):
        prompt = words(2, 4)
        behind = decode(denoiser_of(family), prompt, sampler=TopProbSampler(), max_new_tokens=5)
        within = torch.cat([prompt, torch.full((2, 5), MASK)], 1)
        output = decode(denoiser_of(family), within, sampler=TopProbSampler(), max_denoising_steps=5, infill=True)
        assert output.sequences.tolist() == behind.sequences.tolist()
        assert output.order[:, 4:].tolist() == behind.order.tolist()

    def test_the_default_budget_is_a_step_for_each_mask_of_the_row(self):
        ids = words(2, 6)
        ids[0, 2:5] = ids[1, 3] = MASK
        rule = Watching()
        output = decode(denoiser_of("bert"), ids, sampler=rule, infill=True)
        # a row's last step is called 2, and what is proposed there is not looked at
        assert [x[0].flatten().tolist() for x in rule.seen[1:]] == [[3, 2], [2], [2]]
        assert output.nfe.tolist() == [3, 1]

    @pytest.mark.parametrize("family", ["bert", "qwen2"])
    @pytest.mark.parametrize("block_length", [1, 3, 4, 20])
    def test_in_blocks_it_is_the_obvious_decoder_of_each_row(self, family, block_length):
        """One token a step, the surest of the first block that has a mask; blocks begin at the first token."""
        rows = holes([words(n, seed=n) for n in (9, 6, 11)], 5)
        ids, mask = padded(rows, "right", 1)
        output = decode(
            denoiser_of(family), ids, mask, sampler=TopProbSampler(), infill=True, block_length=block_length
        )
        for i, row in enumerate(rows):
            tokens, order = row.clone(), [0] * len(row)
            for step in range(1, 1 + int((row == MASK).sum())):
                block = min(j for j in range(len(row)) if tokens[j] == MASK) // block_length
                confidence, best = probabilities(family, tokens[None]).max(-1)
                places = range(block * block_length, min(len(row), (block + 1) * block_length))
                place = max((j for j in places if tokens[j] == MASK), key=lambda j: confidence[j])
                tokens[place], order[place] = best[place], step
            assert output.sequences[i, : len(row)].tolist() == tokens.tolist()
            assert output.order[i].tolist() == order + [0] * (ids.shape[1] - len(row))
            assert output.length[i] == (row == MASK).sum()

    def test_a_block_without_masks_takes_no_steps(self):
        ids = words(2, 8)
        ids[0, 2] = ids[0, 3] = ids[0, 7] = ids[1, 0] = ids[1, 4] = MASK
        options = {"sampler": TopProbSampler(), "infill": True, "block_length": 2}
        output = decode(denoiser_of("bert"), ids, max_denoising_steps=2, **options)
        assert output.order.tolist() == [[0, 0, 1, 1, 0, 0, 0, 2], [1, 0, 0, 0, 2, 0, 0, 0]]
        with pytest.raises(ValueError, match="max_denoising_steps must be at least one for each of the 2 blocks"):
            decode(denoiser_of("bert"), ids, max_denoising_steps=1, **options)

    def test_guided(self):
        """Away from all that is known, which is masked in the second call; one step."""
        rows = holes([words(7), words(5, seed=1)], 3)
        ids, mask = padded(rows, "left")
        options = {"sampler": TopProbSampler(), "infill": True, "max_denoising_steps": 1}
        output = decode(denoiser_of("bert"), ids, mask, guidance_scale=3.0, **options)
        for i, row in enumerate(rows):
            u, c = (
                denoiser_of("bert")(x[None], torch.ones_like(x)[None], 0)[0][0].detach()
                for x in (torch.full_like(row, MASK), row)
            )
            guided = u + 3.0 * (c - u)
            guided[:, MASK] = -torch.inf
            expected = torch.where(row == MASK, guided.argmax(-1), row)
            assert output.sequences[i, mask[i].bool()].tolist() == expected.tolist()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_new_tokens", 4),
            ("stopping_criteria", StoppingCriteriaList([MaxLengthCriteria(5)])),
            ("negative_prompt_ids", words(1, 2)),
        ],
    )
    def test_what_means_nothing_to_it(self, name, value):
        ids = torch.full((1, 4), MASK)
        with pytest.raises(ValueError, match=f"{name} must be None with infill=True"):
            decode(denoiser_of("bert"), ids, sampler=TopProbSampler(), infill=True, **{name: value})

    @pytest.mark.parametrize("value", [0, -1, 2.0, True])
    def test_block_length(self, value):
        ids = torch.full((1, 4), MASK)
        with pytest.raises(ValueError, match=f"block_length must be a positive integer, got {value!r}"):
            decode(denoiser_of("bert"), ids, sampler=TopProbSampler(), infill=True, block_length=value)

    def test_nothing_to_fill(self):
        with pytest.raises(ValueError, match="input_ids must hold the mask token 3 when infill=True, but it does not"):
            decode(denoiser_of("bert"), words(2, 3), sampler=TopProbSampler(), infill=True)

    def test_too_long(self):
        ids = torch.full((1, MAX_LENGTH + 1), MASK)
        with pytest.raises(ValueError, match="the prompt and max_new_tokens must fit"):
            decode(denoiser_of("bert"), ids, sampler=TopProbSampler(), infill=True)

    @pytest.mark.parametrize("mask", [[1, 1, 1], [0, 1, 1]])
    def test_the_first_token_of_a_shifted_model(self, mask):
        ids = words(1, 3)
        ids[0, mask.index(1)] = MASK
        with pytest.raises(ValueError, match="input_ids must not begin with the mask token"):
            decode(denoiser_of("qwen2"), ids, torch.tensor([mask]), sampler=TopProbSampler(), infill=True)


@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_given_layout_undoes_left_padded(mask):
    attention_mask = torch.tensor(mask).long()
    ids = torch.arange(attention_mask.numel()).reshape(attention_mask.shape)
    assert torch.equal(given_layout(left_padded(ids, attention_mask)[0], attention_mask), ids)


@dataclass(frozen=True, kw_only=True)
class Asking(Sampler):
    """Takes everything, and keeps the values that a scorer has for the first row, by their own positions."""

    needs_hidden_states: ClassVar = (-1,)
    reads_unmasked: ClassVar = True
    scorer: OrderScorer
    found: list = field(default_factory=list)

    def propose(self, step, state):
        values = self.scorer(step)[0]
        first = 0 if step.padding is None else int(step.padding[0].sum())
        masks = int(step.masked[0].sum())
        law = self.scorer.config.law
        scores, more = values[first:], values.new_zeros(0)
        if law == "count":
            scores, more = values[first:, 0], values[:masks, 1]
        elif law == "regret":
            scores, more = values[first:, :2], values[first:, 2 + first :]
        self.found.extend((scores, more))
        return Proposal(step.masked)


@pytest.mark.parametrize("law", LAWS)
def test_a_scorer_sees_no_padding_of_a_canvas_within_prompts(law):
    """Its values for a row are those of the row alone, whatever else is in the batch, and on whatever side."""
    torch.manual_seed(0)
    scorer = OrderScorer.for_denoiser(
        denoiser_of("bert"), law=law, pair_weight=1.0, hidden_size=8, num_attention_heads=2, features=[*FEATURES]
    ).eval()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = [torch.cat([words(n, seed=n), torch.full((4,), MASK), words(2, seed=1)]) for n in (2, 9)]
    rule = Asking(scorer=scorer)
    decode(denoiser_of("bert"), prompts[0][None], sampler=rule, infill=True)
    alone = rule.found.copy()
    for side in ("left", "right"):
        rule.found.clear()
        ids, mask = padded(prompts, side)
        with torch.no_grad():
            decode(denoiser_of("bert"), ids, mask, sampler=rule, infill=True)
        for got, expected in zip(rule.found, alone, strict=True):
            assert got.numel() == expected.numel()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
