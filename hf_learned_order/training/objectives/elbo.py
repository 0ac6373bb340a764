"""The evidence lower bound over unmasking orders and its gradient.

    ELBO = E_q sum_t step_t
    step_t = sum_{i in M_t} pi_t^i log p_theta(x^i | x_t) - KL(q(r_t | x_t, x) || p_psi(r_t | x_t))

Given x_t the expectation over r_t is exact (Rao-Blackwellised). The gradient has a second part, for the effect of r_t
on the states that follow, estimated by REINFORCE with a leave-one-out baseline over K chains of the same response:

    sum_t grad log q(r_t) (G_t - mean of the other chains' G_t),     G_t = sum_{u > t} step_u, held constant.

At the last step of the budget both laws unmask everything: no KL, no score term.

Where a law has no closed marginals, or a pair of laws no closed KL, that part of step_t is taken at the draw itself,
sum of r_t^i log p_theta(x^i | x_t) or -(log q(r_t) - log p_psi(r_t)), and is part of G_t: log q(r_t) is held constant
there, as the mean of its gradient is 0.

The regret law is one set. In training its random form takes its place (`OrderScorer.exploring_law`); in evaluation the
bound is that of the set.

What the defaults are compared with: no baseline, or a learned value in its place; the return of the whole trajectory in
the place of G_t; and the gradient of one random step times the number of steps. All are unbiased.

The learned value says of each masked position what it is still worth, v^i(x_t, x), and of a draw V(r_t) = sum of v^i
over M_t without r_t. With closed marginals its mean is sum_i (1 - pi_t^i) v^i, whose gradient makes up for what V takes
away; and each G_t has E V(r_u) - V(r_u) added for every u > t, whose mean is 0: what later draws happened to do.

Source: Fox et al., arXiv 2602.23968; leave-one-out: Kool et al., Buy 4 REINFORCE samples, get a baseline for free;
baselines that see the draw: Gu et al., arXiv 1611.02247; those of later steps: Cheng et al., arXiv 1908.03263.
Symbols: `x` clean, `x_t` canvas, `M_t` masked, `r_t` unmask, `pi` q.mean, `T` max_denoising_steps, `K` num_chains.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from hf_learned_order.common.checks import check_positive
from hf_learned_order.decoding.canvas import left_padded, padding_behind, settled
from hf_learned_order.denoisers.denoiser import Denoiser, predict
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.denoisers.sharding import any_process, idle, is_split
from hf_learned_order.orders.laws.base import SubsetDistribution, everything
from hf_learned_order.orders.posterior import CleanPosterior, ValueBaseline
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.chains import Chains
from hf_learned_order.training.updates import Draws, mean_over_processes

BASELINES = ("leave_one_out", "value", "none")
RETURNS = ("per_step", "trajectory")
GRADIENT_STEPS = ("all", "one")
UNREACHED = ("max_normalized", "regret")  # laws that rule sets out: the KL to them is infinite
EXPLORING = 0.85  # of a training, the share with exploration


def remaining(progress: float) -> float:
    """What is left of exploration after a share of the training: it falls as a square, to 0 at `EXPLORING`."""
    return max(0.0, 1.0 - progress / EXPLORING) ** 2


class OrderELBO(nn.Module):
    """The variational objective, as one module that a Trainer can wrap: batch in, loss and measurements out.

    Args:
        denoiser: p_theta; its parameters take part where they require a gradient.
        scorer: p_psi.
        posterior: q_phi; None shares the scorer's law (q = p, no KL).
        max_denoising_steps: T.
        min_denoising_steps: each response draws its T from this to `max_denoising_steps`; None: always the latter.
        num_chains: K; leave-one-out needs 2.
        eos_token_id: a chain is finished when everything before the first EOS is settled, as in generation.
        baseline: what is subtracted from the returns: "leave_one_out", "value" (learned along), or "none".
        returns: "per_step", G_t, or "trajectory", the bound of the whole chain at each of its steps.
        gradient_steps: "all", or "one": a random one, the same for the batch, times the number of steps. It saves the
            memory of the others.
        exploration: beta, nats: the gradient is that of ELBO - beta E_q sum_t KL(q || the untrained scorer's law). As
            an attribute it can be changed between updates; `remaining` says how a training lets it fall to 0.

    Raises:
        ValueError: a choice is unknown, a number out of range, one chain is to be compared with others, or
            posterior or exploration are combined with a law from which their KL would be infinite:
            `UNREACHED`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        posterior: CleanPosterior | None = None,
        *,
        max_denoising_steps: int = 8,
        min_denoising_steps: int | None = None,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        baseline: str = "leave_one_out",
        returns: str = "per_step",
        gradient_steps: str = "all",
        exploration: float = 0.0,
    ):
        super().__init__()
        for name, choice, choices in (
            ("baseline", baseline, BASELINES),
            ("returns", returns, RETURNS),
            ("gradient_steps", gradient_steps, GRADIENT_STEPS),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
        least = max_denoising_steps if min_denoising_steps is None else min_denoising_steps
        for name, value in (
            ("max_denoising_steps", max_denoising_steps),
            ("min_denoising_steps", least),
            ("num_chains", num_chains),
        ):
            check_positive(name, value)
        if baseline == "leave_one_out" and num_chains < 2:
            raise ValueError(
                f'num_chains must be 2 or more with baseline "leave_one_out", got {num_chains}: '
                'one chain has no others to be compared with; "value" and "none" take one'
            )
        if not exploration >= 0:
            raise ValueError(f"exploration must be 0 or more, got {exploration}")
        if least > max_denoising_steps:
            raise ValueError(
                f"min_denoising_steps must be at most max_denoising_steps, got {least} and {max_denoising_steps}"
            )
        _check_law(scorer.config.law, posterior, exploration)
        self.denoiser = denoiser
        self.scorer = scorer
        self.posterior = posterior
        self.max_denoising_steps = max_denoising_steps
        self.min_denoising_steps = min_denoising_steps
        self.num_chains = num_chains
        self.eos_token_id = eos_token_id
        self.baseline = baseline
        self.returns = returns
        self.gradient_steps = gradient_steps
        self.exploration = exploration
        self.value = ValueBaseline(scorer.config) if baseline == "value" else None
        self.holds_speed = False  # whether updates leave the NFE to the law's bias (`pace`)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` (nats a position, to be minimised), and the means over the batch of `bound`, `kl` (nats) and `nfe`.

        In training the gradient of `loss` counts, not its value; in evaluation it is minus the bound. `seeds` are those
        of `updates.Draws`; `given` bool [batch, canvas] are positions of `clean` that are known from the start.
        """
        if self.training and self.holds_speed:
            self.scorer.tilt = torch.zeros((), device=clean.device, requires_grad=True)
        chains = self.chains(input_ids, attention_mask, clean, seeds, given)
        loss = -(self.surrogate(chains) if self.training else chains.bound.mean()) / clean.shape[1]
        if self.scorer.tilt is not None:
            loss = loss + self._price(chains, self.scorer.tilt) * chains.calls_surrogate() / clean.shape[1]
            self.scorer.tilt = None
        if self.value is not None and self.training:
            loss = loss + chains.value_loss(returns=self.returns) / clean.shape[1] ** 2
        if self.training and (self.gradient_steps == "one" or not loss.requires_grad):
            # every chain may have finished before the chosen step, and one step is the denoiser's alone: each parameter
            # then has a gradient of 0. Weights that are split are not whole here, and have theirs by idle calls
            parts = [part for part in self.children() if part is not self.denoiser or not is_split(self.denoiser)]
            loss = loss + sum(0.0 * p.sum() for part in parts for p in part.parameters() if p.requires_grad)
        return {
            "loss": loss,
            "bound": chains.bound.detach().mean(),
            "kl": chains.kl.detach().sum(0).mean(),
            "nfe": chains.nfe.float().mean(),
        }

    def _price(self, chains: Chains, tilt: Tensor) -> Tensor:
        """lambda, nats a call: with it, the derivative of ELBO - lambda NFE with respect to the law's bias is 0.

        That makes lambda the multiplier of the constraint on the NFE, which the bias alone is left to meet: the scores
        learn what is best at that speed and have nothing to gain from slowing down. Of all processes together.
        """
        slopes: list[Tensor] = []
        for surrogate in (self.surrogate(chains), chains.calls_surrogate()):
            surrogate = surrogate + 0.0 * tilt  # a batch may not depend on it: a budget of one step
            (slope,) = torch.autograd.grad(surrogate, tilt, retain_graph=True)
            slopes.append(mean_over_processes(slope))
        bound, calls = slopes
        return torch.where(calls.abs() > 1e-6, bound / calls, 0.0)

    def surrogate(self, chains: Chains) -> Tensor:
        """`Chains.surrogate` with this objective's baseline and returns."""
        return chains.surrogate(baseline=self.baseline, returns=self.returns)

    def chains(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Chains:
        """Draw K chains of each response from q and evaluate every term."""
        draws = Draws(seeds, rows=len(clean), device=clean.device)
        batch, repeats, steps = len(clean), self.num_chains, self.max_denoising_steps
        budget = self._budgets(draws).repeat_interleave(repeats, 0)
        prompt, prompt_mask = left_padded(input_ids, attention_mask)
        prompt, prompt_mask, clean = (tensor.repeat_interleave(repeats, 0) for tensor in (prompt, prompt_mask, clean))
        masked = torch.ones_like(clean, dtype=torch.bool)
        if given is not None:
            masked = ~given.repeat_interleave(repeats, 0)
        chosen, choices = self._chosen(draws, steps)
        together = is_split(self.denoiser)
        own_scores = None
        zeros = torch.zeros(len(clean), device=clean.device)
        everything_seen, everything_active = [], []
        for number in range(1, steps + 1):
            left = steps - number + 1
            active = masked.any(-1) & (budget >= left)  # all end together: one of a smaller budget starts later
            rows = active.nonzero().squeeze(-1)
            others = together and any_process(len(rows) > 0, clean.device)
            gradient = torch.is_grad_enabled() and chosen in (None, number)
            seen = [zeros] * 7
            uniform = None
            if left > 1:  # of finished chains too, or what is drawn for one would hang on the others
                uniform = draws.uniform(repeats, clean.shape[1] + 1).flatten(0, 1)
            if len(rows):
                fresh = budget[rows] == left
                with torch.set_grad_enabled(gradient):
                    step, log_prob = self._step(
                        *(part[rows] for part in (prompt, prompt_mask, clean, masked)),
                        steps_left=left,
                        fresh=fresh,
                    )
                if self.posterior is not None and self.posterior.once and fresh.any():
                    # outside: the one step with a gradient may be a later one
                    scores = self.posterior.scores(step, clean[rows])[fresh]
                    if own_scores is None:
                        own_scores = scores.new_zeros(len(clean), *scores.shape[1:])
                    own_scores = own_scores.index_put((rows[fresh],), scores)
                with torch.set_grad_enabled(gradient):
                    unmask, *values = self._terms(
                        step,
                        clean[rows],
                        log_prob,
                        uniform=None if uniform is None else uniform[rows],
                        own_scores=None if own_scores is None else own_scores[rows],
                    )
                seen = [zeros.index_put((rows,), value) for value in values]
                masked = masked.index_put((rows,), step.masked & ~unmask)
                if self.eos_token_id is not None:
                    masked = masked & ~settled(clean == self.eos_token_id, masked)[:, None]
            elif others:
                with torch.set_grad_enabled(gradient and self._trains_denoiser()):
                    seen = [zeros + idle(self.denoiser, clean.device), *seen[1:]]
            everything_seen.append(torch.stack(seen))
            everything_active.append(active)
        terms, log_q, *rest = torch.stack(everything_seen, 1).view(7, steps, batch, repeats)
        active = torch.stack(everything_active).view(steps, batch, repeats)
        return Chains(terms, log_q, active, *rest, choices=choices)

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


def _check_law(law: str, posterior: CleanPosterior | None, exploration: float) -> None:
    if law in UNREACHED and exploration:
        raise ValueError(f'exploration must be 0 with law "{law}": the KL to where it starts is infinite')
    if law in UNREACHED and posterior is not None:
        raise ValueError(
            f'posterior must be "prior" with law "{law}": the KL to it from a posterior of its own is infinite '
            "(None, of OrderELBO itself)"
        )


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
