"""The model card of a scorer, with its evaluation metadata: `model-index` and `.eval_results/*.yaml`."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from hf_learned_order.common.files import fingerprint, read_json, read_weights
from hf_learned_order.denoisers.inside.layers import LAST
from hf_learned_order.evaluation.results import PROBE, SETTINGS, Result
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.tuned import is_tuned
from hf_learned_order.sharing.card_tables import (
    DATASET,
    calls,
    eval_result,
    is_learned,
    percent,
    read_results,
    table_rows,
    verdict,
)
from hf_learned_order.sharing.markdown import code, fenced, hub_link, hub_name, plain

TEMPLATE = Path(__file__).with_name("model_card.md")
UNNAMED = "path/or/name/of/the/denoiser"
TRAINING_FILE, PLOT = "training_args.json", "trade_off.png"
MARK = "<!-- What is written below this line stays; everything above it is written anew by each push. -->"
VERSIONS = ("hf_learned_order", "torch", "transformers", "device")  # of the settings
OURS = ("base_model", "datasets", "library_name", "license", "model-index", "tags")  # of the metadata
# objective in words; what a law is trained by unless told otherwise, if not by the ELBO
OBJECTIVES = {
    "elbo": "variational: a bound on the likelihood over unmasking orders",
    "regret": "what a step regrets: doubt, from its own decodings of responses, and pairs, from the denoiser itself",
    "reward": "right answers with few calls, by reward on its own decodings",
}
TAGS = ("order-scorer", "masked-diffusion", "hf_learned_order", "custom_generate", "arxiv:2602.23968")
MADE_OF_IT = ("equations", "words")  # tasks
OBJECTIVE_OF = {"regret": "regret"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says and a scorer's configuration does not know.

    Attributes:
        results: a `results.json` that `hf-learned-order evaluate` wrote; every row goes into the card, whoever wins.
            Without it the card says that nothing was measured. The `settings.json` beside it, if there is one, says
            with which command, and which weights must be those of the scorer.
        plot: the trade-off curve as PNG; by default the `trade_off.png` beside `results`, if there is one.
        dataset: what was measured on, a dataset of the Hub; by default that of `settings.json`, else for the tasks that
            are made of it `openai/gsm8k`, for others none.
        task: its task.
        data: what the scorer was trained on, in words; by default what the trainer stated when it saved the scorer.
        command: the command that trained it; likewise.
        seeds: of the training; likewise.
        limits: what else a reader should know.
        license: the license of the scorer, an identifier of the Hub.
        prompt: an example of one, for the card's code; by default a placeholder, for training data may be private.
        infill: whether it is a text with masks to be filled, instead of one to be continued; likewise.
        base_model: the denoiser's name on the Hub, where it was trained with under another, a folder's: the pushed
            configuration has this one.
        tags: of the card, beside its own.
    """

    results: str | os.PathLike | None = None
    plot: str | os.PathLike | None = None
    dataset: str | None = None
    task: str = "equations"
    data: str = ""
    command: str = ""
    seeds: Sequence[int] = ()
    limits: str = ""
    license: str | None = None
    prompt: str = ""
    infill: bool | None = None
    base_model: str | None = None
    tags: Sequence[str] = ()


