"""The model card of a scorer, with its evaluation metadata: `model-index` and `.eval_results/*.yaml`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from safetensors import safe_open

from hf_learned_order.files import read_json, reading

TEMPLATE = Path(__file__).with_name("model_card.md")
LEARNED = "learned_order"
UNNAMED = "path/or/name/of/the/denoiser"
TRAINING_FILE = "training_args.json"
COLUMNS = {  # of a results.json, and what must stand there
    **dict.fromkeys(("sampler", "setting"), str),
    **dict.fromkeys(("target", "accuracy", "spread", "nfe"), int | float),
    **dict.fromkeys(("budget", "nfe_min", "nfe_max", "count", "runs"), int),
    "bound": int | float | None,
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says and a scorer's configuration does not know.

    Attributes:
        results: a `results.json` that `hf-learned-order evaluate` wrote; every row goes into the card, whoever wins.
            Without it the card says that nothing was measured.
        plot: the trade-off curve as PNG.
        dataset: what was measured on, a dataset of the Hub.
        task: its task.
        data: what the scorer was trained on, in words.
        command: the command that trained it.
        seeds: of the training.
        limits: what else a reader should know.
        license: the license of the scorer, an identifier of the Hub.
        prompt: an example of one, for the card's code.
    """

    results: str | os.PathLike | None = None
    plot: str | os.PathLike | None = None
    dataset: str = "openai/gsm8k"
    task: str = "equations"
    data: str = ""
    command: str = ""
    seeds: Sequence[int] = ()
    limits: str = ""
    license: str | None = None
    prompt: str = "16-3-4;a*2"


def card_files(folder: Path, repo_id: str, card: Card) -> dict[str, bytes]:
    """Path in the repository to content: the card, and what backs it up where something was measured."""
    files = {}
    results = [] if card.results is None else read_results(card.results, card.task)
    if card.results is not None:
        files["results.json"] = Path(card.results).read_bytes()
    entries = [
        EvalResultEntry(card.dataset, card.task, percent(row), notes=f"{LEARNED}, {calls(row)}")
        for row in results
        if row["sampler"] == LEARNED
    ]
    if entries:
        content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        files[f".eval_results/{card.dataset.split('/')[-1]}.yaml"] = content.encode()
    if card.plot is not None:
        files["trade_off.png"] = Path(card.plot).read_bytes()
        if not files["trade_off.png"].startswith(b"\x89PNG"):
            raise ValueError(f"plot must be a PNG file, but {card.plot} is none")
    files["README.md"] = str(model_card(folder, repo_id, card, results)).encode()
    return files


def model_card(folder: Path, repo_id: str, card: Card, results: Sequence[Mapping[str, Any]]) -> ModelCard:
    """The card of a saved scorer from the template `model_card.md`, with `model-index` where something was measured."""
    config = read_json(folder / "config.json", dict)
    base = config.get("base_model_name_or_path")
    local = base is None or Path(base).exists()
    name = repo_id.split("/")[-1]
    learned = [eval_result(row, card) for row in results if row["sampler"] == LEARNED]
    data = ModelCardData(
        model_name=name if learned else None,
        base_model=None if local else base,
        library_name="transformers",
        license=card.license,
        datasets=[card.dataset] if results else None,
        tags=["order-scorer", "masked-diffusion", "hf_learned_order", "custom_generate", "arxiv:2602.23968"],
        eval_results=learned or None,
    )
    generation = folder / "generation_config.json"
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        repo_id=repo_id,
        card=card,
        config=config,
        denoiser=f"`{base or 'not named'}`" if local else f"[`{base}`](https://huggingface.co/{base})",
        base=base or UNNAMED,
        tokenizer=repo_id if (folder / "tokenizer_config.json").is_file() else base or UNNAMED,
        parameters=count_parameters(folder / "model.safetensors"),
        folders={name: (folder / name).is_dir() for name in ("adapter", "denoiser")},
        generation=read_json(generation, dict) if generation.is_file() else config,
        training=training_facts(folder / TRAINING_FILE),
        count=max((row["count"] for row in results), default=0),
        rows=table_rows(results),
        verdict=verdict(results),
        plot=card.plot,
    )


