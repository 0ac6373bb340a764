"""`OrderTrainingArguments`: transformers' `TrainingArguments` and what the objectives need."""

import os
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_learned_order.common.checks import check_positive, check_temperature
from hf_learned_order.orders.configuration import RANDOM_LAWS
from hf_learned_order.training.objectives.elbo import BASELINES, GRADIENT_STEPS, RETURNS
from hf_learned_order.training.objectives.table import OBJECTIVES, settings_of

POSTERIORS = ("clean", "clean_once", "prior")
# arguments of some objectives only; what is asked of another is refused
OWN_SETTINGS = (
    *("min_denoising_steps", "baseline", "returns", "gradient_steps"),
    *("exploration", "speed_exponent", "temperature"),
)
# of nearly all
OBJECTIVE_SETTINGS = ("max_denoising_steps", "num_chains", *OWN_SETTINGS)


@dataclass(kw_only=True)
class OrderTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what the objective needs.

    Raises:
        ValueError: a choice is unknown or a number is out of range.
    """

    _argument_group_name = "objective"

    output_dir: str = "runs/scorer"
    objective: str | None = field(
        default=None, metadata={"help": f"one of {', '.join(OBJECTIVES)}; by default what goes with the scorer's law"}
    )
    max_denoising_steps: int = field(
        default=12, metadata={"help": "T, the step budget; a law that looks at none learns at budgets from 2 up to it"}
    )
    min_denoising_steps: int | None = field(
        default=None,
        metadata={"help": "T is drawn from this to max_denoising_steps; default: fixed; regret: 2"},
    )
    target_nfe: float | None = field(
        default=None, metadata={"help": "mean denoiser calls that generation without a knob is to take"}
    )
    num_chains: int = field(default=8, metadata={"help": "K, chains of each response (leave-one-out needs 2)"})
    canvas_length: int = field(
        default=64, metadata={"help": "positions of a response, EOS included; train.py: the task's"}
    )
    posterior: str | None = field(
        default=None,
        metadata={
            "help": "'clean' sees the response, the default; 'clean_once' too, once; 'prior' shares the scorer's law, "
            "the default with laws that a posterior of its own would be infinitely far from"
        },
    )
    posterior_law: str | None = field(default=None, metadata={"help": "law of a clean posterior; the scorer's if None"})
    posterior_temperature: float = field(default=0.1, metadata={"help": "tau of a posterior_law that is another one"})
    baseline: str = field(default="leave_one_out", metadata={"help": "or 'value' (learned along), 'none'"})
    returns: str = field(default="per_step", metadata={"help": "or 'trajectory': the whole chain's at each step"})
    gradient_steps: str = field(default="all", metadata={"help": "or 'one': a random step, times their number"})
    exploration: float = field(
        default=0.0, metadata={"help": "elbo: weight at the start of the KL to the untrained law, falling to 0; nats"}
    )
    speed_exponent: float = field(default=1.0, metadata={"help": "reward: how much speed counts, 0 not at all"})
    temperature: float = field(
        default=0.0,
        metadata={"help": "regret, reward: of the decodings that the scorer is for; 0: the most likely tokens"},
    )
    train_denoiser: bool = field(default=False, metadata={"help": "tune every weight of the denoiser"})
    learning_rate: float = 3e-3
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    remove_unused_columns: bool = False
    hub_strategy: str = field(default="end", metadata={"help": "'end': a push brings the whole scorer and its card"})

    def __post_init__(self):
        super().__post_init__()
        choices_of = {
            "objective": (None, *OBJECTIVES),
            "posterior": (None, *POSTERIORS),
            "posterior_law": (None, *RANDOM_LAWS),
            "baseline": BASELINES,
            "returns": RETURNS,
            "gradient_steps": GRADIENT_STEPS,
            "hub_strategy": ("end",),
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        for name in ("max_denoising_steps", "num_chains", "canvas_length"):
            check_positive(name, getattr(self, name))
        if not self.posterior_temperature > 0:
            raise ValueError(f"posterior_temperature must be positive, got {self.posterior_temperature}")
        if not self.exploration >= 0:
            raise ValueError(f"exploration must be 0 or more, got {self.exploration}")
        check_temperature(self.temperature, finite=True)
        low, high = self.min_denoising_steps, self.max_denoising_steps
        if low is not None and not 1 <= low <= high:
            raise ValueError(f"min_denoising_steps must be in [1, max_denoising_steps = {high}], got {low}")
        if self.torch_compile:
            # the layers of both networks: the objective around them works on as many rows as are left, and draws
            os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"

    def check_settings(self, objective: str) -> None:
        """Raises `ValueError` where a setting is given that the objective of that name has not."""
        for setting in OWN_SETTINGS:
            value, default = getattr(self, setting), getattr(type(self), setting)
            if value != default and setting not in settings_of(objective):
                raise ValueError(
                    f"{setting} must be {default!r} with objective {objective!r}, which has no such setting, "
                    f"got {value!r}"
                )
