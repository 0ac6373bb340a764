"""The one decoding loop and what it is made of. It may import `orders` and the rooms below that."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"decode": "loop", "LearnedOrderOutput": "outputs"})  # pyrefly: ignore