def card_files(folder: Path, repo_id: str, card: Card, written: str = "") -> dict[str, bytes]:
    """Path in the repository to content: the card, and what backs it up where something was measured.

    Args:
        folder: what a scorer was saved to.
        repo_id: where it goes.
        card: what the card says.
        written: the card that is there; what its readers wrote into it stays.

    Raises:
        ValueError, TypeError: a file is of another kind, or `card.results` are those of other weights.
        OSError: a file cannot be read.
    """
    files = {}
    weights = read_weights(folder / "model.safetensors")
    config = OrderScorerConfig.from_pretrained(folder)
    settings = settings_of(card, weights, config)
    card = completed(card, folder, settings)
    results = [] if card.results is None else read_results(card.results, card.task)
    if card.results is not None:
        files["results.json"] = Path(card.results).read_bytes()
    if settings:
        files[SETTINGS] = Path(card.results or "").with_name(SETTINGS).read_bytes()
    entries = [
        EvalResultEntry(str(card.dataset), card.task, percent(row), notes=calls(row))
        for row in results
        if is_learned(row) and hub_name(card.dataset)
    ]
    if entries:
        content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        files[f".eval_results/{entries[0].dataset_id.split('/')[-1]}.yaml"] = content.encode()
    if card.plot is not None:
        files[PLOT] = Path(card.plot).read_bytes()
        if not files[PLOT].startswith(b"\x89PNG"):
            raise ValueError(f"plot must be a PNG file, but {card.plot} is none")
    parameters = sum(tensor.numel() for tensor in weights.values())
    made = model_card(folder, repo_id, card, results, parameters=parameters, settings=settings)
    files["README.md"] = str(with_own_words(made, written)).encode()
    return files


def settings_of(card: Card, weights: Mapping[str, Any], config: OrderScorerConfig) -> dict[str, Any]:
    """What the `settings.json` beside `card.results` says; empty where there is none.

    Raises:
        ValueError: it says that other weights than these were measured, or not that the denoiser was the tuned one.
    """
    path = None if card.results is None else Path(card.results).with_name(SETTINGS)
    if path is None or not path.is_file():
        return {}
    settings = read_json(path, dict)
    measured = settings.get("scorer_weights")
    if measured and fingerprint(weights) not in measured:
        raise ValueError(
            f"results must be those of the scorer that is pushed, but {card.results} was measured with the weights of "
            f"{', '.join(map(str, settings.get('scorer') or ['another']))}, which are others: evaluate this one"
        )
    if config.denoiser_tuning and config.denoiser_probe and not is_tuned(settings.get(PROBE), config):
        raise ValueError(
            f"results must be those of the denoiser that was tuned along with the scorer, but {card.results} is not: "
            "evaluate with --scorer that brings it, or --model that is it"
        )
    return settings


def completed(card: Card, folder: Path, settings: Mapping[str, Any]) -> Card:
    """What is not stated, as the files say it: the trainer's, and those that `evaluate` wrote beside the results."""
    training = read_json(folder / TRAINING_FILE, dict) if (folder / TRAINING_FILE).is_file() else {}
    plot = None if card.results is None else Path(card.results).with_name(PLOT)
    return replace(
        card,
        dataset=card.dataset or settings.get("dataset_name") or (DATASET if card.task in MADE_OF_IT else None),
        plot=plot if card.plot is None and plot is not None and plot.is_file() else card.plot,
        data=card.data or str(training.get("data", "")),
        command=card.command or str(training.get("command", "")),
        seeds=card.seeds or training.get("seeds", ()),
        prompt=card.prompt or str(training.get("prompt", "")) or "your prompt",
        infill=bool(training.get("infill", False)) if card.infill is None else card.infill,
    )


def is_local(base: str) -> bool:
    """Whether a denoiser is named by a folder, which nobody else has."""
    return Path(base).exists() or Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1


def training_file(arguments: str, card: Card, updates: int) -> str:
    """What `TRAINING_FILE` holds: the trainer's arguments (JSON), what `card` states of the training, the updates."""
    stated = {"data": card.data, "command": card.command, "seeds": list(card.seeds), "updates": updates}
    stated |= {"prompt": card.prompt, "infill": bool(card.infill)}
    return json.dumps({**json.loads(arguments), **stated}, indent=2) + "\n"


