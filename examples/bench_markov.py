r"""Is the sampler right? How far what is decoded at temperature 1 is from a Markov chain whose conditionals are exact.

    python examples/bench_markov.py --output docs/results/data/markov.json --page docs/results/markov.md

The denoiser makes no error (`exact_chain.py`), so all that is wrong is what tokens taken at once did not know of each
other. Measured is the total variation between the law of two positions at a distance, in what is decoded and in the
chain; at distance 1 these are the transitions. Each rule runs at settings of its own (of a knob, where the NFE changes
most; else step budgets); nothing is tuned. What the table shows at an NFE lies on the line between the points on either
side. Points are added to the file: the same command goes on with those that are missing. Scorers are trained here, in
two minutes each, with seeds of their own; of these the table has the mean.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import between_points, spread_settings
from exact_chain import ExactChainForMaskedLM, exact_chain, rows_of
from pages import markdown, replace_part

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.comparison import knob
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.trainer import OrderTrainer
from hf_learned_order.training.weighing import set_weights

DISTANCES, SHOWN = (1, 2, 4, 8), (1, 2)
KNOBS = 14  # settings of a rule that has a knob
BUDGETS = (2, 3, 4, 6, 8, 12, 16)
NFES = (2, 3, 4, 5, 6, 8, 10, 12)
TRAINED = ["regret"]
EXACT = "the chain itself"
# the exact denoiser has no attention maps
RULES = [n for n, rule in SAMPLERS.items() if n != "learned_order" and not rule.needs_attentions]


def train(chain: ExactChainForMaskedLM, tokenizer: Any, law: str, settings: dict[str, Any], seed: int) -> OrderScorer:
    """A scorer of that law, by its own objective. No draw of the chain is wrong: doubt has no part in a regret law."""
    torch.manual_seed(seed)
    denoiser = Denoiser(chain, mask_token_id=tokenizer.mask_token_id)
    scorer = OrderScorer.for_denoiser(denoiser, law=law, hidden_size=32, num_hidden_layers=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = OrderTrainingArguments(
            output_dir=folder,
            canvas_length=settings["length"],
            max_steps=settings["updates"],
            per_device_train_batch_size=32,
            warmup_steps=min(20, settings["updates"]),
            logging_steps=max(1, settings["updates"] // 5),
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            seed=seed,
            temperature=1.0 if law == "regret" else 0.0,
        )
        data = rows_of(chain, 32 * settings["updates"], settings["length"], seed=seed + 1)
        trainer = OrderTrainer(
            model=chain, scorer=scorer, args=arguments, processing_class=tokenizer, train_dataset=data
        )
        trainer.train()
    if law == "regret":
        set_weights(scorer, 0.0, 1.0)
    return scorer.eval()


def curve_of(rows: Sequence[dict[str, Any]], rule: str, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """The variation at each of `NFES`: the mean over the scorers of a rule, and their standard deviation."""
    curves = {}
    for row in rows:
        if row["rule"] == rule:
            curves.setdefault(row.get("scorer"), []).append((row["nfe"], row["variation"][str(distance)]))
    values = np.array([between_points(curve, NFES) for curve in curves.values()])
    return values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(NFES))


def cell(value: float, spread: float, best: float) -> str:
    """In %; the best of a column is bold."""
    if np.isnan(value):
        return "-"
    text = f"**{100 * value:.1f}**" if value == best else f"{100 * value:.1f}"
    return f"{text} ± {100 * spread:.1f}" if spread else text


def tables(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The part of the page that is made of the data."""
    floor = next(row for row in rows if row["rule"] == EXACT)
    parts = [
        f"A chain of {settings['states']} states (rows of a Dirichlet law, {settings['concentration']}), "
        f"{settings['length']} positions, {settings['rows']} sequences a point. Total variation, in %, the smaller the "
        "better. Draws of the chain itself, as many, are "
        + ", ".join(f"{100 * floor['variation'][str(d)]:.1f} at distance {d}" for d in DISTANCES)
        + ": what is not above that is right."
    ]
    for distance in SHOWN:
        body = []
        for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != EXACT):
            values, spread = curve_of(rows, rule, distance)
            if not np.isnan(values).all():
                body.append((rule, values, spread))
        body.sort(key=lambda item: np.nan_to_num(item[1], nan=1.0).mean())
        best = np.nan_to_num([values for _, values, _ in body], nan=np.inf).min(0)
        cells = [[rule, *map(cell, values, spread, best)] for rule, values, spread in body]
        title = "Transitions" if distance == 1 else f"Pairs at distance {distance}"
        parts.append(f"{title}, by the mean NFE:\n\n" + markdown(["rule", *map(str, NFES)], cells))
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != EXACT):
        mine = [row for row in rows if row["rule"] == rule]
        if max(row["nfe"] for row in mine) < min(NFES):
            calls, worst = (
                max(values) for values in zip(*((r["nfe"], r["variation"]["1"]) for r in mine), strict=True)
            )
            parts.append(
                f"{rule}: {calls:.1f} calls at most, at every setting, with transitions {100 * worst:.1f} off."
            )
    trained: dict[str, set[int]] = {}
    for row in rows:
        if "scorer" in row:
            trained.setdefault(row["rule"], set()).add(row["scorer"])
    if trained:
        scorers = ", ".join(f"{rule}: {len(seeds)}, ± their standard deviation" for rule, seeds in trained.items())
        parts.append(f"Scorers of {settings['updates']} updates of 32 sequences: {scorers}.")
    return "\n\n".join(parts)


