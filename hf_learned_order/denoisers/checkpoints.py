"""Published checkpoints: those that transformers' own classes read, and the check of what remote code computes.

LLaDA is a Llama under other names, Dream a Qwen2, A2D a Llama, Qwen2 or Qwen3, and Nemotron-Labs-Diffusion a
Ministral3. Their remote code is not needed; that of LLaDA, Dream and A2D does not run on transformers 5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_learned_order.denoisers.families import FAMILIES


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A published checkpoint that one of transformers' own classes computes to the bit.

    Attributes:
        model_class: that class.
        config: its configuration from the published `config.json`.
        keys: published name of a weight to its own, regular expressions; None where they are the same.
    """

    model_class: type[PreTrainedModel]
    config: Callable[[Mapping[str, Any]], PreTrainedConfig]
    keys: dict[str, str] | None = None


def _same(config_class: type[PreTrainedConfig]) -> Callable[[Mapping[str, Any]], PreTrainedConfig]:
    """The configuration has the same fields under another model type."""

    def convert(raw: Mapping[str, Any]) -> PreTrainedConfig:
        return config_class(**{key: value for key, value in raw.items() if key not in ("model_type", "auto_map")})

    return convert


_LLADA_FIELDS = {
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "vocab_size": "embedding_size",
    "max_position_embeddings": "max_sequence_length",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "weight_tying",
}
# what a Llama is; a checkpoint that differs would load and compute something else
_LLADA_FIXED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "clip_qkv": None,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
}
_LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.": "model.layers.",
    r"\.attn_norm\.": ".input_layernorm.",
    r"\.ff_norm\.": ".post_attention_layernorm.",
    r"\.q_proj\.": ".self_attn.q_proj.",
    r"\.k_proj\.": ".self_attn.k_proj.",
    r"\.v_proj\.": ".self_attn.v_proj.",
    r"\.attn_out\.": ".self_attn.o_proj.",
    r"\.ff_proj\.": ".mlp.gate_proj.",
    r"\.up_proj\.": ".mlp.up_proj.",
    r"\.ff_out\.": ".mlp.down_proj.",
}


def _llada_config(raw: Mapping[str, Any]) -> LlamaConfig:
    """LLaDA's fields as Llama's. Source: the published configuration_llada.py, itself OLMo's."""
    for name, value in _LLADA_FIXED.items():
        if raw.get(name) not in (None, value):
            raise ValueError(f"a LLaDA checkpoint must have {name}={value!r} to load as a Llama, got {raw[name]!r}")
    missing = [name for name in _LLADA_FIELDS.values() if raw.get(name) is None]
    if missing:
        raise ValueError(f"a LLaDA checkpoint must name {', '.join(missing)} in its config.json")
    return LlamaConfig(
        **{ours: raw[theirs] for ours, theirs in _LLADA_FIELDS.items()},
        num_key_value_heads=raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else raw["n_heads"]),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        mask_token_id=raw.get("mask_token_id"),  # pyrefly: ignore[unexpected-keyword] (kept as an attribute)
        eos_token_id=raw.get("eos_token_id"),
        bos_token_id=raw.get("bos_token_id"),
        # no pad_token_id: a Llama would never train that embedding, and here it is EOS
    )


_NEMOTRON_KEYS = {r"^encoder\.": "model.", r"^diffusion_head\.": "lm_head."}


def _nemotron_config(raw: Mapping[str, Any]) -> Ministral3Config:
    """Nemotron-Labs-Diffusion's fields are Ministral3's own. Source: the published modeling_ministral.py."""
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise ValueError(
                f"a Nemotron-Labs-Diffusion checkpoint must have {name}=False to load as a Ministral3, "
                f"got {raw[name]!r}"
            )
    if raw.get("dlm_paradigm") == "autoregressive":
        raise ValueError("a Nemotron-Labs-Diffusion checkpoint must not have dlm_paradigm='autoregressive' to denoise")
    if raw.get("pad_token_id") is None:  # a Ministral3's default is 11, whose embedding it would never train
        raw = {**raw, "pad_token_id": None}
    return _same(Ministral3Config)(raw)  # pyrefly: ignore[bad-return]


