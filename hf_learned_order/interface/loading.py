"""All of a scorer's repository in one call: `load_model`, and what `custom_generate` runs."""

import copy
from dataclasses import fields
from os import PathLike
from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
)

from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.streaming import ended_on_error
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.arguments import by_name
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.settings import Settings, merged
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.tuned import DENOISER_FOLDER, bring_up, check_tuned


def load_model(
    scorer: str | PathLike,
    *,
    denoiser: str | PathLike | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """All that a scorer's repository stands for, in one call: its denoiser, as it was tuned along, and the scorer.

    Args:
        scorer: the repository or folder that holds the scorer, and `adapter/` or `denoiser/` where there is one.
        denoiser: where the denoiser is; by default `denoiser/` there, else the one that the scorer's configuration
            names, at the revision that it names.
        revision, token: of the scorer's repository.
        **kwargs: of `load_denoiser`: `dtype`, `device_map`, `trust_remote_code`, ...

    Raises:
        ValueError: no denoiser is given and the scorer names none; and as `attach` and `load_denoiser`.
        OSError: nothing to load there.
    """
    place: dict[str, Any] = {"revision": revision, "token": token}
    loaded = OrderScorer.from_pretrained(scorer, **place).eval()
    config = loaded.config
    kwargs["family"] = config.family
    if denoiser is None and config.denoiser_tuning == "denoiser":
        model = load_denoiser(scorer, subfolder=DENOISER_FOLDER, **place, **kwargs)
    else:
        name = denoiser or config.base_model_name_or_path
        if name is None:
            raise ValueError(
                f"denoiser must be given: the scorer of {scorer} does not name the one it was trained with"
            )
        if denoiser is None:
            kwargs.setdefault("revision", config.base_model_revision)
        model = load_denoiser(name, **kwargs)
        bring_up(Denoiser(model, mask_token_id=config.mask_token_id, family=config.family), config, scorer, **place)
    return attach(model, loaded, mask_token_id=config.mask_token_id)


def custom_generate(
    model: PreTrainedModel,
    scorer: str | PathLike,
    *,
    inputs: Tensor | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> LearnedOrderOutput | Tensor:
    """What `model.generate(..., custom_generate="user/scorer", trust_remote_code=True)` runs; `model` stays as it is.

    Args:
        model: the denoiser.
        scorer: the repository (or folder) that holds the scorer and a `generation_config.json`.
        inputs: the prompt, where `generate` got it by position.
        revision, token: of the repository.
        **kwargs: of an attached model's `generate`. By default the settings of the repository's
            `generation_config.json`.

    Raises:
        ValueError: the denoiser was tuned along with the scorer, and `model` is the one from before; or as `generate`.
    """
    with ended_on_error(kwargs.get("streamer")):
        given = by_name((), {"inputs": inputs, **kwargs})
        place: dict[str, Any] = {"revision": revision, "token": token}
        loaded = OrderScorer.from_pretrained(scorer, **place).eval()
        denoiser = Denoiser(model, mask_token_id=loaded.config.mask_token_id, family=loaded.config.family)
        check_tuned(denoiser, loaded.config, scorer)
        settings = GenerationConfig.from_pretrained(scorer, **place).to_diff_dict()
        names = [field.name for field in fields(Settings)]
        defaults = {name: value for name, value in settings.items() if name in names}
        options: dict[str, Any] = {**defaults, **given}
        options.setdefault("sampler", merged([options.get("sampler_config")]).get("sampler", "learned_order"))
        # a shallow copy shares the weights; the class swap is its own
        attached: Any = attach(copy.copy(model), loaded, mask_token_id=loaded.config.mask_token_id)
        return attached.learned_order_generate(**options)