class Bench:
    """Points of a file, and what they are measured on.

    Raises:
        ValueError: the file was measured with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.chain, self.tokenizer = exact_chain(
            states=settings["states"], concentration=settings["concentration"], chain_seed=settings["seed"]
        )
        self.denoiser = Denoiser(self.chain, mask_token_id=self.tokenizer.mask_token_id)
        saved = json.loads(path.read_text()) if path.exists() else {"settings": settings, "points": []}
        if saved["settings"] != settings:
            raise ValueError(f"{path}: was measured with {saved['settings']}, not {settings}; give another --output")
        self.rows: list[dict[str, Any]] = saved["points"]
        if not self.rows:
            draws = self.chain.draw(settings["rows"], settings["length"], self.generator)
            self.add({"rule": EXACT, "setting": "", "nfe": settings["length"], "variation": self.variation(draws)})

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings["seed"])

    def variation(self, tokens: torch.Tensor) -> dict[str, float]:
        """Total variation of pairs at each distance, between `tokens` int [rows, length] and the chain."""
        states, found = self.settings["states"], {}
        for distance in DISTANCES:
            pair = tokens[:, :-distance] * states + tokens[:, distance:]
            share = torch.bincount(pair.flatten(), minlength=states**2).double() / pair.numel()
            found[str(distance)] = 0.5 * (share - self.chain.pairs(distance).flatten()).abs().sum().item()
        return found

    def measure(self, rule: str, scorer: OrderScorer | None = None, seed: int | None = None) -> None:
        """The points of a rule that are missing; of the learned order with a scorer, those of its `seed`."""
        make = knob(rule if scorer is None else "learned_order", scorer)
        if make is None:
            for budget in BUDGETS:
                self.nfe_of(rule, make_sampler(rule), f"T={budget}", max_denoising_steps=budget)
        else:
            spread_settings(lambda x: self.nfe_of(rule, make(x), f"x={x:g}", seed), KNOBS)

    def points_of(self, rule: str, seed: int | None) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["rule"], row.get("scorer")) == (rule, seed)]

    def nfe_of(self, rule: str, sampler: Sampler, setting: str, seed: int | None = None, **options: Any) -> float:
        """The mean NFE of a point, which is measured if it is missing."""
        for row in self.points_of(rule, seed):
            if row["setting"] == setting:
                return row["nfe"]
        output = decode(
            self.denoiser,
            torch.zeros(self.settings["rows"], 0, dtype=torch.long),
            sampler=sampler,
            max_new_tokens=self.settings["length"],
            temperature=1.0,
            generator=self.generator,
            **options,
        )
        nfe = output.nfe.float().mean().item()
        variation = self.variation(output.sequences - self.chain.config.first_token)
        which = {} if seed is None else {"scorer": seed}
        self.add({"rule": rule, "setting": setting, "nfe": nfe, "variation": variation, **which})
        return nfe

    def measure_trained(self, law: str, seed: int) -> None:
        """A scorer of that law, trained if points of it are missing."""
        rule = f"learned order, {law}"
        if len(self.points_of(rule, seed)) < KNOBS:
            self.measure(rule, train(self.chain, self.tokenizer, law, self.settings, seed), seed)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(each) for each in self.rows)
        self.path.write_text(f'{{"settings": {json.dumps(self.settings)},\n"points": [\n{lines}\n]}}\n')


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=6)
    parser.add_argument("--concentration", type=float, default=0.3, help="of the rows of transitions; small: sharp")
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2000, help="sequences decoded for a point")
    parser.add_argument("--rules", nargs="+", help="by default all that need no attention maps, which it has not")
    parser.add_argument("--laws", nargs="*", default=TRAINED, help="of the scorers that are trained")
    parser.add_argument("--updates", type=int, default=1000, help="of a scorer, of 32 sequences")
    parser.add_argument("--scorer_seeds", nargs="+", type=int, default=[0, 1, 2], help="of the scorers of a law")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/markov.json", help="where points are added")
    parser.add_argument("--page", help="a page whose generated part is written anew")
    options = parser.parse_args(arguments)
    names = ("states", "concentration", "length", "rows", "updates", "seed")
    try:
        bench = Bench(Path(options.output), {name: getattr(options, name) for name in names})
    except ValueError as error:
        parser.error(str(error))
    for name in options.rules or RULES:
        bench.measure(name)
    for law in options.laws:
        for seed in options.scorer_seeds:
            bench.measure_trained(law, seed)
    text = tables(bench.rows, bench.settings)
    if options.page:
        replace_part(options.page, "markov", text)
    print(text)


if __name__ == "__main__":
    main()
