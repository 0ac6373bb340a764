"""`DAPDSampler`: positions that attend to each other do not go together."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State, check_range
from hf_learned_order.denoisers.predictions import Step


@dataclass(frozen=True, kw_only=True)
class DAPDSampler(Sampler):
    """Positions of which no two are joined by an edge of the attention graph; from when less than half of what was
    masked at first is left, every position with c > confidence, else the one with the largest c. DAPD, arXiv
    2603.12996.

    The graph: s_ij = (a_ij + a_ji) / 2 with the attention a, the mean over the heads of the last 30 % of the layers; an
    edge between masked i and j where s_ij > threshold. The set (Welsh and Powell): positions in falling order of
    c_i sum_j s_ij, j masked, each taken unless it has an edge to one that is.

    The text of the paper was not at hand: this was written from a description of it. Their threshold is a schedule that
    the description does not give; here it is constant.

    Attributes:
        threshold: tau in [0, 1]; attention over a sequence sums to 1, so it has to be the smaller the longer that is.
        confidence: in [0, 1], of the second half.
    """

    threshold: float = 0.05
    confidence: float = 0.9
    needs_attentions: ClassVar[bool] = True

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)
        check_range("confidence", self.confidence, low=0.0, high=1.0)

    def init_state(self, step: Step) -> State:
        """How many positions were masked at first, int [batch, 1]."""
        return (step.masked.sum(-1, keepdim=True),)

    def propose(self, step: Step, state: State) -> Proposal:
        (first,) = state
        sure = step.masked & (step.predictions.confidence > self.confidence)
        late = 2 * step.masked.sum(-1, keepdim=True) < first
        return Proposal(torch.where(late, sure, self.independent(step)), state)

    def independent(self, step: Step) -> Tensor:
        """bool [batch, canvas]: the set of the first half."""
        attention, masked = step.attentions, step.masked
        assert attention is not None  # the loop asks for them, for rules with `needs_attentions`
        both = (attention + attention.mT).double() / 2
        others = ~torch.eye(masked.shape[-1], dtype=torch.bool, device=masked.device)
        both = both * (others & masked[:, :, None] & masked[:, None, :])
        edges = both > self.threshold
        weight = (step.predictions.confidence * both.sum(-1)).masked_fill(~masked, -torch.inf)
        order = weight.argsort(dim=-1, descending=True, stable=True)
        rows = torch.arange(len(masked), device=masked.device)
        taken = torch.zeros_like(masked)
        for position in order.unbind(-1):
            free = masked[rows, position] & ~(edges[rows, position] & taken).any(-1)
            taken[rows, position] = free
        return taken
