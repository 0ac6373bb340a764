"""Objectives, and the trainer that minimises them. It may import `sharing` and the rooms below that."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"OrderTrainer": "trainer", "OrderTrainingArguments": "arguments"})  # pyrefly: ignore
