"""Variance of the estimators of the ELBO's gradient on Pairs, n = 4, T = 2 and 4, with 32 chains each.

    PYTHONPATH=tests python examples/bench_estimators.py

The law is the non-empty one, shared, after so many updates that the bound has gone half of its way; per estimator, the
trace of the covariance of the gradient of the scorer, over that of the default, mean and standard deviation over seeds.
"""

import argparse
import math
import statistics
from typing import Any

import torch
from problems import ExactPairs
from rich.console import Console
from rich.table import Table

from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.elbo import OrderELBO

N, CHAINS, DRAWS, FIT = 4, 32, 200, 150
# name, chains of each response, options
ESTIMATORS: list[tuple[str, int, dict[str, Any]]] = [
    ("leave-one-out, K 8 (default)", 8, {}),
    ("leave-one-out, K 2", 2, {}),
    ("no baseline", 8, {"baseline": "none"}),
    ("learned value", 8, {"baseline": "value"}),
    ("leave-one-out, whole trajectory", 8, {"returns": "trajectory"}),
    ("no baseline, whole trajectory", 8, {"baseline": "none", "returns": "trajectory"}),
    ("leave-one-out, one random step", 8, {"gradient_steps": "one"}),
]


def trained(law: str, steps: int, seed: int) -> OrderScorer:
    """A scorer on its way."""
    torch.manual_seed(seed)
    denoiser: Any = ExactPairs(N)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "pair_weight": 1.0}
    scorer = OrderScorer.for_denoiser(denoiser, law=law, **shape)
    objective = OrderELBO(denoiser, scorer, max_denoising_steps=steps)
    start = bound_of(objective)
    half = (start - N * math.log(2)) / 2
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0.0)
    for update in range(2000):
        optimizer.zero_grad()
        objective(*batch(4))["loss"].backward()
        optimizer.step()
        if update % 10 == 9 and bound_of(objective) > half:
            break
    return scorer


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    empty = torch.zeros(rows, 0, dtype=torch.long)
    return empty, empty, ExactPairs.draw(N, rows, torch.default_generator)


@torch.no_grad()
def bound_of(objective: OrderELBO) -> float:
    return objective(*batch(64))["bound"].item()


def variance(scorer: OrderScorer, steps: int, seed: int, chains: int, options: dict[str, Any]) -> float:
    torch.manual_seed(seed)
    denoiser: Any = ExactPairs(N)
    objective = OrderELBO(denoiser, scorer, max_denoising_steps=steps, num_chains=chains, **options)
    if objective.value is not None:
        optimizer = torch.optim.AdamW(objective.value.parameters(), lr=3e-3, weight_decay=0.0)
        for _ in range(FIT):
            optimizer.zero_grad()
            objective.chains(Batch(*batch(8))).value_loss().backward()
            optimizer.step()
    parameters, drawn = list(scorer.parameters()), []
    for _ in range(DRAWS):
        surrogate = objective.surrogate(objective.chains(Batch(*batch(CHAINS // chains))))
        if surrogate.requires_grad:
            found = torch.autograd.grad(surrogate, parameters, allow_unused=True, materialize_grads=True)
            drawn.append(torch.cat([g.flatten() for g in found]))
        else:  # every chain had finished before the one step
            drawn.append(torch.zeros(sum(p.numel() for p in parameters)))
    return torch.stack(drawn).var(0).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for law in ("non_empty", "regret"):
        view = Table("estimator", "T = 2", "T = 4", title=f"variance over the default's, law {law}")
        columns = []
        for steps in (2, 4):
            ratios = []
            for seed in range(arguments.seeds):
                scorer = trained(law, steps, seed)
                found = [variance(scorer, steps, seed, chains, options) for _, chains, options in ESTIMATORS]
                ratios.append([value / found[0] for value in found])
            columns.append([f"{statistics.mean(r):.2f} ± {statistics.stdev(r):.2f}" for r in zip(*ratios, strict=True)])
        for (name, *_), *cells in zip(ESTIMATORS, *columns, strict=True):
            view.add_row(name, *cells)
        Console().print(view)


if __name__ == "__main__":
    main()
