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

What the defaults are compared with: no baseline, or a learned value V(x_t, x) in its place; the return of the whole
trajectory in the place of G_t; and the gradient of one random step times the number of steps. All are unbiased.

Source: Fox et al., arXiv 2602.23968; leave-one-out: Kool et al., Buy 4 REINFORCE samples, get a baseline for free.
Symbols: `x` clean, `x_t` canvas, `M_t` masked, `r_t` unmask, `pi` q.mean, `T` max_denoising_steps, `K` num_chains.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from hf_learned_order.canvas import left_padded, settled
from hf_learned_order.denoisers import Denoiser, predict
from hf_learned_order.distributions import SubsetDistribution, everything
from hf_learned_order.posteriors import CleanPosterior, ValueBaseline
from hf_learned_order.predictions import Step
from hf_learned_order.scorer import ELBO_LAWS, OrderScorer

BASELINES = ("leave_one_out", "value", "none")
RETURNS = ("per_step", "trajectory")
GRADIENT_STEPS = ("all", "one")


class Chains(NamedTuple):
    """K chains of each of B responses, T steps each; 0 after a chain has finished.

    Attributes:
        step_terms: [T, B, K], nats, differentiable.
        log_q: [T, B, K], log-probability of the positions drawn, differentiable.
        nfe: [B, K], denoiser calls while something was masked.
        kl: [T, B, K], nats; where the pair of laws has no closed KL, log q - log p of the draw.
        drawn: [T, B, K], the part of `step_terms` that was taken at the draw; 0 where all of it is an expectation.
        values: [T, B, K], V(x_t, x) of a value baseline, differentiable; 0 without one.
        choices: from how many steps the one with a gradient was chosen; 1 where all have theirs.
    """

    step_terms: Tensor
    log_q: Tensor
    nfe: Tensor
    kl: Tensor
    drawn: Tensor
    values: Tensor
    choices: int = 1

    @property
    def bound(self) -> Tensor:
        """The single-chain estimate of the ELBO, [B, K], nats."""
        return self.step_terms.sum(0)

    def returns(self, kind: str = "per_step") -> Tensor:
        """[T, B, K], nats, held constant: what the score function of a step is multiplied by, before the baseline."""
        steps = self.step_terms.detach()
        if kind == "trajectory":
            return steps.sum(0).expand_as(steps)
        return steps.flip(0).cumsum(0).flip(0) - steps + self.drawn

    def surrogate(self, *, baseline: str = "leave_one_out", returns: str = "per_step") -> Tensor:
        """A scalar whose gradient is an unbiased estimate of the ELBO's, in nats a response."""
        total = self.returns(returns)
        if baseline == "value":
            total = total - self.values.detach()
        elif baseline == "leave_one_out":
            total = leave_one_out(total)
        return self.choices * (self.step_terms + self.log_q * total).sum(0).mean()

    def value_loss(self, *, returns: str = "per_step") -> Tensor:
        """Mean squared error of `values`, nats^2, over the steps that a law decided."""
        number = torch.arange(len(self.values), device=self.nfe.device)[:, None, None]
        decided = (number < self.nfe) & (number < len(self.values) - 1)
        error = (self.values - self.returns(returns)).square() * decided
        return error.sum() / decided.sum().clamp(min=1)


def leave_one_out(returns: Tensor) -> Tensor:
    """`returns` [..., K] less the mean of the other chains', as they are where K is 1."""
    others = max(1, returns.shape[-1] - 1)
    return returns - (returns.sum(-1, keepdim=True) - returns) / others


