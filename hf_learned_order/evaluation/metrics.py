"""Metrics of the library `evaluate`, made without a network: `OrderMetrics().compute(predictions=orders)`.

Each is a subclass of `evaluate.Metric` around a plain function. Needs the extra `eval`; importing `evaluate` takes
seconds, so other modules import this one where they measure.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import datasets
import evaluate
import torch
from datasets import Features, Value
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_learned_order.common.checks import check_positive
from hf_learned_order.tasks.gsm8k import answered

DIFFUCODER = (
    "Gong et al., DiffuCoder: Understanding and Improving Masked Diffusion Models for Code Generation, arXiv 2506.20639"
)
D3LLM = "Qian et al., d3LLM: Ultra-Fast Diffusion LLM using Pseudo-Trajectory Distillation, arXiv 2601.07568"


def kendall_tau(order: Tensor) -> Tensor:
    """How far an order rises from left to right: Kendall's tau-b of position and step, float [batch].

    1 where it does without a break, -1 where it falls. Two positions of one step are a tie and no evidence of either;
    nan where there is nothing but ties.

    Args:
        order: int [batch, canvas], the step of each position, from 1; 0 where none unmasked it, which does not count.
    """
    known = order > 0
    pairs = (known[:, :, None] & known[:, None, :]).triu(1)
    signs = (order[:, None, :] - order[:, :, None]).sign() * pairs
    # positions are never tied, so that tau-b's denominator is the root of all pairs times those of different steps
    return signs.sum((1, 2)) / (pairs.sum((1, 2)) * signs.abs().sum((1, 2))).sqrt()


def finalization_parallelism(order: Tensor) -> Tensor:
    """How many tokens become final together, float [batch]: the known positions by the number of their different steps.

    1 where they come one by one; nan where there are none. Unlike tokens a call it does not count calls that only
    unmask what lies behind the end of a response. After the average finalization parallelism of arXiv 2601.15593, whose
    formula could not be read here.

    Args:
        order: as in `kendall_tau`.
    """
    steps = order.sort(-1).values
    new = torch.ones_like(steps, dtype=torch.bool)
    new[:, 1:] = steps[:, 1:] != steps[:, :-1]
    return (order > 0).sum(-1) / (new & (steps > 0)).sum(-1)


def pass_at_k(right: int, count: int, k: int) -> float:
    """The chance that at least one of k responses is right, drawn from `count`, of which `right` are, none twice.

    `1 - C(count - right, k) / C(count, k)`, without bias as an estimate of the chance among k new responses (Chen et
    al., arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k is not in [1, count], or `right` not in [0, count].
    """
    if not 0 <= right <= count:
        raise ValueError(f"right must be in [0, {count}], got {right}")
    if not 1 <= k <= count:
        raise ValueError(f"k must be in [1, {count}], the number of responses to a prompt, got {k}")
    return 1 - math.comb(count - right, k) / math.comb(count, k)


def diversity(responses: Sequence[Hashable]) -> float:
    """The share of pairs of responses to one prompt that differ: 0 where all are equal, 1 where no two are.

    Without bias, whatever their number, as an estimate of the chance that two new responses differ (Simpson,
    Measurement of Diversity, Nature 163, 1949); the plain entropy of what was drawn would grow with that number.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(responses) < 2:
        raise ValueError(f"responses must be two or more to differ, got {len(responses)}")
    equal = sum(math.comb(times, 2) for times in Counter(responses).values())
    return 1 - equal / math.comb(len(responses), 2)


def local_ar_ness(order: Tensor, k: int = 1) -> Tensor:
    """Local AR-ness@k: the share of tokens whose k predecessors are the k positions before them, float [batch].

    With p_t the position unmasked at step t, `1/T sum_t [{p_(t-1), ..., p_(t-k)} = {p_t - 1, ..., p_t - k}]`
    (DiffuCoder, arXiv 2506.20639, appendix A.2, NTP@k). The paper has one position a step. Here the positions of one
    step count one after another, from left to right, and before the first stand those of the prompt, so that decoding
    from left to right is 1 for every k.

    Args:
        order: as in `kendall_tau`.
        k: how many predecessors.
    """
    check_positive("k", k)
    sequence, taken = _sequence(order)
    prompt = torch.arange(-k, 0, device=order.device).expand(len(order), -1)
    before = torch.cat([prompt, sequence], 1).unfold(1, k, 1)[:, :-1]  # [batch, t, k]
    position = sequence[..., None]
    # k different positions within k places: they are all of them
    hits = ((before >= position - k) & (before < position)).all(-1)
    return (hits & taken).sum(-1) / taken.sum(-1)


def global_ar_ness(order: Tensor, k: int = 1) -> Tensor:
    """Global AR-ness@k: the share of tokens that stood among the k leftmost masked positions, float [batch].

    With m_1 < m_2 < ... the positions that are masked before step t, `1/T sum_t [p_t in {m_1, ..., m_k}]` (DiffuCoder,
    arXiv 2506.20639, appendix A.2, FMS@k). Positions of one step count one after another, from left to right.

    Args:
        order: as in `kendall_tau`.
        k: how many positions count as leftmost.
    """
    check_positive("k", k)
    sequence, taken = _sequence(order)
    later = torch.ones_like(sequence[0][:, None] * sequence[0], dtype=torch.bool).triu(1)
    passed_over = (sequence[:, None, :] < sequence[:, :, None]) & later & taken[:, None, :]
    return ((passed_over.sum(-1) < k) & taken).sum(-1) / taken.sum(-1)


def aup(
    parallelism: Sequence[float],
    accuracy: Sequence[float],
    *,
    best: float | None = None,
    alpha: float = 3.0,
    allowance: float = 5.0,
) -> float:
    """Accuracy under parallelism, the area under a trade-off curve in which accuracy that was lost counts less.

    For points with parallelism rho_1 < rho_2 < ... and accuracy y_i in percent, without those below y_1 - 5:

        AUP = rho_1 y_1 + 1/2 sum_(i >= 2) (rho_i - rho_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1)))
        W(y) = min(exp(-alpha (1 - y / y_max)), 1)

    (d3LLM, arXiv 2601.07568; the formula as in the authors' article "AUP: when Accuracy Meets Parallelism in Diffusion
    Language Models", with alpha = 3.) Of several points at one parallelism the best counts.

    Args:
        parallelism: tokens a denoiser call, of each point.
        accuracy: in percent, of each point.
        best: y_max, the highest accuracy on that task by any method; by default of these points.
        alpha: how much lost accuracy costs.
        allowance: how far below y_1 points still count, in percent.

    Raises:
        ValueError: there are no points, not one of each for the other, or numbers out of range.
    """
    if len(parallelism) != len(accuracy) or not len(accuracy):
        raise ValueError(
            f"parallelism and accuracy must have the same number of points, at least one, "
            f"got {len(parallelism)} and {len(accuracy)}"
        )
    if not all(0 < rho < math.inf for rho in parallelism):
        raise ValueError(f"parallelism must be positive, got {list(parallelism)}")
    if not all(0 <= y <= 100 for y in accuracy):
        raise ValueError(f"accuracy must be in [0, 100], got {list(accuracy)}")
    best = max(accuracy) if best is None else best
    if best < max(accuracy):
        raise ValueError(f"best must be at least the highest accuracy {max(accuracy)}, got {best}")
    if best == 0:
        return 0.0
    points: dict[float, float] = {}
    for rho, y in zip(parallelism, accuracy, strict=True):
        points[rho] = max(y, points.get(rho, 0.0))
    curve = sorted(points.items())
    first = curve[0][1]
    kept = [(rho, y, y * math.exp(-alpha * (1 - y / best))) for rho, y in curve if y >= first - allowance]
    areas = [(kept[i][0] - kept[i - 1][0]) * (kept[i][2] + kept[i - 1][2]) / 2 for i in range(1, len(kept))]
    return kept[0][0] * first + sum(areas)


class AnswerAccuracy(evaluate.Metric):
    """The share of responses that are right.

    `compute(predictions=texts, references=answers)` gives `accuracy` and `right`, a list of bool. By default a response
    is right if its final answer, behind the last `#`, is; `is_right=` takes another judgement (`tasks.TASKS`).
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return _info_of(self, "Cobbe et al., Training Verifiers to Solve Math Word Problems, 2110.14168", features)

    # pyrefly: ignore[bad-override] (evaluate's own metrics narrow it like this)
    def _compute(
        self, predictions: list[str], references: list[str], is_right: Callable[[str, str], bool] = answered
    ) -> dict[str, Any]:
        _check_some(predictions)
        right = [is_right(text, answer) for text, answer in zip(predictions, references, strict=True)]
        return {"accuracy": sum(right) / len(right), "right": right}


class SampleMetrics(evaluate.Metric):
    """What several responses to each prompt are worth together, as means over prompts.

    `compute(predictions=[texts of a prompt, ...], references=answers, k=1)` gives `pass_at_k` and `diversity` (None
    with one response to each). A rule that goes by confidence draws from a law of lower entropy: it can be ahead at
    k = 1 and behind at a larger k (arXiv 2604.00375). `is_right` as in `AnswerAccuracy`.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": datasets.Sequence(Value("string")), "references": Value("string")})
        return _info_of(self, "Chen et al., Evaluating Large Language Models Trained on Code, 2107.03374", features)

    # pyrefly: ignore[bad-override] (evaluate's own metrics narrow it like this)
    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        k: int = 1,
        is_right: Callable[[str, str], bool] = answered,
    ) -> dict[str, float | None]:
        _check_some(predictions)
        chances = [
            pass_at_k(sum(is_right(text, answer) for text in texts), len(texts), k)
            for texts, answer in zip(predictions, references, strict=True)
        ]
        several = all(len(texts) > 1 for texts in predictions)
        differ = [diversity(texts) for texts in predictions] if several else []
        return {
            "pass_at_k": sum(chances) / len(chances),
            "diversity": sum(differ) / len(differ) if differ else None,
        }


