"""Hub repositories and model cards. It may import `evaluation` and the rooms below that."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"Card": "cards", "push_folder": "hub"})  # pyrefly: ignore