def model_card(
    folder: Path,
    repo_id: str,
    card: Card,
    results: Sequence[Result],
    *,
    parameters: int,
    settings: Mapping[str, Any],
) -> ModelCard:
    """The card of a saved scorer from the template `model_card.md`, with `model-index` where something was measured."""
    config = OrderScorerConfig.from_pretrained(folder)
    base = card.base_model or config.base_model_name_or_path
    name = repo_id.split("/")[-1]
    learned = [eval_result(row, card) for row in results if is_learned(row)]
    data = ModelCardData(
        model_name=name if learned else None,
        base_model=base if hub_name(base) else None,
        library_name="transformers",
        license=card.license,
        datasets=[card.dataset] if results and hub_name(card.dataset) else None,
        tags=list(dict.fromkeys([*TAGS, *card.tags])),
        eval_results=learned or None,
    )
    generation = folder / "generation_config.json"
    training = read_json(folder / TRAINING_FILE, dict) if (folder / TRAINING_FILE).is_file() else {}
    objective = training.get("objective") or OBJECTIVE_OF.get(config.law, "elbo")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        repo_id=repo_id,
        **{"plain": plain, "code": code, "fenced": fenced},
        card=card,
        config=config,
        layers=layers_in_words(config.layers_seen),
        denoiser=hub_link(base) if base else "not named",
        base=base or UNNAMED,
        tokenizer=repo_id if (folder / "tokenizer_config.json").is_file() else base or UNNAMED,
        parameters=parameters,
        folders={name: (folder / name).is_dir() for name in ("adapter", "denoiser")},
        generation=read_json(generation, dict) if generation.is_file() else config.to_dict(),
        objective=OBJECTIVES.get(objective) or code(objective),
        training=training_facts(training, objective),
        count=max((row.count for row in results), default=0),
        rows=table_rows(results),
        verdict=verdict(results),
        plot=card.plot,
        evaluation=evaluation_command(settings, repo_id),
        versions=", ".join(code(f"{name} {settings[name]}") for name in VERSIONS if name in settings),
        mark=MARK,
    )


def with_own_words(card: ModelCard, written: str) -> ModelCard:
    """`card` with what somebody wrote into the one that is there: text behind `MARK`, metadata that is not ours.

    All of the text of a card that has no `MARK` is theirs.

    Raises:
        ValueError: its metadata cannot be read.
    """
    if not written:
        return card
    try:
        theirs = ModelCard(written, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"README.md: its metadata must be a YAML mapping: mend it, or delete the file ({error})"
        ) from error
    tags = theirs.data.get("tags")
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *(tags if isinstance(tags, list) else [])]))
    for name, value in theirs.data.to_dict().items():
        if name not in OURS or (name == "license" and card.data.get(name) is None):
            card.data[name] = value
    _, _, words = theirs.text.rpartition(MARK)
    if words.strip():
        card.text = f"{card.text.rstrip()}\n\n{words.strip()}\n"
    return card


def evaluation_command(settings: Mapping[str, Any], repo_id: str) -> str:
    """The command that made the table, with the scorer under its name on the Hub; empty where it is not known."""
    words, scorers = settings.get("command", []), settings.get("scorer", [])
    # of several scorers only one is pushed here; the others keep the names that they had
    own = scorers[0] if len(scorers) == 1 else None
    return shlex.join(repo_id if word == own else word for word in words)


def layers_in_words(layers: Sequence[int]) -> str:
    """Which hidden states a scorer sees, by their places in the tuple `hidden_states` of transformers."""
    names = {0: "the embeddings", LAST: "the last"}
    return ", ".join(names.get(layer, f"`hidden_states[{layer}]`") for layer in layers) or "none, predictions alone"


def training_facts(arguments: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """What the trainer's arguments say of the training, by the words of the card; empty where there are none."""
    if not arguments:
        return {}
    names = {"updates": "updates", "responses an update and device": "per_device_train_batch_size"}
    if objective != "regret":
        names["chains of each"] = "num_chains"
    names["largest step budget in training"] = "max_denoising_steps"
    names |= {"canvas": "canvas_length", "learning rate": "learning_rate", "seed": "seed"}
    facts = {word: arguments[name] for word, name in names.items() if name in arguments}
    if (accumulated := arguments.get("gradient_accumulation_steps", 1)) != 1:
        facts["batches an update"] = accumulated
    return facts
