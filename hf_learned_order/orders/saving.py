"""Loading and saving of a scorer: transformers' own, made strict and safe."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from hf_learned_order.common.files import read_weights, reading, replacing, saving
from hf_learned_order.orders.guarantees import read_guarantees, write_guarantees

WEIGHTS = "model.safetensors"
# what says where a file is, of the arguments of `from_pretrained`
PLACE = ("revision", "subfolder", "token", "cache_dir", "local_files_only")


def check_name(name: object) -> None:
    """Raises `OSError` for what is no folder and can be no name on the Hub."""
    if not isinstance(name, str | os.PathLike) or Path(name).is_dir():
        return  # what else it is, transformers says
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        what = "a file" if Path(name).exists() else "none, and can be no name on the Hub"
        raise OSError(f"{name} must be a folder or the name of a Hub repository, but it is {what} ({error})") from error


_Base = PreTrainedModel if TYPE_CHECKING else object  # a mixin for models


class HubMixin(_Base):
    """Loading, saving and pushing of a scorer: transformers' own, made strict, safe and complete."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, from safetensors only, and only if every weight is there and fits.

        Args:
            pretrained_model_name_or_path: a folder or a Hub repository.
            *args, **kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only` and the others there.

        Raises:
            OSError: nothing to load there, no access, or the Hub cannot be reached.
            ValueError: files are damaged, or configuration and weights do not belong together.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        check_name(pretrained_model_name_or_path)
        with reading(pretrained_model_name_or_path):
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, use_safetensors=True, output_loading_info=True, **kwargs
            )
        scorer, info = loaded
        wrong = sorted(info["missing_keys"] | info["unexpected_keys"])
        if wrong:
            raise ValueError(
                f"{pretrained_model_name_or_path}: its model.safetensors must hold the weights that its config.json "
                f"asks for, but {len(wrong)} are missing or too many: {', '.join(wrong[:3])}"
            )
        place = {name: kwargs[name] for name in PLACE if name in kwargs}
        commit = getattr(scorer.config, "_commit_hash", None)  # the one that was loaded: it is in the cache
        path = cached_file(pretrained_model_name_or_path, WEIGHTS, _commit_hash=commit, **place)
        if path is not None:
            read_weights(Path(path))  # transformers makes floats of whatever there is
        settings = cached_file(
            pretrained_model_name_or_path,
            GENERATION_CONFIG_NAME,
            _commit_hash=commit,
            _raise_exceptions_for_missing_entries=False,
            **place,
        )
        scorer.guarantees = read_guarantees(settings)
        return (scorer, info) if wants_info else scorer

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """transformers' own; the files that stood there stay as they were until all are written (`files.replacing`).

        Raises:
            ValueError: `push_to_hub` is asked for: the method of that name also writes the card.
            OSError: the folder cannot be written to, or the disk is full.
        """
        if push_to_hub:
            raise ValueError(
                "push_to_hub must be False, got True: call push_to_hub(repo_id), which writes the card too"
            )
        with replacing(save_directory) as temporary, saving(save_directory):
            super().save_pretrained(temporary, *args, **kwargs)
        if guarantees := getattr(self, "guarantees", None):
            write_guarantees(save_directory, guarantees, max_denoising_steps=self.config.max_denoising_steps)

    # pyrefly: ignore[bad-override] (max_shard_size: a scorer is small)
    def push_to_hub(
        self, repo_id: str, *, card: Any = None, tags: str | Sequence[str] | None = None, **kwargs: Any
    ) -> CommitInfo:
        """Push the scorer with its card, evaluation metadata and `custom_generate`, in one commit.

        Args:
            repo_id: `user/name`; made if it does not exist.
            card: a `Card`: what the model card says of training and measurements.
            tags: of the card, beside its own.
            **kwargs: `commit_message`, `private`, `token`, `revision`, `create_pr`, see `hub.push_folder`.

        Raises:
            ValueError: `card` names a file of another kind.
            TypeError: an argument of transformers' own that a scorer has no use for: it is one file (`max_shard_size`).
            OSError: the Hub refused the push or could not be reached; the repository is as it was.
        """
        # by the public name: what a repository looks like is the business of a room above this one
        from hf_learned_order import Card, push_folder

        known = set(inspect.signature(push_folder).parameters) - {"folder", "repo_id", "card"}
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(
                f"push_to_hub takes card, tags, {', '.join(sorted(known))}, got {', '.join(unknown)}: a scorer is one "
                "file, and the rest stands in card=Card(...)"
            )
        if tags is not None:
            card = card or Card()
            card = replace(card, tags=[*card.tags, *([tags] if isinstance(tags, str) else tags)])
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(folder, repo_id, card=card, **kwargs)
