"""The rules that may mask again what an earlier step unmasked. Their order bounds no likelihood.

Symbols: T the budget, u the steps left (this one included), `c` confidence, psi the probability that a token had when
it was unmasked.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State, check_range
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import largest
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli

SCHEDULES = ("cap", "rescale")


@dataclass(frozen=True, kw_only=True)
class ReMDMSampler(Sampler):
    """Ancestral sampling that remasks each unmasked token with probability sigma. ReMDM, arXiv 2503.00307, section 4.1.

    Linear schedule: alpha_t = 1 - u/T now, alpha_s = 1 - (u - 1)/T after this step. A masked position is unmasked with
    probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), given that at least one is, so that as many are masked
    after each step as in ancestral sampling (theorem 3.1). With eta 0 it is `iid`. The phases of their section 4.2
    (switch, loop) are not here.

    Attributes:
        schedule: "cap": sigma = min(eta, sigma_max); "rescale": sigma = eta sigma_max; sigma_max = min(1,
            (1 - alpha_s) / alpha_t).
        eta: in [0, 1]. Their code has 0.008 for cap, 0.015 for rescale, at 1024 steps or more.
        confidence: "ReMDM-conf": sigma of a position is sigma exp(-psi) / sum over unmasked positions of exp(-psi),
            and masked positions are unmasked as in ancestral sampling. Their code has it with rescale and eta 1.
    """

    schedule: str = "cap"
    eta: float = 0.008
    confidence: bool = False
    is_random: ClassVar[bool] = True
    remasks: ClassVar[bool] = True

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        check_range("eta", self.eta, low=0.0, high=1.0)
        if not isinstance(self.confidence, bool):
            raise ValueError(f"confidence must be True or False, got {self.confidence!r}")

    def init_state(self, step: Step) -> State:
        """T, [batch, 1]."""
        return (step.masked.new_ones((len(step.masked), 1), dtype=torch.float) * step.steps_left,)

    def propose(self, step: Step, state: State) -> Proposal:
        before = state[0] - step.steps_left  # alpha_t T
        sigma_max = ((step.steps_left - 1) / before.clamp(min=1.0)).clamp(max=1.0)
        sigma = sigma_max.clamp(max=self.eta) if self.schedule == "cap" else self.eta * sigma_max
        extra = torch.zeros_like(sigma) if self.confidence else sigma * before
        logit = extra.log1p() - (step.steps_left - 1 - extra).clamp(min=0.0).log()
        unmask = NonEmptyBernoulli(logit.expand(step.masked.shape), step.masked).draw(step.uniform(1))
        if self.confidence:
            sigma = sigma * self._weights(step)
        return Proposal(unmask, state, (step.uniform() < sigma) & step.unmasked)

    def _weights(self, step: Step) -> Tensor:
        # psi is infinite where masked; nan, where nothing is unmasked, weighs nothing
        psi = step.token_log_probs.exp().masked_fill(~step.unmasked, torch.inf)
        return (-psi).softmax(-1).nan_to_num(nan=0.0)


@dataclass(frozen=True, kw_only=True)
class WINOSampler(Sampler):
    """Draft widely, keep narrowly: every position with c > draft is unmasked (else the one with the largest c), and
    every unmasked token whose probability is now below `verify` is masked again. WINO, arXiv 2507.18578.

    As in the authors' code, a step that drafts a single position remasks none, and a step remasks fewer (the least
    probable) than the step before drafted, so that two steps always gain.

    What differs: they verify a token with a second, masked copy of the block behind the canvas, which shares its
    positions and sees every token but its own. Here the probability comes from the ordinary predictions, in which the
    denoiser sees the token that it judges, because a second copy of positions cannot be had from every model. A
    denoiser that copies what it sees verifies everything, and the rule is then `threshold`. Their code also limits a
    draft to min(max(0.7 n, 5), 20) positions; here there is no limit.

    Attributes:
        draft: tau_1 in [0, 1].
        verify: tau_2 in [0, 1], larger than tau_1 in the paper.
    """

    draft: float = 0.6
    verify: float = 0.9
    remasks: ClassVar[bool] = True
    reads_unmasked: ClassVar[bool] = True

    def __post_init__(self):
        check_range("draft", self.draft, low=0.0, high=1.0)
        check_range("verify", self.verify, low=0.0, high=1.0)

    def init_state(self, step: Step) -> State:
        """How many positions the step before drafted, int [batch, 1]."""
        return (step.masked.new_zeros((len(step.masked), 1), dtype=torch.long),)

    def propose(self, step: Step, state: State) -> Proposal:
        (before,) = state
        draft = step.masked & (step.predictions.confidence > self.draft)
        count = draft.sum(-1, keepdim=True).clamp(min=1)  # none: the loop takes one
        probability = step.predictions.log_prob(step.canvas).exp()
        doubtful = step.unmasked & (probability < self.verify)
        return Proposal(draft, (count,), largest(-probability, doubtful, torch.where(count > 1, before - 1, 0)))
