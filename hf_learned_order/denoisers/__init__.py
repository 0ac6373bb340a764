"""Any Hugging Face model as a denoiser: logits at positions, hidden states.

It may import `common` and the rooms below that.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Denoiser": "denoiser",
        "predict": "denoiser",
        "load_denoiser": "loading",
        "load_tokenizer": "loading",
        "Family": "families",
        "register_family": "families",
        "Predictions": "predictions",
        "Step": "predictions",
    },
)  # pyrefly: ignore
