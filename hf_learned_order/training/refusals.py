"""What a run cannot be asked for, told before its first update."""

from typing import Any

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_learned_order.denoisers.adapters import adapter_of, check_adapter, has_adapter
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.objectives.table import JUDGING


def check_tuning(model: nn.Module, args: OrderTrainingArguments, peft_config: Any) -> None:
    """Raises `ValueError` for ways of tuning the denoiser, or of splitting weights, that do not go together.

    And for adapters that would not come back from what is saved.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "deepspeed must not be ZeRO-3, which splits the scorer too, and processes call that unequally often; "
            "FSDP2 and ZeRO-2 work"
        )
    if peft_config is not None and args.train_denoiser:
        raise ValueError("train_denoiser must be False when peft_config is given: LoRA keeps the base weights")
    if peft_config is not None:
        check_adapter(peft_config)
    if has_adapter(model):
        name, _ = adapter_of(model)
        asked = "train_denoiser must be False" if args.train_denoiser else "peft_config must be None"
        if args.train_denoiser or peft_config is not None:
            raise ValueError(
                f"{asked} with a model that has an adapter ({name!r}): one adapter is saved along with the scorer. "
                "model.merge_and_unload() makes it part of the weights; save that model, and give it instead"
            )


def check_objective(name: str, args: OrderTrainingArguments, *, tuned: bool, judged: bool) -> None:
    """Raises `ValueError` for what that objective has not: a tuned denoiser, `is_right`, or a setting of another."""
    if name != "elbo" and tuned:
        raise ValueError(f'objective must be "elbo" when the denoiser is tuned, got {name!r}, which keeps it fixed')
    if name not in JUDGING and judged:
        raise ValueError(f"is_right must be None with objective {name!r}: only {' and '.join(JUDGING)} judge responses")
    args.check_settings(name)


# of Trainer's own arguments, and why they can do nothing here
NO_USE = {
    "compute_loss_func": "the objective is the loss",
    "model_init": "the denoiser is given, and the scorer made for it",
    "preprocess_logits_for_metrics": "an evaluation decodes, and hands on tokens",
}
BATCH = ("input_ids", "attention_mask", "clean", "answer")


def check_arguments(args: OrderTrainingArguments, kwargs: dict[str, Any], *datasets: Any) -> None:
    """Raises `ValueError` for what `Trainer` offers and this training has no use for."""
    for name, reason in NO_USE.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} must be None, got {kwargs[name]!r}: {reason}")
    if args.neftune_noise_alpha is not None:
        raise ValueError(
            f"neftune_noise_alpha must be None, got {args.neftune_noise_alpha}: noise in the denoiser's embeddings "
            "would be noise in what the order learns from"
        )
    if args.label_smoothing_factor != 0:
        raise ValueError(f"label_smoothing_factor must be 0, got {args.label_smoothing_factor}: there are no labels")
    if args.train_sampling_strategy == "group_by_length":
        named = [each for one in datasets for each in (one.values() if isinstance(one, dict) else [one])]
        for dataset in named:
            if dataset is not None and args.length_column_name not in (getattr(dataset, "column_names", None) or ()):
                raise ValueError(
                    f"rows must have a column {args.length_column_name!r} of lengths for group_by_length "
                    f"(length_column_name names another), but a {type(dataset).__name__} has none"
                )


def check_batch(batch: dict[str, Any]) -> None:
    """Raises `ValueError` unless a collator has given what the objectives and an evaluation look at."""
    missing = [name for name in BATCH if name not in batch]
    if missing:
        raise ValueError(
            f"data_collator must give {', '.join(BATCH)}, got {', '.join(batch)}: "
            "CanvasCollator(..., with_answers=True) does"
        )
