"""The objectives by name."""

import inspect
from typing import Any

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Objective
from hf_learned_order.training.objectives.elbo import OrderELBO
from hf_learned_order.training.objectives.regret import RegretObjective
from hf_learned_order.training.objectives.reward import RewardObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": OrderELBO,
    "regret": RegretObjective,
    "reward": RewardObjective,
}
JUDGING = ("regret", "reward")  # those that ask whether a response is right
DEFAULTS = {"regret": "regret"}  # of laws with an objective of their own; the others have the ELBO


def settings_of(name: str) -> set[str]:
    """What the objective of that name may be given."""
    return {*inspect.signature(OBJECTIVES[name]).parameters}


def make_objective(name: str, denoiser: Denoiser, scorer: OrderScorer, **settings: Any) -> Objective:
    """The objective of that name, with those of the `settings` that it has.

    A scorer with the regret law and a `pair_weight` of 0 gets 1, unless the objective chooses it itself.

    Raises:
        ValueError: the name is unknown, or what the objective itself raises.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    if scorer.config.law == "regret" and name != "regret" and scorer.config.pair_weight == 0:
        scorer.config.pair_weight = 1.0  # or the pairs of a new scorer would never have a gradient
    if scorer.network.tokens is not None:
        # what is not looked at gets no gradient, and DistributedDataParallel would wait for it
        scorer.network.tokens.requires_grad_(name == "regret" or scorer.config.sees_tokens)
    known = settings_of(name)
    return OBJECTIVES[name](denoiser, scorer, **{key: value for key, value in settings.items() if key in known})
