"""K chains of each response, drawn from the posterior q, and the terms of their steps.

What the terms are for is in `elbo`, whose symbols hold here; what is made of them in `chains`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from hf_learned_order.decoding.canvas import padding_behind, settled
from hf_learned_order.denoisers.calls import predict
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.denoisers.sharding import any_process, idle, is_split
from hf_learned_order.orders.laws.base import SubsetDistribution, everything
from hf_learned_order.orders.posterior import CleanPosterior, ValueBaseline
from hf_learned_order.training.objectives.base import Batch, Objective
from hf_learned_order.training.objectives.chains import Chains
from hf_learned_order.training.objectives.updates import Draws


@dataclass
class _Drawing:
    """B K chains on their way, K of each response side by side."""

    prompt: Tensor
    prompt_mask: Tensor
    clean: Tensor
    masked: Tensor
    own_scores: Tensor | None = None  # of a posterior that computes them once


class ChainObjective(Objective):
    """An objective that draws chains; its subclass sets the attributes.

    Attributes:
        posterior: q_phi; None shares the scorer's law.
        value: a value baseline, if there is one.
        min_denoising_steps: each response draws its T from this to `max_denoising_steps`; None: always the latter.
        num_chains: K.
        gradient_steps: which steps have a gradient, "all" or "one".
        exploration: beta, nats.
    """

    posterior: CleanPosterior | None
    value: ValueBaseline | None
    min_denoising_steps: int | None
    num_chains: int
    gradient_steps: str
    exploration: float

    def chains(self, batch: Batch) -> Chains:
        """Draw K chains of each response from q and evaluate every term."""
        draws, repeats, steps = batch.draws, self.num_chains, self.max_denoising_steps
        budget = self._budgets(draws).repeat_interleave(repeats, 0)
        parts = (batch.prompt, batch.prompt_mask, batch.clean, batch.masked)
        drawing = _Drawing(*(part.repeat_interleave(repeats, 0) for part in parts))
        chosen, choices = self._chosen(draws, steps)
        together, device = is_split(self.denoiser), batch.clean.device
        zeros = torch.zeros(len(drawing.clean), device=device)
        everything_seen, everything_active = [], []
        for left in range(steps, 0, -1):
            active = drawing.masked.any(-1) & (budget >= left)  # all end together: one of a smaller budget starts later
            rows = active.nonzero().squeeze(-1)
            others = together and any_process(len(rows) > 0, device)
            gradient = torch.is_grad_enabled() and chosen in (None, steps - left + 1)
            seen = [zeros] * 7
            uniform = None
            if left > 1:  # of finished chains too, or what is drawn for one would hang on the others
                uniform = draws.uniform(repeats, batch.clean.shape[1] + 1).flatten(0, 1)[rows]
            if len(rows):
                fresh = budget[rows] == left
                values = self._advance(drawing, rows, uniform, steps_left=left, fresh=fresh, gradient=gradient)
                seen = [zeros.index_put((rows,), value) for value in values]
            elif others:
                with torch.set_grad_enabled(gradient and self._trains_denoiser()):
                    seen = [zeros + idle(self.denoiser, device), *seen[1:]]
            everything_seen.append(torch.stack(seen))
            everything_active.append(active)
        terms, log_q, *rest = torch.stack(everything_seen, 1).view(7, steps, -1, repeats)
        active = torch.stack(everything_active).view(steps, -1, repeats)
        return Chains(terms, log_q, active, *rest, choices=choices)

    def _advance(
        self,
        drawing: _Drawing,
        rows: Tensor,
        uniform: Tensor | None,
        *,
        steps_left: int,
        fresh: Tensor,
        gradient: bool,
    ) -> list[Tensor]:
        """One step of the chains `rows`; the terms of each, without the positions, from `_terms`."""
        clean = drawing.clean[rows]
        with torch.set_grad_enabled(gradient):
            prompt = drawing.prompt[rows], drawing.prompt_mask[rows]
            step, log_prob = self._step(*prompt, clean, drawing.masked[rows], steps_left=steps_left, fresh=fresh)
        own_scores = self._own_scores(drawing, rows, step, fresh)
        with torch.set_grad_enabled(gradient):
            unmask, *values = self._terms(step, clean, log_prob, uniform=uniform, own_scores=own_scores)
        masked = drawing.masked.index_put((rows,), step.masked & ~unmask)
        if self.eos_token_id is not None:
            masked = masked & ~settled(drawing.clean == self.eos_token_id, masked)[:, None]
        drawing.masked = masked
        return values

    def _own_scores(self, drawing: _Drawing, rows: Tensor, step: Step, fresh: Tensor) -> Tensor | None:
        """Those of a posterior that computes them at the first state, in the gradient whichever step has one."""
        if self.posterior is None or not self.posterior.once:
            return None
        if fresh.any():
            scores = self.posterior.scores(step, drawing.clean[rows])[fresh]
            if drawing.own_scores is None:
                drawing.own_scores = scores.new_zeros(len(drawing.clean), *scores.shape[1:])
            drawing.own_scores = drawing.own_scores.index_put((rows[fresh],), scores)
        return None if drawing.own_scores is None else drawing.own_scores[rows]

    def _budgets(self, draws: Draws) -> Tensor:
        """T of each response, int [batch]."""
        low, high = self.min_denoising_steps, self.max_denoising_steps
        if low is None:
            return torch.full((draws.rows,), high, device=draws.device)
        return low + (draws.uniform(1).squeeze(-1) * (high - low + 1)).long()

    def _chosen(self, draws: Draws, steps: int) -> tuple[int | None, int]:
        """The number of the one step with a gradient, None for all; and of how many."""
        if self.gradient_steps == "all":
            return None, 1
        # the last step is the denoiser's alone
        choices = max(1, steps - (not self._trains_denoiser()))
        return draws.integer(1, choices), choices

    def _trains_denoiser(self) -> bool:
        return any(p.requires_grad for p in self.denoiser.parameters())

    def _step(
        self,
        prompt: Tensor,
        prompt_mask: Tensor,
        clean: Tensor,
        masked: Tensor,
        *,
        steps_left: int,
        fresh: Tensor,
    ) -> tuple[Step, Tensor]:
        """What the denoiser says; where `fresh`, the K chains of a response are one still, and asked about once."""
        canvas = clean.masked_fill(masked, self.denoiser.mask_token_id)
        times = torch.where(fresh, self.num_chains, 1)
        asked = ~fresh | ((fresh.cumsum(0) - 1) % self.num_chains == 0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_denoiser()):
            parts = (part[asked] for part in (prompt, prompt_mask, canvas))
            predictions, hidden = predict(self.denoiser, *parts, hidden_states=self.scorer.config.layers_seen)
            if self.num_chains > 1 and fresh.any():
                predictions = predictions.repeated(times[asked])
                hidden = None if hidden is None else hidden.repeat_interleave(times[asked], 0)
        # The order laws do not train the denoiser through their inputs, only through the token term.
        step = Step(
            predictions=predictions.detach(),
            masked=masked,
            steps_left=steps_left,
            hidden_states=None if hidden is None else hidden.detach(),
            padding=padding_behind(prompt, prompt_mask),
        )
        return step, predictions.log_prob(clean)

    def laws(
        self, step: Step, clean: Tensor, own_scores: Tensor | None = None
    ) -> tuple[SubsetDistribution, SubsetDistribution, SubsetDistribution | None]:
        """q, p, and what exploration pulls q to, of a state; q and p are one and the same where the law is shared.

        `own_scores` as in `CleanPosterior.law`.
        """
        scores = self.scorer(step)
        if self.training:
            prior = self.scorer.exploring_law(step, scores, where=step.masked)
        else:
            prior = self.scorer.law(step, scores)
        # an untrained scorer's values are 0
        start = self.scorer.law(step, torch.zeros_like(scores)) if self.exploration else None
        if self.posterior is None:
            return prior, prior, start
        return self.posterior.law(step, clean, scores, own_scores=own_scores, tilt=self.scorer.tilt), prior, start

    def _terms(
        self, step: Step, clean: Tensor, log_prob: Tensor, *, uniform: Tensor | None, own_scores: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The positions drawn, and for each row step_t, log q(r_t), the KL, the drawn part of step_t, V, E V, the pull.

        `uniform` [batch, canvas + 1] makes the draw; None at the last step, where there is none.
        """
        log_prob = log_prob.masked_fill(~step.masked, 0.0)
        none = torch.zeros_like(log_prob[:, 0])
        if uniform is None:
            return everything(step.masked), log_prob.sum(-1), *[none] * 6
        law, prior, start = self.laws(step, clean, own_scores)
        with torch.no_grad():
            unmask = law.draw(uniform)
        log_q = law.log_prob(unmask)
        mean = _closed(lambda: law.mean)
        tokens = ((unmask if mean is None else mean) * log_prob).sum(-1)
        drawn = none if mean is not None else tokens.detach()
        kl, kl_drawn = (none, none) if law is prior else _divergence(law, prior, unmask, log_q)
        pull, pull_drawn = (none, none) if start is None else _divergence(law, start, unmask, log_q)
        drawn = drawn - kl_drawn - self.exploration * pull_drawn
        values = (none, none) if self.value is None else self._values(step, clean, unmask, mean)
        return unmask, tokens - kl, log_q, kl, drawn, *values, self.exploration * pull

    def _values(self, step: Step, clean: Tensor, unmask: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        """V of each row after its draw, and the mean of that; without closed marginals V before the draw, twice."""
        # pyrefly: ignore[not-callable] (called with a value baseline only)
        left = self.value(step, clean)
        if mean is None:
            value = left.sum(-1)
            return value, value.detach()
        return left.masked_fill(unmask, 0.0).sum(-1), (left.detach() * (1 - mean)).sum(-1)


def _divergence(
    law: SubsetDistribution, other: SubsetDistribution, unmask: Tensor, log_q: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(law || other) of each row, nats, and 0; without a closed form log q - log p of the draw, twice."""
    kl = _closed(lambda: kl_divergence(law, other))
    if kl is not None:
        return kl, torch.zeros_like(kl)
    kl = log_q.detach() - other.log_prob(unmask)
    return kl, kl.detach()


def _closed(form: Callable[[], Tensor]) -> Tensor | None:
    """Its value, or None where there is no closed form."""
    try:
        return form()
    except NotImplementedError:
        return None
