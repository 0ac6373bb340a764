"""Samplers compared: task accuracy, NFE of each sequence, held-out bound; rules tuned to a target NFE.

NFE is counted for each sequence (denoiser calls while it still had a masked position) and averaged over sequences,
never over batches. The bound is the log-likelihood of the published response, decoded in the order that the rule
gives when every unmasked token is the true one (`decode(clean=...)`), in nats a response.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from hf_learned_order.data import CanvasCollator
from hf_learned_order.denoisers import Denoiser
from hf_learned_order.generation import LearnedOrderOutput, decode
from hf_learned_order.gsm8k import answer_of
from hf_learned_order.remasking import WINOSampler
from hf_learned_order.samplers import (
    EntropyBoundSampler,
    FactorSampler,
    KLASSSampler,
    LearnedOrderSampler,
    Sampler,
    ThresholdSampler,
    make_sampler,
)
from hf_learned_order.scorer import OrderScorer

LEARNED = ("learned_order, capped", "learned_order")  # the first that was measured is compared with the others
RANDOM_SAMPLERS = ("iid", "random", "remdm")


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


class Evaluator:
    """Decodes a data set with any sampler.

    Args:
        denoiser: the model.
        tokenizer: its tokenizer.
        dataset: rows of `prompt_ids`, `response_ids`, `answer` (`hf_learned_order.data`).
        canvas_length: positions of a response.
        batch_size: rows decoded at once; results do not depend on it unless the rule is random.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        *,
        canvas_length: int,
        batch_size: int = 128,
    ):
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one row, but it is empty")
        self.denoiser = denoiser
        self.tokenizer = tokenizer
        lengths = dataset["length"][:]
        # rows of like length together: less padding
        # pyrefly: ignore[bad-assignment] (a Dataset's selection is a Dataset)
        self.dataset: Dataset = dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))
        self.canvas_length = canvas_length
        self.batch_size = batch_size
        self.collator = CanvasCollator(tokenizer=tokenizer, canvas_length=canvas_length)
        self._mean_nfe: dict[tuple[Sampler, int | None, int], float] = {}  # bisections for several targets meet

    def outputs(
        self, sampler: Sampler, *, max_denoising_steps: int | None = None, seed: int = 0, clean: bool = False
    ) -> Iterator[tuple[LearnedOrderOutput, list[dict]]]:
        """Batches of decoded (or, with `clean`, scored) rows and the rows themselves."""
        generator = torch.Generator(self.denoiser.device).manual_seed(seed)
        for start in range(0, len(self.dataset), self.batch_size):
            # pyrefly: ignore[missing-attribute]
            rows = self.dataset.select(range(start, min(start + self.batch_size, len(self.dataset)))).to_list()
            batch = {name: value.to(self.denoiser.device) for name, value in self.collator(rows).items()}
            output = decode(
                self.denoiser,
                batch["input_ids"],
                batch["attention_mask"],
                sampler=sampler,
                max_new_tokens=self.canvas_length,
                max_denoising_steps=max_denoising_steps,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                generator=generator,
                clean=batch["clean"] if clean else None,
            )
            yield output, rows

    def measure(
        self,
        sampler: Sampler,
        *,
        name: str,
        max_denoising_steps: int | None = None,
        seed: int = 0,
        with_bound: bool = True,
    ) -> Result:
        """Accuracy, NFE and bound of one sampler at one budget."""
        right, nfe = [], []
        for output, rows in self.outputs(sampler, max_denoising_steps=max_denoising_steps, seed=seed):
            texts = self.tokenizer.batch_decode(output.sequences[:, -self.canvas_length :], skip_special_tokens=True)
            right += [answer_of(text) == row["answer"] for text, row in zip(texts, rows, strict=True)]
            nfe += output.nfe.tolist()
        bound = None
        if with_bound and not sampler.remasks:
            scored = self.outputs(sampler, max_denoising_steps=max_denoising_steps, seed=seed, clean=True)
            bound = torch.cat([output.log_likelihood for output, _ in scored]).mean().item()
        return Result(
            sampler=name,
            budget=max_denoising_steps or self.canvas_length,
            accuracy=sum(right) / len(right),
            nfe=sum(nfe) / len(nfe),
            nfe_min=min(nfe),
            nfe_max=max(nfe),
            bound=bound,
            count=len(right),
            scores=[float(x) for x in right],
        )

    def mean_nfe(self, sampler: Sampler, *, max_denoising_steps: int | None = None, seed: int = 0) -> float:
        """Mean over sequences of the denoiser calls that each needed."""
        key = (sampler, max_denoising_steps, seed)
        if key not in self._mean_nfe:
            outputs = self.outputs(sampler, max_denoising_steps=max_denoising_steps, seed=seed)
            self._mean_nfe[key] = torch.cat([output.nfe for output, _ in outputs]).float().mean().item()
        return self._mean_nfe[key]

    def tune_knob(
        self,
        make: Callable[[float], Sampler],
        target_nfe: float,
        *,
        max_denoising_steps: int | None = None,
        high: float = 1.0,
        rounds: int = 10,
    ) -> float:
        """The setting in [0, high] whose mean NFE here is nearest to `target_nfe`, by bisection.

        `make(0)` must take the most steps and `make(high)` the fewest. The best setting that was tried is returned.
        """
        best, low = (float("inf"), high), 0.0
        for _ in range(rounds):
            middle = (low + high) / 2
            nfe = self.mean_nfe(make(middle), max_denoising_steps=max_denoising_steps)
            best = min(best, (abs(nfe - target_nfe), middle))
            if abs(nfe - target_nfe) <= 0.02 * target_nfe:
                break
            low, high = (middle, high) if nfe > target_nfe else (low, middle)
        return best[1]

    def tune_budget(self, sampler: Sampler, target_nfe: float) -> int:
        """The step budget whose mean NFE here is nearest to `target_nfe` (an early EOS makes it less)."""
        best, budget, last = (float("inf"), 1), min(self.canvas_length, max(1, round(target_nfe))), 0.0
        while budget <= self.canvas_length:
            nfe = self.mean_nfe(sampler, max_denoising_steps=budget)
            best = min(best, (abs(nfe - target_nfe), budget))
            if nfe >= target_nfe or nfe == last:  # `dilated` has a number of steps of its own: more budget is no more
                break
            budget, last = budget + 1, nfe
        return best[1]


