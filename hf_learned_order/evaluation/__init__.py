"""Measuring, comparing and drawing. It may import `tasks` and the rooms below that."""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"Evaluator": "evaluator", "compare": "comparison", "OrderMap": "order_maps", "Result": "results"}
)  # pyrefly: ignore
