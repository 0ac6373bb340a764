"""What is learned: laws over sets of positions, and the scorer that gives their parameters.

It may import `denoisers` and the rooms below that.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"OrderScorer": "scorer", "OrderScorerConfig": "configuration", "CleanPosterior": "posterior"}
)  # pyrefly: ignore
