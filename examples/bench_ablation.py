"""What each choice is worth on a problem with a known answer: law, posterior, features, warm start, tau, K.

    PYTHONPATH=tests python examples/bench_ablation.py

Pairs with n = 4 and T = 2, exact conditionals, optimum -4 log 2. One choice at a time is changed from the default: law
non_empty, shared law, all features, tau 0.1, K = 8. An update has as many chains whatever K is. The
figure is how far the bound is from the optimum, nats a response: before training, half of the way, and at its end.
"""

import argparse
from typing import Any

import torch
from bench_known_answers import spread
from problems import ExactPairs

from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.elbo import OrderELBO

N, STEPS, CHAINS, WARM_UP = 4, 2, 32, 10
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
# what is changed -> fields of the scorer's configuration, and "posterior", "once", "chains"
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "law count": {"law": "count"},
    "law regret": {"law": "regret", "pair_weight": 1.0},
    "law max_normalized": {"law": "max_normalized"},
    "posterior clean": {"posterior": True},
    "posterior clean, law count": {"posterior": True, "law": "count"},
    "posterior clean, once": {"posterior": True, "once": True},
    "posterior clean, once, law count": {"posterior": True, "once": True, "law": "count"},
    "features: entropy and hidden state": {"features": ["entropy"]},
    "features: hidden state": {"features": []},
    "features: all but hidden state, and position": {
        "features": ["confidence", "margin", "entropy", "mask_fraction", "budget", "position"],
        "denoiser_hidden_size": 0,
    },
    "tau 0.03": {"law_temperature": 0.03},
    "tau 0.3": {"law_temperature": 0.3},
    "tau 1": {"law_temperature": 1.0},
    "K 2": {"chains": 2},
    "K 4": {"chains": 4},
    "K 16": {"chains": 16},
}


def gaps(
    seed: int,
    options: argparse.Namespace,
    *,
    posterior: bool = False,
    once: bool = False,
    chains: int = 8,
    **fields: Any,
) -> list[float]:
    """Nats from the optimum before, half of the way, and after training."""
    torch.manual_seed(seed)
    problem: Any = ExactPairs(N)
    scorer = OrderScorer.for_denoiser(problem, **SHAPE, **fields)
    q = CleanPosterior(scorer.config, once=once) if posterior else None
    objective = OrderELBO(problem, scorer, q, max_denoising_steps=STEPS, num_chains=chains)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=options.learning_rate, weight_decay=0.0)
    found = [gap_of(objective, options.rows)]
    for update in range(options.updates):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min((update + 1) / WARM_UP, max(0.05, 1 - update / options.updates))
        optimizer.zero_grad()
        objective(*batch(CHAINS // chains))["loss"].backward()
        optimizer.step()
        if (update + 1) % (options.updates // 2) == 0:
            found.append(gap_of(objective, options.rows))
    return found


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    empty = torch.zeros(rows, 0, dtype=torch.long)
    return empty, empty, ExactPairs.draw(N, rows, torch.default_generator)


@torch.no_grad()
def gap_of(objective: OrderELBO, rows: int) -> float:
    return ExactPairs(N).optimum(STEPS) - objective(*batch(rows))["bound"].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=200, help="even")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=128, help="responses to measure on")
    arguments = parser.parse_args()
    print("| changed | untrained | half | trained |\n|---|---|---|---|")
    for name in arguments.choices:
        found = [gaps(seed, arguments, **CHOICES[name]) for seed in range(arguments.seeds)]
        cells = [spread(list(gap), 2) for gap in zip(*found, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
