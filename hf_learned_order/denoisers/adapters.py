"""Adapters of PEFT: which kinds a denoiser may have, put into it in place, and written to a folder."""

from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from hf_learned_order.common.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# of `PeftType`: those that come back from their folder to the bit, in place. Of the others some have virtual tokens,
# some share weights between layers, and some nobody has tried here
KINDS = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "HRA", "LN_TUNING", "FOURIERFT", "TRAINABLE_TOKENS")
# of `LoraConfig`: those that need no data, and whose change of the base weights is the same each time
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "olora", "pissa")
# of `LoraConfig`: what adds layers, or looks for tokens in a causal prompt, or at other adapters
REFUSED = ("layer_replication", "alora_invocation_tokens", "arrow_config")
PREFIX = "base_model.model."  # of weights in a file, and in PEFT's wrapper


def check_adapter(config: Any) -> None:
    """Raises `ValueError` unless an adapter of this `PeftConfig` comes back from a folder as it was."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind not in KINDS:
        raise ValueError(f"peft_config must be of one of the kinds {', '.join(KINDS)}, got {kind}")
    start = getattr(config, "init_lora_weights", True)
    if start not in INITIALISATIONS:
        raise ValueError(
            f"init_lora_weights must be one of {', '.join(map(str, INITIALISATIONS))}, got {start!r}: what it makes of "
            "the base weights does not come back from the adapter's folder"
        )
    for name in REFUSED:
        if getattr(config, name, None):
            raise ValueError(f"{name} of peft_config must be None, got {getattr(config, name)!r}")


def has_adapter(model: nn.Module) -> bool:
    """Whether it holds a PEFT adapter, by transformers' own way or by a wrapper."""
    return bool(getattr(model, "peft_config", None))


def adapter_of(model: nn.Module) -> tuple[str, Any]:
    """Name and `PeftConfig` of the adapter that `model` has.

    Raises:
        ValueError: there are several, or it is of a kind that does not come back.
    """
    adapters: dict[str, Any] = model.peft_config  # pyrefly: ignore[bad-assignment]
    if len(adapters) > 1:
        raise ValueError(
            f"model must have one adapter, got {len(adapters)} ({', '.join(adapters)}): merge what belongs together "
            "(merge_and_unload), or delete the others (delete_adapter)"
        )
    name, config = next(iter(adapters.items()))
    check_adapter(config)
    return name, config


def put_adapter(model: PreTrainedModel, source: str | PathLike, **place: Any) -> None:
    """Load the adapter of `source` into `model`, in place, frozen.

    With PEFT's own functions: transformers' `load_adapter` leaves some kinds half loaded (DoRA) and goes on.

    Args:
        model: one that has none.
        source: a folder or a Hub repository.
        place: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: the adapter is of a kind that does not come back, or its weights are not those of its
            configuration in this model.
    """
    from peft import PeftConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights

    place = {name: value for name, value in place.items() if value is not None}
    config = PeftConfig.from_pretrained(str(source), **place)
    check_adapter(config)
    config.inference_mode = True
    weights = load_peft_weights(str(source), device="cpu", **place)
    training = model.training
    inject_adapter_in_model(config, model)
    set_adapter_weights(model, weights, source)
    model._hf_peft_config_loaded = True  # so that transformers' save_pretrained knows what it has before it
    model.requires_grad_(False).train(training)


def set_adapter_weights(model: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Raises `ValueError` unless `weights`, of the adapter in `source`, are those of the adapter that `model` has."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name = next(iter(model.peft_config))  # pyrefly: ignore[bad-argument-type, no-matching-overload]
    weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    expected = {key.removeprefix(PREFIX) for key in get_peft_model_state_dict(model, adapter_name=name)}
    if wrong := sorted(expected ^ weights.keys()):
        raise ValueError(
            f"{source}: its {WEIGHTS} must hold the weights that its {CONFIG} asks for in this model, but {len(wrong)} "
            f"are missing or too many: {', '.join(wrong[:3])}"
        )
    wrapped = hasattr(model, "get_base_model")
    set_peft_model_state_dict(
        model, {(PREFIX if wrapped else "") + key: value for key, value in weights.items()}, adapter_name=name
    )


def save_adapter(model: nn.Module, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the adapter that `model` has, with the weights in its state dict `state`, as PEFT reads it."""
    from peft import PeftModel, get_peft_model_state_dict

    name, config = adapter_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel) and name == "default":
        model.save_pretrained(str(folder), state_dict=state)
        return
    weights = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
    weights = {PREFIX + key.removeprefix(PREFIX): value.clone().contiguous() for key, value in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def adapter_config(name_or_path: str | PathLike, **place: Any) -> dict[str, Any] | None:
    """What the `adapter_config.json` of a folder or repository says; None where there is none."""
    quiet = ("missing_entries", "gated_repo", "connection_errors")
    options = {f"_raise_exceptions_for_{what}": False for what in quiet}
    try:
        path = cached_file(name_or_path, CONFIG, **place, **options)
    except OSError:  # neither a folder nor a repository: what is wrong with it, transformers says
        return None
    return None if path is None else read_json(Path(path), dict)
