"""The rules that say which positions a step unmasks. It imports from its own room and below."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"SAMPLERS": "table", "make_sampler": "table", "Sampler": "base", "Proposal": "base"}
)  # pyrefly: ignore