class OrderMetrics(evaluate.Metric):
    """How much goes together, and how much orders resemble decoding from left to right, as means over sequences.

    `compute(predictions=orders, k=1)`, with one list of steps a sequence, gives `finalization_parallelism`,
    `kendall_tau`, `local_ar_ness` and `global_ar_ness`; None where no sequence has a value.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info_of(self, DIFFUCODER, Features({"predictions": datasets.Sequence(Value("int64"))}))

    # pyrefly: ignore[bad-override] (evaluate's own metrics narrow it like this)
    def _compute(self, predictions: list[list[int]], k: int = 1) -> dict[str, float | None]:
        _check_some(predictions)
        order = pad_sequence([torch.tensor(steps, dtype=torch.long) for steps in predictions], batch_first=True)
        values = {
            "finalization_parallelism": finalization_parallelism(order),
            "kendall_tau": kendall_tau(order),
            "local_ar_ness": local_ar_ness(order, k),
            "global_ar_ness": global_ar_ness(order, k),
        }
        means = {name: value.nanmean().item() for name, value in values.items()}
        return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


class AccuracyUnderParallelism(evaluate.Metric):
    """The area under a trade-off curve in which accuracy that was lost counts less.

    `compute(predictions=tokens a call, references=accuracy in percent, best=...)` gives `aup`; options as in `aup`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info_of(self, D3LLM, Features({"predictions": Value("float64"), "references": Value("float64")}))

    # pyrefly: ignore[bad-override] (evaluate's own metrics narrow it like this)
    def _compute(self, predictions: list[float], references: list[float], **options: Any) -> dict[str, float]:
        return {"aup": aup(predictions, references, **options)}


def _check_some(predictions: list) -> None:
    if not predictions:
        raise ValueError("predictions must hold at least one, got none")


def _info_of(metric: evaluate.Metric, citation: str, features: Features) -> evaluate.MetricInfo:
    words = type(metric).__doc__ or ""
    return evaluate.MetricInfo(
        description=words.partition("\n")[0], citation=citation, inputs_description=words, features=features
    )


def _sequence(order: Tensor) -> tuple[Tensor, Tensor]:
    """The positions [batch, canvas] in the order they were unmasked, and at which of these places there is one."""
    known = order > 0
    sequence = order.masked_fill(~known, torch.iinfo(order.dtype).max).argsort(dim=-1, stable=True)
    return sequence, known.gather(-1, sequence)
