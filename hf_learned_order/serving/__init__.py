"""Learned orders and rules in serving engines: one exported scorer, one decision a step, an adapter for each engine.

Engines give logits, no hidden states, and run the denoiser themselves. The adapters, `sglang`, `diffusers` and
`diffulex`, are imported where their engine is installed. They may import `training` and the rooms below that; they and
`interface` do not know each other.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BlockDecision": "decision",
        "ExportedScorer": "export",
        "export_scorer": "export",
        "step_maps": "rollouts",
    },
)  # pyrefly: ignore
