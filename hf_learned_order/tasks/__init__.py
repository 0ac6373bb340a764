"""Problems: where they come from, how they become a canvas, when a response is right.

It may import `decoding` and the rooms below that.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"TASKS": "table", "equations": "data", "CanvasCollator": "collator"})  # pyrefly: ignore
