"""What a training run writes: which weights stand in which file, and checkpoints to go on from.

`config.json` and `model.safetensors` are the scorer, as `OrderScorer.from_pretrained` reads it; `posterior.safetensors`
and `value.safetensors` the posterior and the value baseline, where there is one; `adapter/` the PEFT adapter that the
denoiser was tuned along by, or that it had before; `denoiser/` the denoiser of which every weight was tuned along.
"""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_learned_order.common.files import read_json, reading
from hf_learned_order.denoisers.adapters import WEIGHTS, save_adapter, set_adapter_weights
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.tuned import DENOISER_FOLDER, FOLDERS

POSTERIOR_FILE = "posterior.safetensors"
VALUE_FILE = "value.safetensors"
LEARNED_SETTINGS = (
    "bound",
    "law_bias",
    "pair_weight",
    "sees_tokens",
)  # of a scorer's configuration: `target_nfe` and `weighing` move them
# of a scorer's configuration: what its weights hang on, and a user chooses
SHAPE = (
    *("law", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_layers", "denoiser_hidden_size"),
    *("features", "token_pairs"),
)


def save_weights(folder: Path, objective: nn.Module, state: dict[str, Tensor]) -> None:
    """Write the scorer, and what else of `objective` is trained, with the weights in its `state_dict`, `state`."""
    scorer: OrderScorer = objective.scorer  # pyrefly: ignore[bad-assignment]
    scorer.save_pretrained(folder, state_dict=_part(state, "scorer."))
    for name, file in (("posterior", POSTERIOR_FILE), ("value", VALUE_FILE)):
        if getattr(objective, name, None) is not None:
            save_file({key: value.contiguous() for key, value in _part(state, f"{name}.").items()}, folder / file)
    if scorer.config.denoiser_tuning is not None:
        model = objective.denoiser.model  # pyrefly: ignore[missing-attribute]
        target = folder / FOLDERS[scorer.config.denoiser_tuning]
        weights = _part(state, "denoiser.model.")
        if scorer.config.denoiser_tuning == "adapter":
            save_adapter(model, target, weights)
            return
        # of weights that FSDP has gathered transformers would not see that they are tied, and save them twice
        tied = getattr(model, "all_tied_weights_keys", ())
        model.save_pretrained(target, state_dict={name: weights[name] for name in weights if name not in tied})


def load_weights(folder: Path, objective: nn.Module) -> None:
    """The way back, into the objective as it is.

    Raises:
        ValueError: files are damaged, belong to another objective, or to a scorer of another law or shape.
        OSError: a file is missing.
    """
    scorer: OrderScorer = objective.scorer  # pyrefly: ignore[bad-assignment]
    saved = OrderScorerConfig.from_pretrained(folder)
    for name in SHAPE:
        theirs, mine = getattr(saved, name), getattr(scorer.config, name)
        if theirs != mine:
            raise ValueError(
                f"{name} must be that of the checkpoint {folder}, {theirs!r}, got {mine!r}: "
                "go on with its own settings, or train in another folder"
            )
    with reading(folder):
        scorer.load_state_dict(load_file(folder / "model.safetensors"))
        for name, file in (("posterior", POSTERIOR_FILE), ("value", VALUE_FILE)):
            if getattr(objective, name, None) is not None:
                getattr(objective, name).load_state_dict(load_file(folder / file))
        model = getattr(objective.denoiser, "model", None)
        if scorer.config.denoiser_tuning == "adapter":
            target = folder / FOLDERS["adapter"]
            # pyrefly: ignore[bad-argument-type]
            set_adapter_weights(model, load_file(target / WEIGHTS), target)
        elif scorer.config.denoiser_tuning == "denoiser":
            # pyrefly: ignore[missing-attribute]
            model.load_state_dict(type(model).from_pretrained(folder / DENOISER_FOLDER).state_dict())
    for name in LEARNED_SETTINGS:
        setattr(scorer.config, name, getattr(saved, name))


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The latest checkpoint of a run that is whole, None where there is none: a kill may have left half of one.

    Trainer writes `trainer_state.json` last, so one that can be read stands for the rest.
    """
    found = {int(p.name.rpartition("-")[2]): p for p in Path(folder).glob("checkpoint-*") if p.name[11:].isdecimal()}
    for number in sorted(found, reverse=True):
        try:
            read_json(found[number] / "trainer_state.json", dict)
        except (OSError, ValueError):
            continue
        return str(found[number])
    return None


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
