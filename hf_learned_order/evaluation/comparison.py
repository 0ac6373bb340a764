"""Every sampler at every target NFE: its knob, tuned on held-out problems, then measured on others."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.results import Result, over_runs, over_samples
from hf_learned_order.orders.scorer import OrderScorer

BUDGET_SHARES = (1.0, 1.25, 1.5)


# of the rules with a knob, their options at each of its settings
KNOBS: dict[str, Callable[[float], dict[str, float]]] = {
    "threshold": lambda x: {"threshold": 1.0 - x},
    "factor": lambda x: {"factor": _log_scale(x)},
    "frechet": lambda x: {"margin": 1.0 - _log_scale(x)},
    # through the published pair of thresholds, 0.9 and 0.75
    "local_leap": lambda x: {"threshold": 1.0 - x, "relaxed": max(0.0, 1.0 - 2.5 * x)},
    "dapd": lambda x: {"threshold": 10.0 ** (4.0 * x - 4.0), "confidence": 1.0 - x},
    "klass": lambda x: {"threshold": 1.0 - x},
    "wino": lambda x: {"draft": 1.0 - x},
    "entropy_bound": lambda x: {"gamma": _log_scale(x)},
}


def knob(name: str, scorer: OrderScorer | None = None, *, greedy: bool = False) -> Callable[[float], Sampler] | None:
    """A sampler of that name for each setting in [0, 1], from slow to fast; None if it has no such knob."""
    if name == "learned_order" and scorer is not None:
        return lambda x: LearnedOrderSampler(scorer=scorer, bias=12.0 * x - 6.0, greedy=greedy)
    if name not in KNOBS:
        return None
    return lambda x: make_sampler(name, KNOBS[name](x))


def planned(
    samplers: Sequence[str],
    targets: Sequence[float],
    *,
    scorers: Sequence[OrderScorer] = (),
    budget_shares: Sequence[float] = BUDGET_SHARES,
) -> list[tuple[str, str, float]]:
    """The rows of `compare` in their order: the sampler, what the row is called, the target NFE."""
    rows = []
    for name in samplers:
        mine = scorers if name == "learned_order" else ()
        budgeted = any(scorer.config.max_denoising_steps for scorer in mine)
        tuned = budget_shares and not budgeted and knob(name, mine[0] if mine else None) is not None
        for target in targets:
            rows += [(name, label, target) for label in (name, f"{name}, tuned")[: 2 if tuned else 1]]
    return rows


def compare(
    tuning: Evaluator,
    test: Evaluator,
    *,
    samplers: Sequence[str],
    targets: Sequence[float],
    scorers: Sequence[OrderScorer] = (),
    greedy: bool = False,
    seeds: int = 3,
    budget_shares: Sequence[float] = BUDGET_SHARES,
    with_bound: bool = True,
    task: str = "",
    finished: Sequence[Result] = (),
) -> Iterator[Result]:
    """Every sampler at every target NFE: tuned on `tuning`, measured on `test`.

    Rules with a knob are tuned to the target, once as they are and once "tuned": with a step budget of one of the
    `budget_shares` times the target, rounded up, at whose last step everything is unmasked, so that a few long
    sequences do not use up the mean; budget and knob are those that get most right on `tuning`. Rules with a fixed
    count get the budget nearest to the target. Rules that draw run with `seeds` seeds and `learned_order` with
    every scorer: mean and standard deviation over them; with several seeds of a scorer `pass_at_k` and `diversity`
    too, k being that number. A scorer that was trained for one step budget keeps to it.

    Args:
        tuning, test: what settings are tuned on, and what is measured.
        samplers: names.
        targets: mean NFE.
        scorers: for `learned_order`.
        greedy: of `learned_order`; where its law draws it takes the likeliest positions instead.
        seeds: runs of a rule that draws.
        budget_shares: step budgets of the tuned rows, times the target; none: no tuned rows.
        with_bound: measure the bound, too.
        task: what the rows are named for.
        finished: rows that were measured before; they are returned in their place instead of measured again.

    Raises:
        ValueError: a sampler is unknown or lacks its scorer, or a number is out of range.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    for share in budget_shares:
        if not share >= 1:
            raise ValueError(f"budget_shares must be 1 or more each, got {share}")
    there = {(row.sampler, row.target): row for row in finished if row.task == task}
    for name, label, target in planned(samplers, targets, scorers=scorers, budget_shares=budget_shares):
        if (label, target) in there:
            yield there[label, target]
            continue
        budgets = sorted({min(math.ceil(share * target), tuning.canvas_length) for share in budget_shares})
        runs = []
        # without a scorer, make_sampler says that there has to be one
        for scorer in scorers if name == "learned_order" and scorers else (None,):
            make = knob(name, scorer, greedy=greedy)
            sampler, budget, setting = _tuned(tuning, name, make, scorer, target, budgets if label != name else ())
            held_out = tuning.quick(sampler, budget).accuracy
            mine = []
            for seed in range(seeds if sampler.is_random or test.temperature else 1):
                run = test.measure(sampler, name=label, max_denoising_steps=budget, seed=seed, with_bound=with_bound)
                mine.append(replace(run, target=target, setting=setting, task=task, held_out=held_out))
            runs += over_samples(mine)
        yield over_runs(runs)


def _tuned(
    tuning: Evaluator,
    name: str,
    make: Callable[[float], Sampler] | None,
    scorer: OrderScorer | None,
    target: float,
    budgets: Sequence[int],
) -> tuple[Sampler, int | None, str]:
    """The sampler tuned to the target, the step budget it runs with, and its setting in words."""
    if make is None:
        sampler = make_sampler(name)
        return sampler, tuning.tune_budget(sampler, target), ""
    if budgets:
        setting, budget = tuning.tune_both(make, target, budgets=budgets)
    else:
        budget = scorer.config.max_denoising_steps if scorer is not None else None
        setting = tuning.tune_knob(make, target, max_denoising_steps=budget)
    sampler = make(setting)
    words = [f"{k}={v:.4g}" for k, v in vars(sampler).items() if isinstance(v, float)]
    words += [k for k, v in vars(sampler).items() if v is True]
    return sampler, budget, " ".join(words + [f"T={budget}"] * (budget is not None))


def _log_scale(x: float) -> float:
    return 10.0 ** (5.0 * x - 3.5)
