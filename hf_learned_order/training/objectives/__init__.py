"""The objectives: a batch in, a loss and what there is to watch out. It imports from its own room and below."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"OBJECTIVES": "table", "make_objective": "table", "OrderELBO": "elbo"})  # pyrefly: ignore
