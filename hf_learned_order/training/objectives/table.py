"""The objectives by name.

Each is a module: a batch (`input_ids`, `attention_mask`, `clean`) in, a dict out, with `loss` to be minimised and the
means of what there is to watch.
"""

import inspect
from typing import Any

from torch import nn

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.agreement import AgreementObjective
from hf_learned_order.training.objectives.correctness import CorrectnessObjective
from hf_learned_order.training.objectives.dense import DenseObjective
from hf_learned_order.training.objectives.dependence import DependenceObjective
from hf_learned_order.training.objectives.elbo import OrderELBO
from hf_learned_order.training.objectives.imitation import ImitationObjective
from hf_learned_order.training.objectives.reward import RewardObjective

OBJECTIVES: dict[str, type[nn.Module]] = {
    "elbo": OrderELBO,
    "correctness": CorrectnessObjective,
    "dependence": DependenceObjective,
    "agreement": AgreementObjective,
    "reward": RewardObjective,
    "imitation": ImitationObjective,
    "dense": DenseObjective,
}
# of laws with an objective of their own; the others have the ELBO
DEFAULTS = {"factor": "correctness", "dependent": "dependence"}


def settings_of(name: str) -> set[str]:
    """What the objective of that name may be given."""
    return {*inspect.signature(OBJECTIVES[name]).parameters}


def make_objective(name: str, denoiser: Denoiser, scorer: OrderScorer, **settings: Any) -> nn.Module:
    """The objective of that name, with those of the `settings` that it has.

    Raises:
        ValueError: the name is unknown, or what the objective itself raises.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    known = settings_of(name)
    return OBJECTIVES[name](denoiser, scorer, **{key: value for key, value in settings.items() if key in known})
