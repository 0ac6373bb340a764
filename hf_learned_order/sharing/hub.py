"""A scorer's repository on the Hub: what stands in it beside the weights, and the push, which is one commit.

`OrderScorer.push_to_hub` and `OrderTrainer.push_to_hub` come here. Loading is transformers' own `from_pretrained`.
"""

import json
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME

from hf_learned_order.common.files import read_json
from hf_learned_order.denoisers.adapters import CONFIG as ADAPTER_CONFIG
from hf_learned_order.orders.saving import WEIGHTS
from hf_learned_order.sharing.cards import Card, card_files, is_local

# what is left out of a push: checkpoints and whatever else serves the training alone, hidden files, and pickles
IGNORED = [
    "checkpoint-*",
    "runs/*",
    "posterior.safetensors",
    "*/README.md",
    ".*",
    "_*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
]
# what a push deletes unless it brings it: an adapter or a figure of the last push says nothing of these weights
OWNED = ["adapter/*", "denoiser/*", ".eval_results/*", "results.json", "settings.json", "trade_off.png"]
CUSTOM_GENERATE = """\
# model.generate(..., custom_generate={repo_id!r}, trust_remote_code=True)
from hf_learned_order import custom_generate


def generate(model, **kwargs):
    return custom_generate(model, {repo_id!r}, **kwargs)
"""


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    card: Card | None = None,
    commit_message: str = "Upload scorer",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push a folder that a scorer was saved to, with its card, evaluation metadata and `custom_generate`.

    One commit: a push that fails leaves the repository as it was. The folder is only read. Figures and adapters of an
    earlier push that this one does not bring are deleted. The card is written anew, but for what stands below its last
    line or, where somebody else wrote it, all of its text. A `README.md` in the folder counts as the card that is
    there.

    Args:
        folder: `config.json`, `model.safetensors`; `adapter/` or `denoiser/` where the denoiser was tuned along.
        repo_id: `user/name`; made if it does not exist.
        card: what the model card says; see `Card`.
        commit_message, private, token, revision, create_pr: as in `HfApi.create_repo` and `create_commit`.

    Warns where the denoiser is named by a folder of this machine: `card.base_model` names it as others know it.

    Raises:
        ValueError: the folder holds no scorer or a damaged one, `card` names a file of another kind or results of other
            weights, or `repo_id` can be no name.
        OSError: the Hub refused the push or could not be reached.
    """
    folder, api = Path(folder), HfApi(token=token)
    check_folder(folder)
    # `*` of a pattern goes through slashes
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {name: folder / name for name in filter_repo_objects(names, ignore_patterns=IGNORED)}
    try:
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        written = readme_of(folder, api, repo_id, None if create_pr else revision)
        made = repository_files(folder, repo_id, card or Card(), written)  # before anything is made on the Hub
        made |= renamed(folder, (card or Card()).base_model)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=None if create_pr else revision)
        stale = [name for name in filter_repo_objects(there, allow_patterns=OWNED) if name not in {**files, **made}]
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in {**files, **made}.items()]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except HTTPError as error:
        if isinstance(error, OSError):  # the Hub's answers are
            raise
        raise OSError(f"{repo_id}: the push broke off, and the repository is as it was ({error!r})") from error


def check_folder(folder: Path) -> None:
    """Raises `ValueError` unless a scorer was saved to `folder`."""
    for name in (CONFIG_NAME, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"folder must be one that a scorer was saved to, but {folder} has no {name}")
    kind = read_json(folder / CONFIG_NAME, dict).get("model_type")
    if kind != "order_scorer":
        raise ValueError(f"folder must hold a scorer, but {folder / CONFIG_NAME} is of model_type {kind!r}")


def renamed(folder: Path, base_model: str | None) -> dict[str, bytes]:
    """The configurations of scorer and adapter with the denoiser under this name; none where it has that already.

    Warns where nobody else can find the denoiser.
    """
    files = {}
    for name in (CONFIG_NAME, f"adapter/{ADAPTER_CONFIG}"):
        config = read_json(folder / name, dict) if (folder / name).is_file() else {}
        base = config.get("base_model_name_or_path")
        if base_model not in (None, base) and config:
            config |= {"base_model_name_or_path": base_model}
            config |= {name: None for name in ("base_model_revision", "revision") if name in config}
            files[name] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        elif name == CONFIG_NAME and base and is_local(base) and config.get("denoiser_tuning") != "denoiser":
            warnings.warn(
                f"{folder}: its denoiser is named by a folder, {base}, which nobody else has: push it, too (hf upload "
                f"user/denoiser {base}), and name it by Card(base_model=...) or --base_model",
                stacklevel=3,
            )
    return files


def readme_of(folder: Path, api: HfApi, repo_id: str, revision: str | None) -> str:
    """The card that is there: the folder's, else that of the branch, or of `main`, which a new branch starts from."""
    if (folder / "README.md").is_file():
        return (folder / "README.md").read_text(encoding="utf-8")
    with TemporaryDirectory() as cache:  # where the network fails, a cache of old would answer with an old card
        for branch in dict.fromkeys((revision, None)):
            try:
                path = api.hf_hub_download(repo_id, "README.md", revision=branch, cache_dir=cache)
                return Path(path).read_text(encoding="utf-8")
            except RevisionNotFoundError:
                continue
            except (RepositoryNotFoundError, RemoteEntryNotFoundError):
                break
            except LocalEntryNotFoundError as error:
                raise OSError(f"{repo_id}: nothing was pushed: no connection, or HF_HUB_OFFLINE is set") from error
    return ""


def repository_files(folder: Path, repo_id: str, card: Card, written: str = "") -> dict[str, bytes]:
    """Path in the repository to content of all that is not in `folder`: card, metadata, `custom_generate`."""
    files = {
        "custom_generate/generate.py": CUSTOM_GENERATE.format(repo_id=repo_id).encode(),
        "custom_generate/requirements.txt": b"hf_learned_order\n",
        **card_files(folder, repo_id, card, written),
    }
    if not (folder / "generation_config.json").is_file():
        steps = read_json(folder / "config.json", dict).get("max_denoising_steps")
        files["generation_config.json"] = generation_config(steps).to_json_string().encode()
    return files


def generation_config(
    max_denoising_steps: int | None, max_new_tokens: int | None = None, *, temperature: float = 0.0
) -> GenerationConfig:
    """The settings that `custom_generate` decodes with unless others are given; what is None is left out.

    A `temperature` above 0, which a scorer was trained for, is that of tokens that are drawn.
    """
    settings = {
        "max_denoising_steps": max_denoising_steps,
        "max_new_tokens": max_new_tokens,
        "do_sample": True if temperature else None,
        "temperature": temperature or None,
    }
    return GenerationConfig(**{name: value for name, value in settings.items() if value is not None})