def count_parameters(path: Path) -> int:
    with reading(path), safe_open(path, "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def training_facts(path: Path) -> dict[str, Any]:
    """What the trainer's arguments say of the training, by the words of the card; empty where there is no file."""
    if not path.is_file():
        return {}
    arguments = read_json(path, dict)
    names = {
        "updates": "max_steps",
        "responses an update and device": "per_device_train_batch_size",
        "chains of each": "num_chains",
        "canvas": "canvas_length",
        "learning rate": "learning_rate",
        "seed": "seed",
    }
    return {word: arguments[name] for word, name in names.items() if name in arguments}


def eval_result(row: Mapping[str, Any], card: Card) -> EvalResult:
    """A row as an entry of `model-index`."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=card.dataset,
        dataset_name=f"{card.dataset} ({card.task})",
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"right answers, %, {calls(row)}",
        metric_value=percent(row),
    )


def percent(row: Mapping[str, Any]) -> float:
    return round(100 * row["accuracy"], 2)


def calls(row: Mapping[str, Any]) -> str:
    runs = f", mean of {row['runs']} runs" if row["runs"] > 1 else ""
    return f"{row['nfe']:.2f} denoiser calls on average ({row['nfe_min']}-{row['nfe_max']}){runs}"


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The cells of the card's table, by target and falling accuracy."""
    best = {row["target"]: max(r["accuracy"] for r in results if r["target"] == row["target"]) for row in results}
    rows = []
    for row in sorted(results, key=lambda row: (row["target"], -row["accuracy"])):
        right = f"{100 * row['accuracy']:.1f}" + (f" ± {100 * row['spread']:.1f}" if row["runs"] > 1 else "")
        rows.append(
            {
                "target": f"{row['target']:g}",
                "sampler": row["sampler"],
                "setting": row["setting"] or f"T={row['budget']}",
                "nfe": f"{row['nfe']:.2f} ({row['nfe_min']}-{row['nfe_max']})",
                "right": f"**{right}**" if row["accuracy"] == best[row["target"]] else right,
                "runs": str(row["runs"]),
                "bound": "" if row["bound"] is None else f"{row['bound']:.2f}",
            }
        )
    return rows


def verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """At which target NFE the learned order is ahead of every other rule, level or behind, in a sentence each."""
    places: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for target in sorted({row["target"] for row in results}):
        rows = [row for row in results if row["target"] == target]
        own = [row["accuracy"] for row in rows if row["sampler"] == LEARNED]
        others = [row for row in rows if row["sampler"] != LEARNED]
        if own and others:
            best = max(others, key=lambda row: row["accuracy"])
            difference = max(own) - best["accuracy"]
            place = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
            places[place].append(f"{target:g} ({best['sampler']})")
    return " ".join(
        f"The learned order is {place} the best heuristic at a target NFE of {', '.join(targets)}."
        for place, targets in places.items()
        if targets
    )


def read_results(path: str | os.PathLike, task: str = "") -> list[dict[str, Any]]:
    """The rows of a `results.json`, with a `task` those of it and those that name none.

    Raises:
        ValueError: there is no such row, or a row lacks a column.
    """
    rows = read_json(Path(path), list)
    if not rows:
        raise ValueError(f"{path}: must hold at least one result")
    for number, row in enumerate(rows, 1):
        for name, kind in COLUMNS.items():
            if not isinstance(row, dict) or name not in row or not isinstance(row[name], kind):
                raise ValueError(f"{path}, row {number}: must have {name!r}, as evaluate writes it")
    tasks = [row.get("task") or task for row in rows]
    if task and task not in tasks:
        raise ValueError(f"task must be among those of {path} ({', '.join(sorted(set(tasks)))}), got {task!r}")
    return [row for row in rows if not task or (row.get("task") or task) == task]