def knob(name: str, scorer: OrderScorer | None = None) -> Callable[[float], Sampler] | None:
    """A sampler of that name for each setting in [0, 1], from slow to fast; None if it has no such knob."""
    if name == "threshold":
        return lambda x: ThresholdSampler(threshold=1.0 - x)
    if name == "factor":
        return lambda x: FactorSampler(factor=_log_scale(x))
    if name == "klass":
        return lambda x: KLASSSampler(threshold=1.0 - x)
    if name == "wino":
        return lambda x: WINOSampler(draft=1.0 - x)
    if name == "entropy_bound":
        return lambda x: EntropyBoundSampler(gamma=_log_scale(x))
    if name == "learned_order" and scorer is not None:
        return lambda x: LearnedOrderSampler(scorer=scorer, bias=12.0 * x - 6.0)
    return None


def compare(
    tuning: Evaluator,
    test: Evaluator,
    *,
    samplers: Sequence[str],
    targets: Sequence[float],
    scorers: Sequence[OrderScorer] = (),
    seeds: int = 3,
    cap: float = 1.5,
    with_bound: bool = True,
) -> Iterator[Result]:
    """Every sampler at every target NFE: tuned on `tuning`, measured on `test`.

    Rules with a knob are tuned to the target, once as they are and once "capped": with a step budget of `cap` times the
    target, at whose last step everything is unmasked, so that a few long sequences do not use up the mean. Rules with a
    fixed count get the budget nearest to the target. Random rules run with `seeds` seeds and `learned_order` with every
    scorer: mean and standard deviation over them. A scorer that was trained for one step budget decodes within it.

    Raises:
        ValueError: a sampler is unknown or lacks its scorer, or a number is out of range.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    if not cap >= 1:
        raise ValueError(f"cap must be 1 or more, got {cap}")
    for name in samplers:
        # without a scorer, make_sampler says that there has to be one
        mine = scorers if name == "learned_order" and scorers else (None,)
        budgeted = any(scorer is not None and scorer.config.max_denoising_steps for scorer in mine)
        for target in targets:
            for capped in (False,) if knob(name, mine[0]) is None or budgeted else (False, True):
                steps = min(math.ceil(cap * target), tuning.canvas_length) if capped else None
                runs = []
                for scorer in mine:
                    sampler, budget, setting = _tuned(tuning, name, scorer, target, steps)
                    label = f"{name}, capped" if capped else name
                    for seed in range(seeds if name in RANDOM_SAMPLERS else 1):
                        run = test.measure(
                            sampler, name=label, max_denoising_steps=budget, seed=seed, with_bound=with_bound
                        )
                        runs.append(replace(run, target=target, setting=setting))
                yield over_runs(runs)


def _tuned(
    tuning: Evaluator, name: str, scorer: OrderScorer | None, target: float, steps: int | None
) -> tuple[Sampler, int | None, str]:
    """The sampler tuned to the target, the step budget it runs with, and its setting in words."""
    make = knob(name, scorer)
    if make is None:
        sampler = make_sampler(name)
        return sampler, tuning.tune_budget(sampler, target), ""
    budget = steps if scorer is None else scorer.config.max_denoising_steps or steps
    sampler = make(tuning.tune_knob(make, target, max_denoising_steps=budget))
    words = [f"{k}={v:.4g}" for k, v in vars(sampler).items() if isinstance(v, float)]
    return sampler, budget, " ".join(words + [f"T={budget}"] * (budget is not None))


def over_runs(runs: Sequence[Result]) -> Result:
    """Mean over runs of one sampler, with the standard deviation of their accuracy."""
    accuracies = torch.tensor([run.accuracy for run in runs])
    bounds = [run.bound for run in runs if run.bound is not None]
    return replace(
        runs[0],
        accuracy=accuracies.mean().item(),
        spread=accuracies.std().item() if len(runs) > 1 else 0.0,
        runs=len(runs),
        nfe=sum(run.nfe for run in runs) / len(runs),
        nfe_min=min(run.nfe_min for run in runs),
        nfe_max=max(run.nfe_max for run in runs),
        bound=sum(bounds) / len(bounds) if bounds else None,
        scores=[sum(scores) / len(runs) for scores in zip(*(run.scores for run in runs), strict=True)],
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
    difference = torch.tensor(ours.scores) - torch.tensor(theirs.scores)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    low, high = difference[chosen].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def table(results: Sequence[Result]) -> Table:
    """The comparison for a terminal; the best accuracy at each target NFE is bold."""
    view = Table(
        "target", "sampler", "setting", "NFE", "range", "right, %", "± over runs", "learned ahead, 95 %", "bound, nats"
    )
    best = {target: max(r.accuracy for r in results if r.target == target) for target in {r.target for r in results}}
    targets = sorted(best)
    for target in targets:
        ours = {r.sampler: r for r in results if r.target == target and r.scores}
        learned = next((ours[name] for name in LEARNED if name in ours), None)
        for result in sorted((r for r in results if r.target == target), key=lambda r: -r.accuracy):
            ahead = lead(learned, result) if learned is not None and result.sampler not in LEARNED else None
            style = "bold" if result.accuracy == best[target] else None
            view.add_row(
                f"{target:g}",
                result.sampler,
                result.setting or f"T={result.budget}",
                f"{result.nfe:.2f}",
                f"{result.nfe_min}-{result.nfe_max}",
                f"{100 * result.accuracy:.1f}",
                f"{100 * result.spread:.1f} ({result.runs})" if result.runs > 1 else "",
                "" if ahead is None else f"{100 * ahead[0]:+.1f} to {100 * ahead[1]:+.1f}",
                "" if result.bound is None else f"{result.bound:.2f}",
                style=style,
                end_section=False,
            )
        view.add_section()
    return view


def save_results(results: Sequence[Result], folder: str | Path) -> None:
    """`results.json` and `results.csv` in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    lines = ",\n".join(json.dumps(row) for row in rows)
    (folder / "results.json").write_text(f"[{lines}]\n", encoding="utf-8")
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "scores"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def load_results(path: str | Path) -> list[Result]:
    """The results of a `results.json`. Raises `ValueError` when the file holds something else."""
    try:
        return [Result(**row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: must be a results.json that evaluate wrote ({error})") from error


def _log_scale(x: float) -> float:
    return 10.0 ** (5.0 * x - 3.5)