LAYOUTS = {
    "NemotronLabsDiffusionModel": Layout(
        model_class=Ministral3ForCausalLM, config=_nemotron_config, keys=_NEMOTRON_KEYS
    ),
    "LLaDAModelLM": Layout(model_class=LlamaForCausalLM, config=_llada_config, keys=_LLADA_KEYS),
    "DreamModel": Layout(model_class=Qwen2ForCausalLM, config=_same(Qwen2Config)),
    "A2DLlamaLMHeadModel": Layout(model_class=LlamaForCausalLM, config=_same(LlamaConfig)),
    "A2DQwen2LMHeadModel": Layout(model_class=Qwen2ForCausalLM, config=_same(Qwen2Config)),
    "A2DQwen3LMHeadModel": Layout(model_class=Qwen3ForCausalLM, config=_same(Qwen3Config)),
}


def native_config(raw: Mapping[str, Any], architecture: str) -> PreTrainedConfig:
    """The stock configuration of a checkpoint in a layout of `LAYOUTS`, with its special tokens and its family."""
    config = LAYOUTS[architecture].config(raw)
    family = FAMILIES[architecture]
    config.denoiser_family = architecture
    config.architectures = [LAYOUTS[architecture].model_class.__name__]
    if getattr(config, "mask_token_id", None) is None:
        config.mask_token_id = family.mask_token_id
    ends = family.eos_token_id if isinstance(family.eos_token_id, tuple) else (family.eos_token_id,)
    if config.eos_token_id is None or config.eos_token_id in ends:
        config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    return config


def load_native(
    name_or_path: str | PathLike, raw: Mapping[str, Any], architecture: str, **kwargs: Any
) -> PreTrainedModel:
    """The checkpoint as a model of the stock class, weights renamed as they are read.

    Args:
        name_or_path: a folder or a Hub repository.
        raw: its published `config.json`.
        architecture: a key of `LAYOUTS`.
        kwargs: for `from_pretrained`.

    Raises:
        ValueError: the weights or the configuration are not those of the layout.
    """
    layout = LAYOUTS[architecture]
    # pyrefly: ignore[not-iterable] (output_loading_info makes it a pair)
    model, report = layout.model_class.from_pretrained(
        name_or_path,
        config=native_config(raw, architecture),
        key_mapping=layout.keys,
        output_loading_info=True,
        **kwargs,
    )
    # a missing weight would be drawn at random, with no more than a line in the log
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:
        raise ValueError(f"weights of {str(name_or_path)!r} must be those of a {architecture}, got {wrong}")
    # saved again, it is a checkpoint of the stock class, as its configuration says, not of the published layout
    model.__dict__.pop("_weight_conversions", None)
    generation = model.generation_config  # without a file of its own, it was made from the published config.json
    if generation.eos_token_id == raw.get("eos_token_id"):
        generation.eos_token_id = model.config.eos_token_id
    if generation.pad_token_id is None:
        generation.pad_token_id = raw.get("pad_token_id")
    return model


def check_inv_freq(model: PreTrainedModel, *, restore: bool = False) -> None:
    """Compares the rotary frequencies of remote code with those that its configuration gives.

    transformers 5 builds a model without memory and fills in the weights; a buffer that no file holds stays
    uninitialised unless the code says how to compute it again, which code written for transformers 4 does not.

    Args:
        model: any model; the code of transformers itself is not checked.
        restore: write the right frequencies instead of raising.

    Raises:
        ValueError: some differ.
    """
    for name, module in model.named_modules():
        stock = type(module).__module__.startswith("transformers.")
        if stock or "inv_freq" not in getattr(module, "_non_persistent_buffers_set", ()):
            continue
        found = cast(Tensor, module.inv_freq)
        if found.is_meta:  # offloaded: there is nothing to compare
            continue
        expected = _inv_freq(cast(PreTrainedConfig, getattr(module, "config", model.config))).to(found.device)
        tolerance = max(1e-5, 2 * torch.finfo(found.dtype).eps)
        if found.shape == expected.shape and torch.allclose(found.float(), expected, rtol=tolerance, atol=0.0):
            continue
        if not restore:
            raise ValueError(
                f"{name}.inv_freq must be the rotary frequencies of the configuration, but it is not: from_pretrained "
                "left it uninitialised. load_denoiser(..., restore_inv_freq=True) computes it again, or load the model "
                "with the release of transformers that its code was written for"
            )
        module.inv_freq = expected.to(found.dtype)


def _inv_freq(config: PreTrainedConfig) -> Tensor:
    """theta^(-2i/d), or what the configuration's kind of RoPE makes of it."""
    rope = getattr(config, "rope_parameters", None) or {}  # where transformers 5 puts a published `rope_scaling`
    kind = rope.get("rope_type", "default")
    if kind in ROPE_INIT_FUNCTIONS:
        return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
    theta = rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    part = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    size = int(head_size * part)
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
