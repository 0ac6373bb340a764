"""A batch on its way through the decoding loop: the denoiser is asked, the rule proposes, tokens are drawn."""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from hf_learned_order.decoding.canvas import Canvas, Part
from hf_learned_order.decoding.draws import RowDraws
from hf_learned_order.decoding.guidance import Guidance
from hf_learned_order.decoding.processors import Processing
from hf_learned_order.decoding.samplers.base import Sampler, State
from hf_learned_order.decoding.stopping import Stopping
from hf_learned_order.decoding.streaming import Stream
from hf_learned_order.decoding.verification import Verification
from hf_learned_order.denoisers.caches import WindowedDenoiser
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.denoisers.sharding import in_step
from hf_learned_order.orders.laws.base import at_least_one, everything


@dataclass(kw_only=True)
class Walk:
    """A batch on its way through the loop; the attributes are those of `loop.decode`.

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

    def through(self, plan: list[Part]) -> None:
        """Unmask everything, one part after the other."""
        with in_step(self.denoiser.denoiser, self.canvas.ids.device):
            for part in plan:
                self.run(part)
        if self.stream is not None:
            self.stream.end()

    def calls(self) -> dict[str, Tensor]:
        """int [batch]: `nfe`, the calls that each row took part in, and `canvases`, how many of it these were about."""
        each = 1 if self.guidance is None else 2
        if self.verification is None:
            return {"nfe": each * self.canvas.steps, "canvases": each * self.canvas.steps}
        return {"nfe": each * self.verification.calls, "canvases": each * self.verification.canvases}

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

        The sizes of a step hang on this, so a step waits for the device here, and else only in the regret law
        (`OrderScorer.law_of`). What the last one wrote is looked at with it: log-probabilities that are no numbers come
        of logits that say nothing.

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
