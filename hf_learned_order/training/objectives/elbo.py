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

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_positive
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.sharding import is_split
from hf_learned_order.orders.posterior import CleanPosterior, ValueBaseline
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.chains import Chains
from hf_learned_order.training.objectives.drawing import ChainObjective
from hf_learned_order.training.objectives.updates import mean_over_processes

BASELINES = ("leave_one_out", "value", "none")
RETURNS = ("per_step", "trajectory")
GRADIENT_STEPS = ("all", "one")
UNREACHED = ("max_normalized", "regret")  # laws that rule sets out: the KL to them is infinite
EXPLORING = 0.85  # of a training, the share with exploration


def remaining(progress: float) -> float:
    """What is left of exploration after a share of the training: it falls as a square, to 0 at `EXPLORING`."""
    return max(0.0, 1.0 - progress / EXPLORING) ** 2


class OrderELBO(ChainObjective):
    """The variational objective.

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
        super().__init__(denoiser, scorer, max_denoising_steps=max_denoising_steps, eos_token_id=eos_token_id)
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
        self.posterior = posterior
        self.min_denoising_steps = min_denoising_steps
        self.num_chains = num_chains
        self.baseline = baseline
        self.returns = returns
        self.gradient_steps = gradient_steps
        self.exploration = exploration
        self.value = ValueBaseline(scorer.config) if baseline == "value" else None
        self.holds_speed = False  # whether updates leave the NFE to the law's bias (`pace`)

    def measured(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (nats a position, to be minimised), and the means over the batch of `bound`, `kl` (nats) and `nfe`.

        In training the gradient of `loss` counts, not its value; in evaluation it is minus the bound.
        """
        length, device = batch.clean.shape[1], batch.clean.device
        if self.training and self.holds_speed:
            self.scorer.tilt = torch.zeros((), device=device, requires_grad=True)
        chains = self.chains(batch)
        loss = -(self.surrogate(chains) if self.training else chains.bound.mean()) / length
        if self.scorer.tilt is not None:
            loss = loss + self._price(chains, self.scorer.tilt) * chains.calls_surrogate() / length
            self.scorer.tilt = None
        if self.value is not None and self.training:
            loss = loss + chains.value_loss(returns=self.returns) / length**2
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


def _check_law(law: str, posterior: CleanPosterior | None, exploration: float) -> None:
    if law in UNREACHED and exploration:
        raise ValueError(f'exploration must be 0 with law "{law}": the KL to where it starts is infinite')
    if law in UNREACHED and posterior is not None:
        raise ValueError(
            f'posterior must be "prior" with law "{law}": the KL to it from a posterior of its own is infinite '
            "(None, of OrderELBO itself)"
        )
