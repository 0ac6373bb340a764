"""What a run cannot be asked for, told before its first update."""

from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.objectives.table import JUDGING


def check_tuning(args: OrderTrainingArguments, peft_config: Any) -> None:
    """Raises `ValueError` for ways of tuning the denoiser, or of splitting weights, that do not go together."""
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "deepspeed must not be ZeRO-3, which splits the scorer too, and processes call that unequally often; "
            "FSDP2 and ZeRO-2 work"
        )
    if peft_config is not None and args.train_denoiser:
        raise ValueError("train_denoiser must be False when peft_config is given: LoRA keeps the base weights")


def check_objective(name: str, args: OrderTrainingArguments, *, tuned: bool, judged: bool) -> None:
    """Raises `ValueError` for what that objective has not: a tuned denoiser, `is_right`, or a setting of another."""
    if name != "elbo" and tuned:
        raise ValueError(f'objective must be "elbo" when the denoiser is tuned, got {name!r}, which keeps it fixed')
    if name not in JUDGING and judged:
        raise ValueError(f"is_right must be None with objective {name!r}: only {' and '.join(JUDGING)} judge responses")
    args.check_settings(name)
