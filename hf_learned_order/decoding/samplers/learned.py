"""The rule that a scorer has learned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State, check_range
from hf_learned_order.denoisers.predictions import Step

if TYPE_CHECKING:
    from hf_learned_order.orders.scorer import OrderScorer

MOST = 700.0  # exp of more is no float


@dataclass(frozen=True, kw_only=True)
class LearnedOrderSampler(Sampler):
    """The order that a scorer has learned: a draw from its law p_psi(r_t | x_t). arXiv 2602.23968.

    Attributes:
        scorer: the `OrderScorer`; in `generate` it is by default the one that was attached.
        bias: the knob for speed, without retraining: larger unmasks more positions a step (`OrderScorer.law`). In
            [-700, 700].
        greedy: instead of a draw the likeliest positions, about as many as the law draws
            (`SubsetDistribution.greedy`). The same set always; the law "regret" has one anyway. Not for a law of
            independent positions where these exclude one another: only chance keeps them apart there.
    """

    scorer: "OrderScorer"
    bias: float = 0.0
    greedy: bool = False
    reads_unmasked: ClassVar[bool] = True

    @property
    def needs_hidden_states(self) -> tuple[int, ...]:  # pyrefly: ignore[bad-override]
        """Those that the scorer sees; none, if it looks at predictions only."""
        return self.scorer.config.layers_seen

    @property
    def is_random(self) -> bool:  # pyrefly: ignore[bad-override]
        return self.scorer.is_random and not self.greedy

    def __post_init__(self):
        if not hasattr(self.scorer, "law"):
            raise TypeError(f"scorer must be an OrderScorer, got {type(self.scorer).__name__}")
        check_range("bias", self.bias, low=-MOST, high=MOST)
        if not isinstance(self.greedy, bool):
            raise ValueError(f"greedy must be True or False, got {self.greedy!r}")

    def propose(self, step: Step, state: State) -> Proposal:
        law = self.scorer.law_of(step, bias=self.bias)
        return Proposal(law.greedy() if self.greedy else law.draw(step.uniform(1)))

    def preference(self, step: Step) -> Tensor:
        """The chance of a position in the law; of a law that is one set what the scorer says of each, if it does."""
        values = self.scorer(step)
        if not self.scorer.is_random and values.shape == step.masked.shape:
            return values
        return self.scorer.law(step, values, bias=self.bias).mean
