"""The one decoding loop.

    canvas of mask tokens -> { denoiser -> guidance, logits processors -> predictions -> the rule proposes -> at least
    one, everything at the last step -> tokens drawn at the proposed positions, the mask token at those to remask }
    -> sequences, order, nfe

Each step unmasks something and the last step unmasks everything and remasks nothing, so every rule ends.

Which positions may be touched is one bool tensor, `Canvas.masked`: the whole window behind the prompts, or the masks
of the prompts themselves (`infill=True`). With a `block_length` the loop runs once for each block, from left to right,
and a rule sees the block only; the denoiser sees everything, or remembers some of it (`caches`). A block-causal model
goes through its own blocks, which start at another column in each row; rows whose blocks agree go together. With a
causal context blocks start behind the prompt, and the first call of each gives its first token (`Canvas.plan`).

The same loop scores a given response (`clean=`): the true token takes the place of the drawn one, and the sum of
log p_theta over the unmasked positions bounds log p(x | c) from below when the rule is deterministic, and in
expectation when it is random (method: ELBO with the rule as prior and posterior).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.common.checks import check_ids, check_positive, check_room, check_token
from hf_learned_order.decoding.canvas import Canvas, Part, left_padded
from hf_learned_order.decoding.draws import RowDraws
from hf_learned_order.decoding.guidance import Guidance, guidance_of
from hf_learned_order.decoding.inputs import check_clean, check_draft, check_infill
from hf_learned_order.decoding.outputs import LearnedOrderOutput, output_of
from hf_learned_order.decoding.processors import Processing
from hf_learned_order.decoding.samplers.base import Sampler, State
from hf_learned_order.decoding.stopping import Stopping
from hf_learned_order.decoding.streaming import Stream
from hf_learned_order.decoding.verification import Verification, verification_of
from hf_learned_order.denoisers.attention import check_padding
from hf_learned_order.denoisers.caches import WindowedDenoiser
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.denoisers.sharding import in_step
from hf_learned_order.orders.laws.base import at_least_one, everything

DEFAULT_LENGTH = 128  # of a canvas


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    sampler: Sampler,
    max_new_tokens: int | None = None,
    max_denoising_steps: int | None = None,
    block_length: int | None = None,
    kv_cache: str | None = None,
    infill: bool = False,
    temperature: float = 0.0,
    logits_processor: LogitsProcessorList | None = None,
    logits_warper: LogitsProcessorList | None = None,
    guidance_scale: float | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    generator: torch.Generator | None = None,
    clean: Tensor | None = None,
    draft: Tensor | None = None,
    verify: Sampler | None = None,
    num_assistant_tokens: int | None = None,
) -> LearnedOrderOutput:
    """Fill a canvas of `max_new_tokens` masks behind each prompt, or the masks within it.

    Args:
        denoiser: the model.
        input_ids: int [batch, prompt], padded on either side.
        attention_mask: [batch, prompt], 0 at padding; by default nothing is padding.
        sampler: the rule.
        max_new_tokens: length of the canvas, by default 128.
        max_denoising_steps: step budget T; by default one for each position that is masked in the row. Divided evenly
            among blocks.
        block_length: decode in blocks of so many positions, from left to right; must divide `max_new_tokens`. A
            block-causal model always goes through its own blocks, which start at the first token of the prompt, or with
            a causal context behind the prompt. With `infill` blocks are counted from there too, and need not come out
            even.
        kv_cache: keep keys and values between calls: "exact" for a block-causal model; "prefix" or "dual", which
            approximate, for others in blocks. See `caches`.
        infill: fill the masks in `input_ids`, all of them; nothing else is touched or added, and no EOS ends a row.
        temperature: 0 takes the most likely token at an unmasked position, otherwise it is drawn.
        logits_processor: changes the logits at each position before rules and draws see them, see `processors`. In the
            ids that it is given padding looks like the mask token.
        logits_warper: the same, for draws only, behind the temperature.
        guidance_scale, negative_prompt_ids, negative_prompt_attention_mask: see `Guidance`; 1 or None is no guidance.
        eos_token_id: a row is finished when everything before its first EOS is settled; None decodes every position.
            Several ids may end a response.
        pad_token_id: what follows the end of a response in `sequences`; by default more EOS.
        stopping_criteria: end a row as well, see `Stopping`.
        streamer: gets prompt and response as they become final, see `Stream`.
        generator: source of all randomness; by default torch's global one. A row draws the same alone and in a batch
            (`RowDraws`).
        clean: [batch, canvas], a response to score instead of drawing one; not with a rule that remasks. With `infill`
            [batch, prompt], of which the positions of the masks are read.
        draft: int [batch, canvas], the canvas to begin with, some of it still the mask token; its length is that of the
            canvas. What stands there counts as unmasked before the first step; not with a rule that remasks.
        verify: a rule whose response with one step for each position is wanted, token for token; `sampler` then only
            drafts what that rule takes next, see `Verification`.
        num_assistant_tokens: with `verify`, the most canvases of a row that one call is about, by default 8.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
        ValueError: a position was unmasked of whose logits one is nan or inf, or all are -inf.
    """
    mask = check_ids("input_ids", input_ids, attention_mask, vocab_size=denoiser.vocab_size)
    check_padding(denoiser, mask)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature!r}")
    if infill and denoiser.family.causal_context:
        raise ValueError(
            "infill must be False with a model that has a causal context: it sees nothing behind the current block"
        )
    if infill:
        check_infill(
            max_new_tokens=max_new_tokens,
            negative_prompt_ids=negative_prompt_ids,
            stopping_criteria=stopping_criteria or None,
        )
        eos_token_id = pad_token_id = None
    check_token("eos_token_id", eos_token_id, vocab_size=denoiser.vocab_size)
    check_token("pad_token_id", pad_token_id, vocab_size=denoiser.vocab_size)
    check_draft(draft, input_ids, sampler, infill=infill, max_new_tokens=max_new_tokens)
    length = None if infill else DEFAULT_LENGTH if max_new_tokens is None else max_new_tokens
    if draft is not None:
        length = draft.shape[1]
    canvas = _canvas(denoiser, input_ids, mask, length, draft)
    block_size, causal_context = denoiser.family.block_size, denoiser.family.causal_context
    plan = canvas.plan(
        block_length, max_denoising_steps, block_size=block_size, causal_context=causal_context, infill=infill
    )
    if block_size is not None and not causal_context and negative_prompt_ids is not None:
        raise ValueError(
            "negative_prompt_ids must be None with a block-causal model: its blocks are counted from the first token, "
            "so the canvas would be divided in another way behind another prompt"
        )
    if infill and clean is not None and clean.shape == input_ids.shape:
        clean = left_padded(clean, mask)[0][:, canvas.start :]
    check_clean(clean, canvas, sampler)
    stopping = Stopping(canvas, eos_token_id=eos_token_id, criteria=stopping_criteria, pad_token_id=pad_token_id)
    verification = verification_of(
        verify,
        num_assistant_tokens,
        canvas=canvas,
        stopping=stopping,
        drafter=sampler,
        temperature=temperature,
        clean=clean,
        max_denoising_steps=max_denoising_steps,
    )
    processing = None
    if logits_processor:
        processing = Processing(
            logits_processor, canvas, sampler=sampler, plan=plan, infill=infill, verified=verification is not None
        )
    windowed, second = (
        WindowedDenoiser(denoiser, kv_cache, block_length=block_length, repeats=verify is not None) for _ in range(2)
    )
    loop = _Loop(
        denoiser=windowed,
        sampler=sampler,
        canvas=canvas,
        stopping=stopping,
        verification=verification,
        guidance=guidance_of(guidance_scale, canvas, second, negative_prompt_ids, negative_prompt_attention_mask),
        processing=processing,
        logits_warper=logits_warper,
        temperature=temperature,
        generator=generator,
        draws=RowDraws(input_ids, mask, generator) if sampler.is_random or temperature else None,
        clean=clean,
        own_budgets=max_denoising_steps is None and verify is None and (infill or draft is not None),
        stream=None if streamer is None else Stream(streamer, input_ids, canvas, mask if infill else None),
    )
    with in_step(denoiser, canvas.ids.device):
        for part in plan:
            loop.run(part)
    if loop.stream is not None:
        loop.stream.end()
    calls, canvases = (canvas.steps,) * 2 if verification is None else (verification.calls, verification.canvases)
    each = 1 if loop.guidance is None else 2
    return output_of(canvas, stopping, input_ids, mask, infill=infill, nfe=each * calls, canvases=each * canvases)


@dataclass(kw_only=True)
class _Loop:
    """A batch on its way through the loop; the attributes are those of `decode`.

    With `own_budgets` a row has as many steps as positions are masked in it, whatever the others have.
    """

    denoiser: WindowedDenoiser
    sampler: Sampler
    canvas: Canvas
    stopping: Stopping
    stream: Stream | None
    verification: Verification | None
    guidance: Guidance | None
    processing: Processing | None
    logits_warper: LogitsProcessorList | None
    temperature: float
    generator: torch.Generator | None
    draws: RowDraws | None
    clean: Tensor | None
    own_budgets: bool

    def run(self, part: Part) -> None:
        """Unmask everything in a window of some rows within its steps. Rows that are done with it cost nothing."""
        rows, window, steps, group = part
        verification = self.verification
        state: State | None = None
        going_on, at, eligible = self.pending(rows, window)
        rows = rows[going_on]
        if verification is not None:
            verification.open(rows, window, steps)
        own = self.canvas.masked[rows, window].sum(-1, keepdim=True) if self.own_budgets else None
        for number in range(steps, 0, -1):
            if len(rows) == 0:
                break
            steps_left = number if own is None else cast(int, own)
            if verification is None:
                seen = self.canvas.select(rows)
                step = self.look(seen, rows, at, window, group, steps_left)
                state = self.advance(step, seen, window, at, eligible, state)
            else:
                seen, tried = verification.trials()
                at, _ = self.positions(seen.masked[:, window].cpu(), rows.device)
                step = self.look(seen, tried, at, window, group, steps_left)
                verification.follow(step)
            going_on, at, eligible = self.pending(rows, window)
            if verification is not None:
                verification.draft(step, going_on)
            if len(going_on) < len(rows):
                rows, state = rows[going_on], state and tuple(part[going_on] for part in state)
            own = None if own is None else own[going_on] - 1
            del step  # or its logits would live beside those of the next
            if self.stream is not None:
                self.stream.update(self.canvas, self.stopping, final=len(rows) == 0 or not self.sampler.remasks)

    def advance(
        self,
        step: Step,
        seen: Canvas,
        window: slice,
        at: tuple[Tensor, Tensor],
        eligible: Tensor,
        state: State | None,
    ) -> State:
        """One step of the rule in the rows of `step`, which are as `seen`; the state of the next."""
        rows = step.rows
        unmask, remask, state = self.changes(step, self.sampler.init_state(step) if state is None else state)
        tokens = self.draw(step, seen, at, eligible) if self.clean is None else self.clean[rows, window]
        self.canvas.write(rows, window, tokens, step.predictions.log_prob(tokens), unmask, remask)
        self.stopping.update(self.canvas)
        return state

    def pending(self, rows: Tensor, window: slice) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Which of `rows` are not done with the window; the positions to look at next, int [n] twice, the row among
        these and the position in the window; and which of the n are masked, int.

        The sizes of a step hang on this, so it is the one place where a step waits for the device. What the last one
        wrote is looked at with it: log-probabilities that are no numbers come of logits that say nothing.

        Raises:
            ValueError: at a position that was unmasked a logit was nan or inf, or all were -inf.
        """
        canvas = self.canvas
        masked, broken = torch.stack([canvas.masked[rows, window], canvas.token_log_probs[rows, window].isnan()]).cpu()
        if broken.numpy().any():  # numpy, because the copy is here already: nothing waits
            raise ValueError(
                "logits of a masked position must be finite or -inf, and not all -inf, but some are not: the model's "
                "weights are damaged, its dtype is too narrow, or a logits processor left no token"
            )
        going_on = masked.any(-1).nonzero().squeeze(-1)
        return going_on.to(rows.device), *self.positions(masked[going_on], rows.device)

    def positions(self, masked: Tensor, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What the denoiser is asked about and which of it is masked, as `pending` has it; bool `masked` on the CPU."""
        reads_unmasked = self.sampler.reads_unmasked or (
            self.verification is not None and self.verification.rule.reads_unmasked
        )
        row, position = (masked | reads_unmasked).nonzero(as_tuple=True)
        eligible = masked[row, position].nonzero().squeeze(-1)
        return (row.to(device), position.to(device)), eligible.to(device)

    def look(
        self,
        seen: Canvas,
        rows: Tensor,
        at: tuple[Tensor, Tensor],
        window: slice,
        group: int,
        steps_left: int,
    ) -> Step:
        """What the denoiser believes of positions of the window, and all else that a rule may look at.

        `seen` [len(rows), ...] is what stands in `rows` of the canvas, or what is tried there: rows may then repeat.
        """
        maps: list[Tensor] | None = [] if self.sampler.needs_attentions else None
        logits, hidden = self.denoiser(
            seen.ids,
            seen.attention_mask,
            slice(seen.start + window.start, seen.start + window.stop),
            rows=rows,
            group=group,
            at=at,
            hidden_states=self.sampler.needs_hidden_states,
            attentions=maps,
        )
        if self.guidance is not None:
            logits = self.guidance(seen, rows, window, group, at, logits)
        if self.processing is not None:
            logits = logits.float()
            logits[:, seen.mask_token_id] = -torch.inf
            logits = self.processing(seen, rows, window, at, logits)
        shape = len(rows), window.stop - window.start
        padding = None if seen.padding is None else seen.padding[:, window]
        return Step(
            predictions=Predictions.from_logits(logits, seen.mask_token_id, at=at, shape=shape),
            masked=seen.masked[:, window],
            steps_left=steps_left,
            unmasked=seen.order[:, window] > 0,
            canvas=seen.tokens[:, window],
            token_log_probs=seen.token_log_probs[:, window],
            rows=rows,
            hidden_states=hidden,
            attentions=maps[0] if maps else None,
            padding=padding,
            generator=self.generator,
            numbers=None if self.draws is None else partial(self.draws.uniform, rows, shape[1], padding=padding),
        )

    def changes(self, step: Step, state: State) -> tuple[Tensor, Tensor, State]:
        """What a step unmasks and remasks, and the state of the next: the rule proposes, the laws of the loop hold."""
        nothing = torch.zeros_like(step.masked)
        last: Tensor | bool = step.steps_left == 1
        if isinstance(last, Tensor):  # of rows with budgets of their own; what is proposed there is not looked at
            step = replace(step, steps_left=step.steps_left.clamp(min=2))  # pyrefly: ignore[missing-attribute]
        elif last:
            return everything(step.masked), nothing, state
        unmask, state, remask = self.sampler.propose(step, state)
        unmask = at_least_one(unmask | last, step.masked, step.predictions.confidence)
        remask = nothing if remask is None or not self.sampler.remasks else remask & step.unmasked
        return unmask, remask & ~last if isinstance(last, Tensor) else remask, state

    def draw(self, step: Step, seen: Canvas, at: tuple[Tensor, Tensor], eligible: Tensor) -> Tensor:
        """Token ids [batch, window] at the `eligible` ones of the n positions `at`."""
        predictions, warper = step.predictions, self.logits_warper
        if self.temperature == 0.0:
            return predictions.tokens
        ids = seen.visible

        def warp(scores: Tensor, among: Tensor) -> Tensor:
            # pyrefly: ignore[bad-argument-type, not-callable] (called where there is one)
            return warper(ids[at[0][among]], scores)

        uniform = step.uniform().flatten()[predictions.index[eligible]]
        return predictions.draw(eligible, temperature=self.temperature, uniform=uniform, warp=warp if warper else None)


def _canvas(
    denoiser: Denoiser, input_ids: Tensor, attention_mask: Tensor, length: int | None, draft: Tensor | None
) -> Canvas:
    """`length` masks behind the prompts, or what a draft has there; with None, the masks within them."""
    if length is not None:
        check_positive("max_new_tokens", length)
    shift = denoiser.family.shift
    before = denoiser.family.tokens_before
    check_room("prompt", attention_mask, length or 0, limit=denoiser.max_length, before=before)
    prompt, mask = left_padded(input_ids, attention_mask)
    if length is None:
        return Canvas.within(prompt, mask, start=shift, mask_token_id=denoiser.mask_token_id)
    return Canvas.behind(prompt, mask, length=length, mask_token_id=denoiser.mask_token_id, draft=draft)
