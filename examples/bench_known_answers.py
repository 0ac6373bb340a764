r"""Learned orders on problems whose best bound is known, with exact denoisers: pairs, copy, replace, shuffle; every T.

    PYTHONPATH=tests python examples/bench_known_answers.py --sizes 4 5 6 7 8 --seeds 3

One scorer a problem, size and seed serves every budget T: each response draws its own. "Bound" is the mean
log-likelihood of clean responses in the order of decoding; "gap" what its chains lose against the best ones, on average
over the responses, and "optimal" the share of chains that lose none: in the order that the law draws, and in its
likeliest one (`greedy`). A row is printed when it is known.
"""

import argparse
import statistics
from typing import Any

import torch
from problems import ExactCopy, ExactPairs, ExactReplaceAt, ExactReplaceRandom, ExactShuffle

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.orders.configuration import RANDOM_LAWS
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.elbo import BASELINES, OrderELBO, remaining

PROBLEMS: dict[str, Any] = {
    "copy": ExactCopy,
    "replace_at": ExactReplaceAt,
    "replace_random": ExactReplaceRandom,
    "shuffle": ExactShuffle,
    "pairs": ExactPairs,
}
WARM_UP = 20


def train(problem: Any, law: str, seed: int, options: argparse.Namespace) -> OrderScorer:
    """A scorer for all budgets, by the shared law."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    scorer = OrderScorer.for_denoiser(problem, law=law, law_temperature=options.temperature, **shape)
    if problem.optimum(1) == 0.0:
        return scorer.eval()  # no order loses anything: there is no gradient
    objective = OrderELBO(
        problem,
        scorer,
        max_denoising_steps=problem.n,
        min_denoising_steps=2,  # in one step there is nothing to decide
        num_chains=options.chains,
        baseline=options.baseline,
    )
    # the noise falls while the value learns: of the squared gradients only the last hundred updates count
    optimizer = torch.optim.AdamW(objective.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / WARM_UP, 1.0, max(0.02, (1 - update / options.updates) / 0.6))
    )
    for update in range(options.updates):
        objective.exploration = options.exploration * remaining(update / options.updates)
        prompt, clean = problem.examples(options.batch, generator)
        loss = objective(prompt, torch.ones_like(prompt), clean)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return scorer.eval()


def measure(problem: Any, sampler: LearnedOrderSampler, steps: int, rows: int) -> tuple[float, float, float, float]:
    """Mean log-likelihood, mean regret, share of chains without regret, mean NFE."""
    generator = torch.Generator().manual_seed(1000 + steps)
    prompt, clean = problem.examples(rows, generator)
    output = decode(
        problem,
        prompt,
        sampler=sampler,
        max_new_tokens=problem.length,
        max_denoising_steps=steps,
        clean=clean,
        generator=generator,
    )
    regret = problem.regret(prompt, clean, output.order, steps)
    optimal = (regret < 1e-6).float().mean().item()
    return output.log_likelihood.mean().item(), regret.mean().item(), optimal, output.nfe.float().mean().item()


def spread(values: list[float], digits: int) -> str:
    error = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 5, 6, 7, 8])
    parser.add_argument("--law", choices=list(RANDOM_LAWS), default="count")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--batch", type=int, default=256, help="responses an update")
    parser.add_argument("--chains", type=int, default=1, help="K, of each response")
    parser.add_argument("--baseline", choices=BASELINES, default="value")
    parser.add_argument("--exploration", type=float, default=0.2, help="at the start, falling to 0")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=0.1, help="tau of the law")
    parser.add_argument("--rows", type=int, default=2048, help="responses to measure on")
    arguments = parser.parse_args()
    columns = [f"{kind}: bound | gap, % | optimal, % | NFE" for kind in ("drawn", "greedy")]
    print(f"| problem | n | T | optimum | {' | '.join(columns)} |\n{'|---' * 12}|")
    for name in arguments.problems:
        for n in arguments.sizes:
            problem = PROBLEMS[name](n)
            scorers = [train(problem, arguments.law, seed, arguments) for seed in range(arguments.seeds)]
            for steps in range(1, n + 1):
                best = problem.optimum(steps)
                cells = [f"{best:.3f}"]
                for greedy in (False, True):
                    samplers = [LearnedOrderSampler(scorer=scorer, greedy=greedy) for scorer in scorers]
                    measured = [measure(problem, sampler, steps, arguments.rows) for sampler in samplers]
                    bound, regret, optimal, nfe = (list(values) for values in zip(*measured, strict=True))
                    gaps = [-100 * value / best if best else 100 * value for value in regret]
                    cells += [spread(bound, 3), spread(gaps, 2), spread([100 * share for share in optimal], 1)]
                    cells.append(f"{statistics.mean(nfe):.2f}")
                print(f"| {name} | {n} | {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
