"""What was promised of a scorer's settings, by name, in the `generation_config.json` beside it."""

import os
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from hf_learned_order.common.files import read_json, replacing

ATTRIBUTE = "guarantees"  # of the GenerationConfig: name -> what `evaluation.guarantees.Guarantee` holds
SETTING = ("sampler", "options", "max_denoising_steps")  # what decoding takes of it


def read_guarantees(path: str | os.PathLike | None) -> dict[str, dict[str, Any]]:
    """Those in a `generation_config.json`; none where there is no such file.

    Raises:
        ValueError: the file is damaged, or one of them does not say a setting.
    """
    if path is None or not Path(path).is_file():
        return {}
    found = read_json(Path(path), dict).get(ATTRIBUTE) or {}
    for name, saved in found.items() if isinstance(found, dict) else [(ATTRIBUTE, found)]:
        if not isinstance(saved, dict) or not set(SETTING) <= set(saved):
            raise ValueError(f"{path}: {name!r} of its {ATTRIBUTE} must have {', '.join(SETTING)}, got {saved!r}")
    return found


def write_guarantees(
    folder: str | os.PathLike, guarantees: dict[str, dict[str, Any]], *, max_denoising_steps: int | None = None
) -> None:
    """Puts them among those of `folder`'s `generation_config.json`, which is made with this budget if it is not there.

    Raises:
        ValueError: the file that is there is damaged.
        OSError: the folder cannot be written to.
    """
    path = Path(folder) / GENERATION_CONFIG_NAME
    there = read_guarantees(path)
    settings = read_json(path, dict) if path.is_file() else {"max_denoising_steps": max_denoising_steps}
    settings = {name: value for name, value in settings.items() if value is not None}
    config = GenerationConfig(**{**settings, ATTRIBUTE: {**there, **guarantees}})
    with replacing(folder) as temporary:
        (temporary / GENERATION_CONFIG_NAME).write_text(config.to_json_string(), encoding="utf-8")
