"""Rows of a comparison as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from hf_learned_order.evaluation.guarantees import Guarantee
from hf_learned_order.evaluation.results import Result, lead

LEARNED = ("learned_order, tuned", "learned_order")  # the first that was measured is compared with the others
ORDER_WORDS = (
    "tokens a call: of the response, first EOS included. final together: tokens of the response that one step "
    "unmasked, on average over its steps. Kendall tau: 1 from left to right, -1 from right to left, 0 neither. "
    "local AR-ness: share of tokens right behind the one before. global AR-ness: share that were the leftmost mask."
)
SAMPLE_WORDS = (
    "pass@k: share of prompts of which one of k responses at least is right. diversity: share of pairs of responses to "
    "a prompt that differ. A rule can be ahead in one response and behind in k: what is surest first differs less."
)
RISK_WORDS = (
    "bad: wrong where the slow rule is right, or all that is wrong if judged. Each setting is the fastest of which the "
    "risk could be promised on the held-out problems."
)


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


def order_table(results: Sequence[Result]) -> Table:
    """Tokens a call and how the orders look, for a terminal, and below it what each column is."""
    columns = ("tokens a call", "final together", "Kendall tau", "local AR-ness", "global AR-ness")
    view = Table("target", "sampler", "setting", *columns, caption=ORDER_WORDS, caption_justify="left")
    for result in sorted(results, key=lambda r: r.target):
        values = (result.tokens_per_forward, result.finalization_parallelism)
        values += (result.kendall_tau, result.local_ar_ness, result.global_ar_ness)
        numbers = ["" if value is None else f"{value:.2f}" for value in values]
        view.add_row(f"{result.target:g}", result.sampler, result.setting or f"T={result.budget}", *numbers)
    return view


def sample_table(results: Sequence[Result]) -> Table | None:
    """What several responses to each prompt are worth together, for a terminal; None where there is one of each."""
    several = [result for result in results if result.pass_at_k is not None and result.diversity is not None]
    if not several:
        return None
    view = Table(
        "target", "sampler", "setting", "NFE", "one right, %", "k", "pass@k, %", "diversity", caption=SAMPLE_WORDS
    )
    view.caption_justify = "left"
    for result in sorted(several, key=lambda r: r.target):
        together = (f"{100 * (result.pass_at_k or 0):.1f}", f"{result.diversity:.2f}")
        alone = (f"{result.nfe:.2f}", f"{100 * result.accuracy:.1f}", str(result.samples))
        view.add_row(f"{result.target:g}", result.sampler, result.setting or f"T={result.budget}", *alone, *together)
    return view


def aup_table(results: Sequence[Result]) -> Table:
    """Accuracy under parallelism of each sampler, over the targets that it was measured at; the highest first."""
    from hf_learned_order.evaluation.metrics import aup

    curves: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if result.tokens_per_forward:
            curves.setdefault(result.sampler, []).append((result.tokens_per_forward, 100 * result.accuracy))
    best = max((y for curve in curves.values() for _, y in curve), default=0.0)
    areas = {name: aup(*zip(*curve, strict=True), best=best) for name, curve in curves.items()}
    view = Table("sampler", "AUP", "points")
    for name in sorted(areas, key=lambda name: -areas[name]):
        view.add_row(name, f"{areas[name]:.1f}", str(len(curves[name])))
    return view


def risk_table(rows: Sequence[tuple[str, Guarantee | None, Result | None, int]]) -> Table:
    """What a promised risk costs: sampler, its guarantee, what its setting measured on test problems, and how many of
    its responses were bad there; None and None where nothing could be promised.
    """
    view = Table("sampler", "setting", "bad, held out", "bad, test", "right, %", "NFE", caption=RISK_WORDS)
    view.caption_justify = "left"
    for name, promised, result, bad in rows:
        if promised is None or result is None:
            view.add_row(name, "none keeps the risk", "", "", "", "")
            continue
        setting = " ".join(f"{key}={value:.4g}" for key, value in promised.options.items())
        shares = (f"{promised.bad} of {promised.prompts}", f"{bad} of {result.count} ({bad / result.count:.1%})")
        view.add_row(name, setting, *shares, f"{100 * result.accuracy:.1f}", f"{result.nfe:.2f}")
    return view
