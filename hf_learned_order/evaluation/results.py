"""What was measured: rows of a comparison, their files, and a sweep that goes on after a kill."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock

from hf_learned_order.common.files import read_json, replacing

JSON, SETTINGS = "results.json", "settings.json"
COMMAND = "command"  # of the settings: how to measure the same again; what the rows depend on stands in the others
PROBE = "denoiser_probe"  # of the settings, where the denoiser was tuned along with a scorer: which one was measured
KINDS: dict[Any, Any] = {float: int | float, float | None: int | float | None, list[float]: list, list[str]: list}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of a comparison.

    Attributes:
        sampler: name of the rule.
        setting: its options, where it has a knob.
        target: the mean NFE it was tuned to.
        budget: max_denoising_steps.
        accuracy: share of right final answers.
        spread: standard deviation of the accuracy over runs.
        nfe, nfe_min, nfe_max: mean and range over sequences.
        bound: mean log-likelihood of the published response, nats a response; None where it was not asked for or
            the rule remasks.
        count: sequences.
        runs: how many seeds or scorers the means are over.
        scores: for each sequence the share of runs that got it right, in the order of the data set.
        calls: for each sequence its NFE, the mean over runs.
        task: what was measured on.
        tokens_per_forward: mean over sequences of the tokens of the response, first EOS included, a denoiser call.
        kendall_tau, local_ar_ness, global_ar_ness: how much the orders of the responses resemble decoding from left to
            right, at k = 1 (`metrics`); means over sequences, None where none has a value.
        finalization_parallelism: tokens of a response that become final together, likewise.
        samples: responses to each prompt, of one scorer; k of `pass_at_k`.
        pass_at_k: share of prompts of which one response at least is right; None with one response.
        diversity: share of pairs of responses to a prompt that differ; None with one response.
        held_out: accuracy on the problems that the setting was tuned on, to choose between rows without a look at the
            test problems; None in results of before there was it.
        texts: the responses, in the order of the data set; not saved.
    """

    sampler: str
    setting: str = ""
    target: float = 0.0
    budget: int
    accuracy: float
    spread: float = 0.0
    nfe: float
    nfe_min: int
    nfe_max: int
    bound: float | None
    count: int
    runs: int = 1
    scores: list[float] = field(default_factory=list, repr=False)
    calls: list[float] = field(default_factory=list, repr=False)
    task: str = ""
    tokens_per_forward: float | None = None
    kendall_tau: float | None = None
    local_ar_ness: float | None = None
    global_ar_ness: float | None = None
    finalization_parallelism: float | None = None
    samples: int = 1
    pass_at_k: float | None = None
    diversity: float | None = None
    held_out: float | None = None
    texts: list[str] = field(default_factory=list, repr=False, compare=False)


def over_samples(runs: Sequence[Result]) -> list[Result]:
    """Runs of one sampler and scorer with several seeds, each with what they are worth together; one as it is."""
    if len(runs) == 1:
        return list(runs)
    from hf_learned_order.evaluation.metrics import diversity, pass_at_k

    rights = [round(sum(scores)) for scores in zip(*(run.scores for run in runs), strict=True)]
    differ = [diversity(texts) for texts in zip(*(run.texts for run in runs), strict=True)]
    together: dict[str, Any] = {
        "samples": len(runs),
        "pass_at_k": _mean([pass_at_k(right, len(runs), len(runs)) for right in rights]),
        "diversity": _mean(differ),
    }
    return [replace(run, **together) for run in runs]


def over_runs(runs: Sequence[Result]) -> Result:
    """Mean over runs of one sampler, with the standard deviation of their accuracy."""
    accuracies = torch.tensor([run.accuracy for run in runs], dtype=torch.float64)
    means = ("nfe", "bound", "tokens_per_forward", "kendall_tau", "local_ar_ness", "global_ar_ness")
    means += ("finalization_parallelism", "pass_at_k", "diversity", "held_out")
    return replace(
        runs[0],
        texts=[],
        accuracy=accuracies.mean().item(),
        spread=accuracies.std().item() if len(runs) > 1 else 0.0,
        runs=len(runs),
        nfe_min=min(run.nfe_min for run in runs),
        nfe_max=max(run.nfe_max for run in runs),
        scores=[sum(scores) / len(runs) for scores in zip(*(run.scores for run in runs), strict=True)],
        calls=[sum(calls) / len(runs) for calls in zip(*(run.calls for run in runs), strict=True)],
        **{name: _mean([getattr(run, name) for run in runs]) for name in means},
    )


