"""Tiny checkpoints in the layouts that were published, and slow references of what they compute."""

import json
import math
import shutil
from pathlib import Path

import stand_ins
import torch
from models import BOS, EOS, MASK, PAD, VOCAB
from safetensors.torch import save_file
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

Weights = dict[str, torch.Tensor]

# config.json of GSAI-ML/LLaDA-8B-Instruct, at tiny sizes
LLADA = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "embedding_size": VOCAB,
    "eos_token_id": EOS,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": MASK,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": EOS,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}

# config.json of Dream-org/Dream-v0-Instruct-7B, at tiny sizes
DREAM = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    },
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 64,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}


# config.json of nvidia/Nemotron-Labs-Diffusion-8B, at tiny sizes; rotary frequencies bend within 32 positions
NEMOTRON = {
    "ar_loss_weight": 1.0,
    "architectures": ["NemotronLabsDiffusionModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "sdpa",
    "auto_map": {
        "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
        "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
    },
    "block_size": 4,
    "bos_token_id": BOS,
    "dlm_loss_weight": None,
    "dlm_paradigm": "bidirectional",
    "dp_varying_mask_ratio": False,
    "eos_token_id": EOS,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "nemotron_labs_diffusion",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 8,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "5.0.0",
    "use_cache": False,
    "vocab_size": VOCAB,
}


def nemotron_weights(config: dict) -> Weights:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(0)
    size, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = (head * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    shapes = {"input_layernorm": (size,), "post_attention_layernorm": (size,)}
    shapes |= {"self_attn.q_proj": (wide, size), "self_attn.o_proj": (size, wide)}
    shapes |= {f"self_attn.{name}_proj": (narrow, size) for name in "kv"}
    shapes |= {"mlp.gate_proj": (inner, size), "mlp.up_proj": (inner, size), "mlp.down_proj": (size, inner)}
    layers = range(config["num_hidden_layers"])
    weights = {f"encoder.layers.{i}.{name}.weight": shape for i in layers for name, shape in shapes.items()}
    weights |= {f"{name}.weight": (config["vocab_size"], size) for name in ("encoder.embed_tokens", "diffusion_head")}
    weights["encoder.norm.weight"] = (size,)
    return {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in weights.items()}


def a2d(base: str, architecture: str, **fields) -> dict:
    """config.json of dLLM's autoregressive-to-diffusion models, at tiny sizes; it names no mask token."""
    shared = {key: value for key, value in DREAM.items() if key not in ("mask_token_id", "max_window_layers")}
    names = {name: f"modeling_{base}.{architecture}" for name in ("AutoModel", "AutoModelForMaskedLM")}
    names["AutoConfig"] = f"modeling_{base}.A2DConfig"
    return shared | {"model_type": f"a2d-{base}", "architectures": [architecture], "auto_map": names, **fields}


def llada_weights(config: dict, *, dtype: torch.dtype = torch.float32) -> Weights:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(0)
    size, inner = config["d_model"], config["mlp_hidden_size"]
    narrow = size * (config["n_kv_heads"] or config["n_heads"]) // config["n_heads"]
    shapes = {"q_proj": (size, size), "k_proj": (narrow, size), "v_proj": (narrow, size), "attn_out": (size, size)}
    shapes |= {"ff_proj": (inner, size), "up_proj": (inner, size), "ff_out": (size, inner)}
    shapes |= {"attn_norm": (size,), "ff_norm": (size,)}
    weights = {
        f"model.transformer.blocks.{i}.{name}.weight": shape
        for i in range(config["n_layers"])
        for name, shape in shapes.items()
    }
    weights |= {"model.transformer.wte.weight": (config["embedding_size"], size)}
    weights |= {"model.transformer.ln_f.weight": (size,)}
    if not config["weight_tying"]:
        weights["model.transformer.ff_out.weight"] = (config["embedding_size"], size)
    return {name: (0.4 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in weights.items()}


def llada_logits(weights: Weights, config: dict, ids: torch.Tensor) -> torch.Tensor:
    """LLaDA's forward pass, block by block, from its weights by their published names (arXiv 2502.09992, OLMo's code).

    [length] to [length, vocab]: pre-norm blocks, rotary positions in float32, attention without any mask.
    """
    heads, kv_heads = config["n_heads"], config["n_kv_heads"]
    size = config["d_model"] // heads

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        full = x.float()
        return weight * (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])).to(x.dtype)

    def turned(x: torch.Tensor) -> torch.Tensor:
        frequencies = 1.0 / config["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        angle = torch.outer(torch.arange(len(ids), dtype=torch.float32), frequencies)
        angle, full = torch.cat([angle, angle], -1), x.float()
        first, second = full.chunk(2, -1)
        return (full * angle.cos() + torch.cat([-second, first], -1) * angle.sin()).to(x.dtype)

    x = weights["model.transformer.wte.weight"][ids]
    for i in range(config["n_layers"]):
        at = {name: weights[f"model.transformer.blocks.{i}.{name}.weight"] for name in _NAMES}
        y = normed(x, at["attn_norm"])
        q, k, v = (linear(y, at[f"{name}_proj"]).view(len(ids), -1, size).transpose(0, 1) for name in ("q", "k", "v"))
        k, v = (part.repeat_interleave(heads // kv_heads, 0) for part in (turned(k), v))
        y = scaled_dot_product_attention(turned(q)[None], k[None], v[None], scale=1 / math.sqrt(size))[0]
        x = x + linear(y.transpose(0, 1).reshape(len(ids), -1), at["attn_out"])
        y = normed(x, at["ff_norm"])
        x = x + linear(silu(linear(y, at["ff_proj"])) * linear(y, at["up_proj"]), at["ff_out"])
    head = weights.get("model.transformer.ff_out.weight", weights["model.transformer.wte.weight"])
    return linear(normed(x, weights["model.transformer.ln_f.weight"]), head)


_NAMES = ("attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


def write_checkpoint(folder: Path, config: dict, weights: Weights, *, shards: int = 1) -> str:
    """A folder as on the Hub: config.json and model.safetensors, or shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)
    where = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(where.values()):
        part = {name: weights[name] for name in weights if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def stand_in(name: str, **config) -> PreTrainedModel:
    """A random model of the class `name` of `stand_ins.py`, made without loading anything."""
    kind = getattr(stand_ins, name)
    torch.manual_seed(0)
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "mask_token_id": MASK}
    return kind(kind.config_class(vocab_size=VOCAB, **{**special, **config})).eval()


def write_remote_code(folder: Path, name: str, **config) -> str:
    """A folder with a stand-in and the code that it needs, as a repository with remote code."""
    model = stand_in(name, **config)
    model.save_pretrained(folder)
    shutil.copy(stand_ins.__file__, folder / "modeling_stand_ins.py")
    fields = json.loads((folder / "config.json").read_text())
    auto = "AutoModelForMaskedLM" if name == "MDLM" else "AutoModelForCausalLM"
    names = {"AutoConfig": type(model.config).__name__, "AutoModel": name, auto: name}
    fields["auto_map"] = {key: f"modeling_stand_ins.{value}" for key, value in names.items()}
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)
