"""`hf-learned-order`: one file a command. It may import every other room; none imports it."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"main": "main"})  # pyrefly: ignore
