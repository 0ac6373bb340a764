"""Denoisers and tokenizers from a folder or a Hub repository."""

from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_learned_order.denoisers.adapters import CONFIG, adapter_config, put_adapter
from hf_learned_order.denoisers.checkpoints import LAYOUTS, check_inv_freq, load_native
from hf_learned_order.denoisers.families import Family, find_family


def load_tokenizer(name_or_path: str | PathLike, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub repository; of an adapter that has none beside it, that of its base model.

    `kwargs` are those of `from_pretrained`.
    """
    try:
        # its annotation allows None; it raises instead
        return AutoTokenizer.from_pretrained(name_or_path, **kwargs)  # pyrefly: ignore[bad-return]
    except (OSError, ValueError):
        base = (adapter_config(name_or_path) or {}).get("base_model_name_or_path")
        if base is None:
            raise
    return load_tokenizer(base, **kwargs)


_HUB = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")


def load_denoiser(
    name_or_path: str | PathLike,
    *,
    trust_remote_code: bool = False,
    restore_inv_freq: bool = False,
    family: Family | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model of a folder or a Hub repository.

    LLaDA, Dream, DiffuCoder, A2D and Nemotron-Labs-Diffusion are recognised from their `config.json` and load as
    transformers' own Llama, Qwen2, Qwen3 and Ministral3, without their remote code. Anything else loads as a masked
    language model where it is one, else as a decoder, by remote code only when `trust_remote_code` says so.

    The folder or repository of a PEFT adapter (`adapter_config.json`) is its base model with the adapter put into it.

    The commit that a repository was at is kept in the configuration's `_commit_hash`, as transformers 4 did: a scorer
    names it.

    Args:
        name_or_path: a folder or a Hub repository.
        trust_remote_code: run the code that the repository brings, where transformers has no class for it.
        restore_inv_freq: put rotary frequencies computed from the configuration in the place of wrong ones.
        family: how the model will be called (`attach(model, family=...)`): it need not be a known one.
        kwargs: for `from_pretrained`.

    Raises:
        ValueError: an encoder-decoder, a causal model of no known family, remote code that is not trusted, rotary
            frequencies that are not the configuration's, a checkpoint whose weights are not the layout's; an adapter
            that names no base model, or of a kind that does not come back (`adapters.KINDS`).
    """
    hub = {name: value for name, value in kwargs.items() if name in _HUB}
    raw, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    if not raw and (adapter := adapter_config(name_or_path, **hub)) is not None:
        options = {"trust_remote_code": trust_remote_code, "restore_inv_freq": restore_inv_freq, **kwargs}
        options["family"] = family
        return _with_adapter(name_or_path, adapter, hub, options)
    architecture = next(iter(raw.get("architectures") or ()), "")
    if architecture in LAYOUTS:
        return _with_commit(load_native(name_or_path, raw, architecture, **kwargs), name_or_path, hub)
    auto_map = raw.get("auto_map") or {}
    if auto_map and raw.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise ValueError(
            f"trust_remote_code must be True to load {str(name_or_path)!r}: transformers has no class for its "
            f"{architecture or 'model'}, and it brings its own ({auto_map.get('AutoConfig')}). Read that code first"
        )
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **hub)
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING or "AutoModelForMaskedLM" in auto_map
    if family is None:
        find_family(config, architecture, masked_lm=masked)  # before the weights come
    causal = not auto_map or "AutoModelForCausalLM" in auto_map
    loader = AutoModelForMaskedLM if masked else AutoModelForCausalLM if causal else AutoModel
    model = loader.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **kwargs)
    check_inv_freq(model, restore=restore_inv_freq)
    return _with_commit(model, name_or_path, hub)


def _with_adapter(
    name_or_path: str | PathLike, adapter: dict[str, Any], hub: dict[str, Any], options: dict[str, Any]
) -> PreTrainedModel:
    """The base model that the adapter names, with the adapter in it; its configuration is named after the adapter."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name_or_path}: its {CONFIG} must name a base_model_name_or_path, got {base!r}: load that model, and "
            "this adapter into it (PeftModel.from_pretrained)"
        )
    options = {name: value for name, value in options.items() if name not in ("revision", "subfolder")}
    options |= {"revision": adapter["revision"]} if adapter.get("revision") else {}
    model = load_denoiser(base, **options)
    put_adapter(model, name_or_path, **hub)
    folder = Path(name_or_path, hub.get("subfolder") or "")
    if folder.is_dir() or not hub.get("subfolder"):  # a subfolder of a repository has no name by itself
        model.config._name_or_path = str(folder if folder.is_dir() else name_or_path)
        model.config._commit_hash = None
    return _with_commit(model, name_or_path, hub, CONFIG)


def _with_commit(
    model: PreTrainedModel, name_or_path: str | PathLike, hub: dict[str, Any], file: str = "config.json"
) -> PreTrainedModel:
    if not Path(name_or_path).exists() and (file == "config.json" or not hub.get("subfolder")):
        file = f"{hub['subfolder']}/{file}" if hub.get("subfolder") else file
        where = {name: value for name, value in hub.items() if name in ("revision", "cache_dir")}
        cached = try_to_load_from_cache(str(name_or_path), file, **where)
        if isinstance(cached, str):  # .../snapshots/COMMIT/config.json
            model.config._commit_hash = cached.removesuffix(file).rstrip("/").rpartition("/")[2]
    return model
