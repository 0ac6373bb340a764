"""Choosing a rule's setting so that a risk is kept (`guarantees`): its settings are decoded from slow to fast."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.evaluation.comparison import knob
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.guarantees import METHODS, Guarantee, NothingKept, check_prompts, kept
from hf_learned_order.evaluation.results import Result
from hf_learned_order.orders.scorer import OrderScorer

JUDGE = "judge"


def calibrate(
    evaluator: Evaluator,
    name: str,
    *,
    scorer: OrderScorer | None = None,
    task: str,
    risk: float,
    confidence: float | None = 0.9,
    against: str = "top_prob",
    points: int = 13,
) -> Guarantee:
    """The fastest setting of the rule `name` that keeps the risk on the prompts of `evaluator`.

    Settings are tried from slow to fast and no further than the first one that fails.

    Args:
        evaluator: held-out problems, which nothing else was chosen on.
        name: a rule with a knob (`comparison.knob`).
        scorer: of "learned_order".
        task: what the guarantee is named for.
        risk, confidence: see `guarantees`; a confidence of None is conformal risk control.
        against: the slow rule, or "judge".
        points: settings of the knob.

    Raises:
        ValueError: the rule has no knob, a share is out of range, or there are too few prompts.
        NothingKept: even the slowest setting is bad too often.
    """
    make = knob(name, scorer)
    if make is None:
        those = ", ".join(rule for rule in SAMPLERS if knob(rule, scorer) is not None)
        raise ValueError(f"sampler must be a rule with a knob, one of {those}, got {name!r}")
    count = len(evaluator.dataset)
    check_prompts(count, risk, confidence)
    if points < 2:
        raise ValueError(f"points must be 2 or more, got {points}")
    right = reference(evaluator, against)
    budget = None if scorer is None else scorer.config.max_denoising_steps
    rows, chosen = [], None
    for sampler, result in tried(evaluator, [make(number / (points - 1)) for number in range(points)], budget):
        rows.append(bad_of(result, right))
        if kept(torch.stack(rows), risk, confidence) < len(rows):
            break
        chosen = sampler, result
    if chosen is None:
        slowest = int(rows[0].sum())
        raise NothingKept(
            f"risk {risk:g} cannot be promised of {name}: even its slowest setting is bad for {slowest} of {count} "
            f"prompts ({'wrong' if right is None else f'wrong where {against} is right'}); allow more, look at more "
            "prompts, or decode with verify=, which changes no response"
        )
    sampler, result = chosen
    return Guarantee(
        sampler=name,
        options={key: value for key, value in vars(sampler).items() if isinstance(value, float)},
        max_denoising_steps=budget,
        task=task,
        risk=risk,
        confidence=confidence,
        method=METHODS[confidence is None],
        against=against,
        prompts=count,
        bad=int(bad_of(result, right).sum()),
        nfe=result.nfe,
        canvas_length=evaluator.canvas_length,
    )


def tried(evaluator: Evaluator, samplers: list[Sampler], budget: int | None) -> Iterator[tuple[Sampler, Result]]:
    """Each with what it measured."""
    for sampler in samplers:
        yield sampler, evaluator.quick(sampler, budget)


def reference(evaluator: Evaluator, against: str) -> Tensor | None:
    """bool [n], which responses of the slow rule are right; None for the judge."""
    return None if against == JUDGE else torch.tensor(evaluator.quick(make_sampler(against)).scores) > 0


def bad_of(result: Result, right: Tensor | None) -> Tensor:
    """bool [n]: wrong and, where a slow rule is compared with, right there."""
    wrong = torch.tensor(result.scores) < 1
    return wrong if right is None else wrong & right


def at_risk(
    tuning: Evaluator, test: Evaluator, name: str, *, scorer: OrderScorer | None = None, **promise: Any
) -> tuple[Guarantee | None, Result | None, int]:
    """`calibrate` on `tuning`, and on `test` what the setting measures and how many responses are bad there.

    None, None and 0 where even the slowest setting is bad too often. `promise`: of `calibrate`.

    Raises:
        ValueError: as `calibrate`, but for that.
    """
    try:
        found = calibrate(tuning, name, scorer=scorer, **promise)
    except NothingKept:
        return None, None, 0
    options: dict[str, Any] = {**found.options, **({} if scorer is None else {"scorer": scorer})}
    result = test.quick(make_sampler(name, options), found.max_denoising_steps)
    return found, result, int(bad_of(result, reference(test, found.against)).sum())
