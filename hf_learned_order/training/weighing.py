"""What of a regret law no loss can tell, chosen by decoding held-out problems: how much its parts count.

Doubt and pairs are learned apart and mean different things: doubt that a token is right, and nats. Where a response
follows from its prompt, what the denoiser doubts goes wrong; where many responses are right, it may doubt each and none
is wrong. No label-free loss can tell these cases apart; the outcome can. And where the denoiser's own confidence says
all there is to know, what was learned to correct it by is noise.
"""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

from hf_learned_order.orders.scorer import LARGEST, OrderScorer

logger = logging.getLogger(__name__)

# of doubt, of pairs; not without pairs, or rewards could never bring them in
WEIGHTS = ((1.0, 0.1), (1.0, 0.3), (1.0, 1.0), (0.1, 1.0), (0.0, 1.0))
ALONE = (0.0, 1.0)  # pairs without doubt
CORRECTION, DOUBT = 0, 1  # rows of the head: of the logit of q, of log w
SHARES = (1.0, 0.5, 0.0)  # of the learned correction of q, which starts from the denoiser's confidence
BIASES = (-1.5, -0.5, 0.5, 1.5)  # a curve has a point for each
FEWEST, MOST, ONE_IN = 16, 256, 50  # rows to weigh on: one in so many of those that were trained on
CALLS = 64  # numbers of calls that curves are compared at

Point = tuple[float, float]  # mean calls, share of right responses


def rows_to_weigh_on(trained: int) -> int:
    """How many rows are decoded, at each pair of weights and bias, after a training on `trained` rows.

    A share of them, so that weighing stays the smaller part: of three updates as of thousands.
    """
    return min(MOST, max(FEWEST, trained // ONE_IN))


def choose_weights(scorer: OrderScorer, measure: Callable[[float], Point], *, quiet: bool = True) -> dict[str, float]:
    """Set the scorer to the pair of `WEIGHTS` whose curve is the highest, the first of equals.

    Before that, where A can see tokens, whether it does: whichever is higher without doubt. After that, to that one of
    `SHARES` of its correction of q whose curve is.

    Args:
        scorer: its configuration and its head are changed.
        measure: decodes with a bias and the scorer as it is.
        quiet: no progress bar.

    Returns:
        what each pair of weights and each share got, see `heights`, by the names that are logged.
    """
    total = len(WEIGHTS) + scorer.config.token_pairs + len(SHARES) - 1
    with tqdm(total=total, desc="doubt against pairs", disable=quiet) as bar:

        def curve() -> list[Point]:
            points = [measure(bias) for bias in BIASES]
            bar.update()
            return points

        curves = _choose_tokens(scorer, curve) if scorer.config.token_pairs else {}
        for weights in WEIGHTS:
            if weights not in curves:
                set_weights(scorer, *weights)
                curves[weights] = curve()
        by_weights = dict(zip(WEIGHTS, heights([curves[weights] for weights in WEIGHTS]), strict=True))
        best = max(WEIGHTS, key=lambda weights: by_weights[weights])
        set_weights(scorer, *best)
        by_share = _choose_share(scorer, curve, curves[best])
    if not any(by_weights.values()):
        logger.warning(
            "no held-out response was right, at no speed and with no weights: how much doubt and pairs count was not "
            "chosen, and the scorer has the first weights that were tried, %g and %g",
            *WEIGHTS[0],
        )
    named = {f"right_by_weights_{doubt:g}_{pairs:g}": height for (doubt, pairs), height in by_weights.items()}
    return named | {f"right_by_correction_{share:g}": height for share, height in by_share.items()}


def _choose_tokens(scorer: OrderScorer, curve: Callable[[], list[Point]]) -> dict[tuple[float, float], list[Point]]:
    """Sets whether A sees tokens; the curve of what was chosen, by its weights."""
    set_weights(scorer, *ALONE)
    curves = {}
    for sees in (True, False):
        scorer.config.sees_tokens = sees
        curves[sees] = curve()
    high, low = heights([curves[True], curves[False]])
    scorer.config.sees_tokens = high >= low
    return {ALONE: curves[scorer.config.sees_tokens]}


def _choose_share(scorer: OrderScorer, curve: Callable[[], list[Point]], whole: list[Point]) -> dict[float, float]:
    """Sets how much of the correction of q counts; the height of each share. `whole` is the curve of the first."""
    learned = _rows(scorer, CORRECTION)
    curves = [whole]
    for share in SHARES[1:]:
        _set_rows(scorer, CORRECTION, [share * row for row in learned])
        curves.append(curve())
    found = dict(zip(SHARES, heights(curves), strict=True))
    best = max(SHARES, key=lambda share: found[share])
    _set_rows(scorer, CORRECTION, [best * row for row in learned])
    return found


def set_weights(scorer: OrderScorer, doubt: float, pairs: float) -> None:
    """Make w `doubt` everywhere, and weigh A by `pairs`."""
    bias = max(math.log(doubt), -LARGEST) if doubt > 0 else -LARGEST
    _set_rows(scorer, DOUBT, [0.0, bias])
    scorer.config.pair_weight = pairs


def _rows(scorer: OrderScorer, row: int) -> list[Tensor]:
    """A copy of a row of the head's weight and bias."""
    return [_whole(parameter.detach())[row].clone() for parameter in _parameters(scorer)]


@torch.no_grad()
def _set_rows(scorer: OrderScorer, row: int, values: Sequence[Tensor | float]) -> None:
    """Of a parameter that FSDP has split, all processes have to come."""
    for parameter, value in zip(_parameters(scorer), values, strict=True):
        whole = _whole(parameter)
        whole[row] = value
        if isinstance(parameter, DTensor):
            parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))


def _parameters(scorer: OrderScorer) -> tuple[Tensor, Tensor]:
    head = scorer.network.head
    return head.weight, head.bias


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def heights(curves: Sequence[Sequence[Point]]) -> list[float]:
    """The mean of each curve over the numbers of calls, evenly in their logarithm, that any of the curves has.

    Between its points a curve is a line; slower than its slowest point it stays as it is there; faster than its fastest
    it falls to 0 at one call.
    """
    calls = [nfe for curve in curves for nfe, _ in curve]
    at = np.linspace(math.log(min(calls)), math.log(max(calls)), CALLS)
    found = []
    for curve in curves:
        nfe, share = zip(*sorted(curve), strict=True)
        if nfe[0] > 1:
            nfe, share = (1.0, *nfe), (0.0, *share)
        found.append(float(np.interp(at, np.log(nfe), share).mean()))
    return found
