"""The learned order in training, each row drawn for itself."""

from dataclasses import dataclass

from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, State
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.training.objectives.updates import Draws


@dataclass(frozen=True, kw_only=True)
class OrderByRow(LearnedOrderSampler):
    """The learned order, drawn for each row by itself: the same whatever batch the row is in."""

    draws: Draws

    def propose(self, step: Step, state: State) -> Proposal:
        return self.drawn(step, self.scorer(step))

    def drawn(self, step: Step, values: Tensor) -> Proposal:
        """A draw from the law of `values`, which the scorer gave."""
        uniform = self.draws.uniform(step.masked.shape[1] + 1)[step.rows]
        return Proposal(self.scorer.law(step, values, bias=self.bias).draw(uniform))
