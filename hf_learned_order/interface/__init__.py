"""What a transformers user touches: `attach`, `generate`, settings, the harness model.

It may import `training` and the rooms below that.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"attach": "attach", "detach": "attach", "load_model": "loading", "custom_generate": "loading"}
)  # pyrefly: ignore
