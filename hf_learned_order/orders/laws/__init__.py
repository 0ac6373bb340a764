"""The laws of r_t, the set of positions to unmask: one law a file. It imports from its own room and below."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "SubsetDistribution": "base",
        "OneSet": "base",
        "NonEmptyBernoulli": "non_empty",
        "MaxNormalizedBernoulli": "max_normalized",
        "CountedBernoulli": "counted",
    },
)  # pyrefly: ignore