def lead(ours: Result, theirs: Result, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the difference in accuracy, by the paired bootstrap over sequences.

    Both must hold `scores` of the same sequences. The spread over runs is no part of it: scores are means over runs.

    Raises:
        ValueError: the two were not measured on the same number of sequences.
    """
    if len(ours.scores) != len(theirs.scores) or not ours.scores:
        raise ValueError(
            f"both results must have scores of the same sequences, got {len(ours.scores)} and {len(theirs.scores)}"
        )
    return paired_interval(torch.tensor(ours.scores) - torch.tensor(theirs.scores), draws=draws, seed=seed)


def paired_interval(difference: torch.Tensor, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `difference` [sequences], by the bootstrap."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    low, high = difference[chosen].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def save_results(results: Sequence[Result], folder: str | Path) -> None:
    """`results.json` and `results.csv` in `folder`, the old ones or the new ones whatever happens.

    The CSV has neither `scores` nor `calls`.

    Raises:
        OSError: `folder` cannot be written to, or the disk is full.
    """
    rows = [{name: value for name, value in asdict(result).items() if name != "texts"} for result in results]
    lines = ",\n".join(json.dumps(row) for row in rows)
    with replacing(folder) as temporary:
        (temporary / JSON).write_text(f"[{lines}]\n", encoding="utf-8")
        with open(temporary / "results.csv", "w", newline="", encoding="utf-8") as file:
            names = [field.name for field in fields(Result) if field.name not in ("scores", "calls", "texts")]
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def load_results(path: str | Path) -> list[Result]:
    """The results of a `results.json` or, without their scores, of a `results.csv`.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    try:
        if path.suffix != ".csv":
            rows = read_json(path, list)
        else:
            kinds = {field.name: field.type for field in fields(Result)}
            with open(path, newline="", encoding="utf-8") as file:
                rows = [{name: _value(text, kinds[name]) for name, text in row.items()} for row in csv.DictReader(file)]
        return [_checked(number, row) for number, row in enumerate(rows, 1)]
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: must be a results.json or results.csv that evaluate wrote ({error})") from error


class Sweep:
    """The rows of a comparison in a folder, each on disk as soon as it is measured.

    The folder holds `settings.json` beside `results.json` and `results.csv`. A sweep with the same settings goes on
    with the rows that are there: `compare(..., finished=sweep.results)`. Two sweeps may write to one folder at once:
    with the same settings it gets the rows of both, with others the second one's first row is refused.

    Args:
        folder: where they are; made where there is none.
        settings: all that the rows depend on, as JSON takes it. `command`, how to measure the same again, is kept
            with them and need not be the same.

    Attributes:
        results: the rows that are on disk.

    Raises:
        ValueError: the rows that are there were measured with other settings, or it is not known with which.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        with replacing(self.folder):
            pass  # a folder that cannot be written to is told now, not behind the first row
        self.results = self._on_disk()

    def add(self, result: Result) -> None:
        """Saves one more row; one of the same task, sampler and target that is there already stays.

        Raises:
            ValueError: meanwhile another process has put rows there that it measured with other settings.
            OSError: the disk is full; the rows that were there still are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.folder / ".sweep.lock"):  # from reading to writing
            there = self._on_disk()
            if not there:  # before the first row, so that there is never a row of unknown settings
                with replacing(self.folder) as temporary:
                    (temporary / SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            known = {_key(row) for row in there}
            rows = [*there, *(row for row in [*self.results, result] if _key(row) not in known)]
            if len(rows) > len(there):
                save_results(rows, self.folder)
            self.results = rows

    def _on_disk(self) -> list[Result]:
        """The rows that are there, which must be of these settings."""
        rows = load_results(self.folder / JSON) if (self.folder / JSON).exists() else []
        if rows:
            self._check_settings()
        return rows

    def _check_settings(self) -> None:
        way_out = "give another folder, or delete this one to begin anew"
        path = self.folder / SETTINGS
        if not path.exists():
            raise ValueError(f"{self.folder}: has a {JSON}, but no {SETTINGS} that says how it was measured; {way_out}")
        theirs, ours = read_json(path, dict), self.settings
        other = [name for name in sorted({*ours, *theirs} - {COMMAND}) if ours.get(name) != theirs.get(name)]
        if other:
            words = "; ".join(f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}" for name in other)
            raise ValueError(f"{self.folder}: its results were measured with other settings ({words}); {way_out}")


def _mean(values: Sequence[float | None]) -> Any:
    """Of the values that there are; None without any."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _key(row: Result) -> tuple[str, str, float]:
    return row.task, row.sampler, row.target


def _checked(number: int, row: dict[str, Any]) -> Result:
    """Row `number` of a file. Raises `ValueError` unless its fields are of their types and its numbers make sense."""
    try:
        result = Result(**row)
    except TypeError as error:
        raise ValueError(f"row {number}: {error}") from error
    for name, kind in ((each.name, KINDS.get(each.type, each.type)) for each in fields(Result)):
        value = getattr(result, name)
        if isinstance(value, bool) or not isinstance(value, kind):  # pyrefly: ignore[invalid-argument]
            raise ValueError(f"row {number}: {name} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(one) for one in numbers if isinstance(one, float)):
            raise ValueError(f"row {number}: {name} must be finite, got {value}")
    if not 0 <= result.accuracy <= 1:
        raise ValueError(f"row {number}: accuracy must be in [0, 1], got {result.accuracy}")
    return result


def _value(text: str, kind: object) -> Any:
    """A cell of a CSV as the field's type; an empty one is None unless it is text."""
    if kind is str:
        return text
    if text == "" and kind not in (int, float):
        return None
    return int(text) if kind is int else float(text)