class OrderELBO(nn.Module):
    """The variational objective, as one module that a Trainer can wrap: batch in, loss and measurements out.

    Args:
        denoiser: p_theta; its parameters take part where they require a gradient.
        scorer: p_psi.
        posterior: q_phi; None shares the scorer's law (q = p, no KL).
        max_denoising_steps: T.
        num_chains: K.
        eos_token_id: a chain is finished when everything before the first EOS is settled, as in generation.
        baseline: what is subtracted from the returns: "leave_one_out", "value" (learned along), or "none".
        returns: "per_step", G_t, or "trajectory", the bound of the whole chain at each of its steps.
        gradient_steps: "all", or "one": a random one, the same for the batch, times the number of steps. It saves the
            memory of the others.

    Raises:
        ValueError: a choice is unknown, a number out of range, the law has no ELBO, or a posterior is combined with a
            max-normalised prior, from which its KL would be infinite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        posterior: CleanPosterior | None = None,
        *,
        max_denoising_steps: int = 8,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        baseline: str = "leave_one_out",
        returns: str = "per_step",
        gradient_steps: str = "all",
    ):
        super().__init__()
        for name, choice, choices in (
            ("baseline", baseline, BASELINES),
            ("returns", returns, RETURNS),
            ("gradient_steps", gradient_steps, GRADIENT_STEPS),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
        for name, value in (("max_denoising_steps", max_denoising_steps), ("num_chains", num_chains)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if scorer.config.law not in ELBO_LAWS:
            raise ValueError(
                f"law must be one of {', '.join(ELBO_LAWS)}, got {scorer.config.law!r}, "
                "which has no ELBO and is fitted by another objective"
            )
        if posterior is not None and scorer.config.law == "max_normalized":
            raise ValueError(
                'law must not be "max_normalized" for a prior with a posterior of its own: '
                "the KL from any other law to it is infinite"
            )
        self.denoiser = denoiser
        self.scorer = scorer
        self.posterior = posterior
        self.max_denoising_steps = max_denoising_steps
        self.num_chains = num_chains
        self.eos_token_id = eos_token_id
        self.baseline = baseline
        self.returns = returns
        self.gradient_steps = gradient_steps
        self.value = ValueBaseline(scorer.config) if baseline == "value" else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, clean: Tensor, given: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss` (nats a position, to be minimised), and the means over the batch of `bound`, `kl` (nats) and `nfe`.

        `given` bool [batch, canvas] are positions of `clean` that are known from the start.
        """
        chains = self.chains(input_ids, attention_mask, clean, given)
        loss = -self.surrogate(chains) / clean.shape[1]
        if self.value is not None:
            loss = loss + chains.value_loss(returns=self.returns) / clean.shape[1] ** 2
        if self.gradient_steps == "one":
            # every chain may have finished before the chosen step: each parameter then has a gradient of 0
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        return {
            "loss": loss,
            "bound": chains.bound.detach().mean(),
            "kl": chains.kl.detach().sum(0).mean(),
            "nfe": chains.nfe.float().mean(),
        }

    def surrogate(self, chains: Chains) -> Tensor:
        """`Chains.surrogate` with this objective's baseline and returns."""
        return chains.surrogate(baseline=self.baseline, returns=self.returns)

    def chains(self, input_ids: Tensor, attention_mask: Tensor, clean: Tensor, given: Tensor | None = None) -> Chains:
        """Draw K chains of each response from q and evaluate every term."""
        batch, repeats, steps = clean.shape[0], self.num_chains, self.max_denoising_steps
        prompt, prompt_mask = left_padded(input_ids, attention_mask)
        prompt, prompt_mask, clean = (tensor.repeat_interleave(repeats, 0) for tensor in (prompt, prompt_mask, clean))
        masked = torch.ones_like(clean, dtype=torch.bool)
        if given is not None:
            masked = ~given.repeat_interleave(repeats, 0)
        nfe = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        chosen, choices = self._chosen()
        everything_seen = []
        for number in range(1, steps + 1):
            rows = masked.any(-1).nonzero().squeeze(-1)  # finished chains cost nothing
            zeros = torch.zeros(len(clean), device=clean.device)
            seen = [zeros] * 5
            if len(rows):
                nfe[rows] += 1
                with torch.set_grad_enabled(torch.is_grad_enabled() and chosen in (None, number)):
                    step, log_prob = self._step(
                        prompt[rows], prompt_mask[rows], clean[rows], masked[rows], steps - number + 1
                    )
                    unmask, *values = self._terms(step, clean[rows], log_prob, last=number == steps)
                seen = [zeros.index_put((rows,), value) for value in values]
                masked = masked.index_put((rows,), step.masked & ~unmask)
                if self.eos_token_id is not None:
                    masked = masked & ~settled(clean == self.eos_token_id, masked)[:, None]
            everything_seen.append(torch.stack(seen))
        terms, log_q, kl, drawn, values = torch.stack(everything_seen, 1).view(5, steps, batch, repeats)
        return Chains(terms, log_q, nfe.view(batch, repeats), kl, drawn, values, choices)

    def _chosen(self) -> tuple[int | None, int]:
        """The number of the one step with a gradient, None for all; and of how many."""
        if self.gradient_steps == "all":
            return None, 1
        # the last step is the denoiser's alone
        choices = max(1, self.max_denoising_steps - (not self._trains_denoiser()))
        return int(torch.randint(1, choices + 1, ())), choices

    def _trains_denoiser(self) -> bool:
        return any(p.requires_grad for p in self.denoiser.parameters())

    def _step(
        self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, masked: Tensor, steps_left: int
    ) -> tuple[Step, Tensor]:
        canvas = clean.masked_fill(masked, self.denoiser.mask_token_id)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_denoiser()):
            predictions, hidden = predict(self.denoiser, prompt, prompt_mask, canvas, hidden_states=True)
        # The order laws do not train the denoiser through their inputs, only through the token term.
        step = Step(
            predictions=predictions.detach(),
            masked=masked,
            steps_left=steps_left,
            hidden_states=hidden.detach(),  # pyrefly: ignore[missing-attribute] (they were asked for)
        )
        return step, predictions.log_prob(clean)

    def laws(self, step: Step, clean: Tensor) -> tuple[SubsetDistribution, SubsetDistribution]:
        """q and p of a state; one and the same where the law is shared."""
        scores = self.scorer(step)
        prior = self.scorer.law(step, scores)
        return prior if self.posterior is None else self.posterior.law(step, clean, scores), prior

    def _terms(self, step: Step, clean: Tensor, log_prob: Tensor, *, last: bool) -> tuple[Tensor, ...]:
        """The positions drawn, and for each row step_t, log q(r_t), the KL, the drawn part of step_t, V(x_t, x)."""
        log_prob = log_prob.masked_fill(~step.masked, 0.0)
        none = torch.zeros_like(log_prob[:, 0])
        if last:
            return everything(step.masked), log_prob.sum(-1), none, none, none, none
        law, prior = self.laws(step, clean)
        with torch.no_grad():
            unmask = law.sample()
        log_q = law.log_prob(unmask)
        drawn = none
        mean = _closed(lambda: law.mean)
        tokens = ((unmask if mean is None else mean) * log_prob).sum(-1)
        if mean is None:
            drawn = drawn + tokens.detach()
        kl = none if law is prior else _closed(lambda: kl_divergence(law, prior))
        if kl is None:
            kl = log_q.detach() - prior.log_prob(unmask)
            drawn = drawn - kl.detach()
        value = none if self.value is None else self.value(step, clean)
        return unmask, tokens - kl, log_q, kl, drawn, value


def _closed(form: Callable[[], Tensor]) -> Tensor | None:
    """Its value, or None where there is no closed form."""
    try:
        return form()
    except NotImplementedError:
        return None
