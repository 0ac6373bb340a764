"""The name that Hub repositories pushed by version 0.1 import `custom_generate` from."""

from hf_learned_order.interface.loading import custom_generate

__all__ = ["custom_generate"]
