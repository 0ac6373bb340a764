"""`OrderTrainer`: fits a scorer on `transformers.Trainer`, with the denoiser frozen, LoRA-tuned or fully tuned.

accelerate, FSDP, DeepSpeed, resuming and trackers are the Trainer's own. A checkpoint holds what is
trained and no more: the scorer as `from_pretrained` reads it, the posterior, and the adapter or the tuned denoiser.
"""

from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_learned_order.cards import TRAINING_FILE, Card
from hf_learned_order.data import CanvasCollator
from hf_learned_order.denoisers import Denoiser
from hf_learned_order.files import reading, replacing, saving
from hf_learned_order.hub import generation_config, push_folder
from hf_learned_order.objective import BASELINES, GRADIENT_STEPS, RETURNS
from hf_learned_order.objectives import DEFAULTS, OBJECTIVES, make_objective
from hf_learned_order.posteriors import CleanPosterior
from hf_learned_order.scorer import ELBO_LAWS, OrderScorer

POSTERIORS = ("clean", "prior")
# arguments that an objective may have
OBJECTIVE_SETTINGS = (
    *("max_denoising_steps", "num_chains", "baseline", "returns", "gradient_steps"),
    *("noise", "speed_exponent", "teacher"),
)
POSTERIOR_FILE = "posterior.safetensors"
VALUE_FILE = "value.safetensors"
ADAPTER_FOLDER = "adapter"
DENOISER_FOLDER = "denoiser"


@dataclass(kw_only=True)
class OrderTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what the objective needs.

    Raises:
        ValueError: a choice is unknown or a number is out of range.
    """

    output_dir: str = "runs/scorer"
    objective: str | None = field(
        default=None, metadata={"help": f"one of {', '.join(OBJECTIVES)}; by default what goes with the scorer's law"}
    )
    max_denoising_steps: int = field(default=5, metadata={"help": "T, the step budget"})
    num_chains: int = field(default=8, metadata={"help": "K, chains of each response (leave-one-out needs 2)"})
    canvas_length: int = field(default=64, metadata={"help": "positions of a response, EOS included"})
    posterior: str = field(
        default="clean", metadata={"help": "'clean' sees the response; 'prior' shares the scorer's law"}
    )
    posterior_law: str | None = field(default=None, metadata={"help": "law of a clean posterior; the scorer's if None"})
    posterior_temperature: float = field(default=0.1, metadata={"help": "tau of a max-normalised posterior"})
    baseline: str = field(default="leave_one_out", metadata={"help": "or 'value' (learned along), 'none'"})
    returns: str = field(default="per_step", metadata={"help": "or 'trajectory': the whole chain's at each step"})
    gradient_steps: str = field(default="all", metadata={"help": "or 'one': a random step, times their number"})
    noise: float = field(default=0.5, metadata={"help": "reward, agreement: of the factor law's logits, in training"})
    speed_exponent: float = field(default=1.0, metadata={"help": "reward: how much speed counts, 0 not at all"})
    teacher: str = field(default="top_prob", metadata={"help": "imitation: the rule of the slow decoding"})
    train_denoiser: bool = field(default=False, metadata={"help": "tune every weight of the denoiser"})
    learning_rate: float = 3e-3
    remove_unused_columns: bool = False
    hub_strategy: str = field(default="end", metadata={"help": "'end': a push brings the whole scorer and its card"})

    def __post_init__(self):
        super().__post_init__()
        choices_of = {
            "objective": (None, *OBJECTIVES),
            "posterior": POSTERIORS,
            "posterior_law": (None, *ELBO_LAWS),
            "baseline": BASELINES,
            "returns": RETURNS,
            "gradient_steps": GRADIENT_STEPS,
            "hub_strategy": ("end",),
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        for name in ("max_denoising_steps", "num_chains", "canvas_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


class OrderTrainer(Trainer):
    """Trains a scorer for a denoiser.

    Args:
        model: the denoiser; frozen unless `peft_config` or `args.train_denoiser` says otherwise.
        scorer: the `OrderScorer`; by default a new one that fits `model`.
        args: `OrderTrainingArguments`.
        train_dataset, eval_dataset: rows of `prompt_ids` and `response_ids` (`hf_learned_order.data`).
        processing_class: the tokenizer; it must have mask, EOS and padding tokens.
        peft_config: a PEFT configuration, e.g. `LoraConfig`, to tune the denoiser along.
        card: what the model card says of data and command when the scorer is pushed; the seed by default.
        **kwargs: `Trainer`'s own.

    Raises:
        ValueError: the tokenizer has no mask token, the scorer does not fit, or both ways of tuning are asked for.
    """

    if TYPE_CHECKING:
        args: OrderTrainingArguments
        processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: OrderTrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        scorer: OrderScorer | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        peft_config: Any = None,
        card: Card | None = None,
        **kwargs: Any,
    ):
        if peft_config is not None and args.train_denoiser:
            raise ValueError("train_denoiser must be False when peft_config is given: LoRA keeps the base weights")
        model.requires_grad_(args.train_denoiser)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        denoiser = Denoiser(model, mask_token_id=processing_class.mask_token_id)
        scorer = OrderScorer.for_denoiser(denoiser) if scorer is None else scorer
        scorer.check_fits(denoiser)
        self.scorer = scorer
        self.denoiser = denoiser
        self.card = card or Card(seeds=(args.seed,))
        self.posterior = self.value = None
        law = scorer.config.law
        name = args.objective or DEFAULTS.get(law, "elbo")
        if name != "elbo" and (peft_config is not None or args.train_denoiser):
            raise ValueError(f'objective must be "elbo" when the denoiser is tuned, got {name!r}, which keeps it fixed')
        if name == "elbo" and law in ELBO_LAWS and args.posterior == "clean":
            temperature = args.posterior_temperature
            self.posterior = CleanPosterior(scorer.config, law=args.posterior_law, temperature=temperature)
        objective = make_objective(
            name,
            denoiser,
            scorer,
            posterior=self.posterior,
            eos_token_id=processing_class.eos_token_id,
            **{setting: getattr(args, setting) for setting in OBJECTIVE_SETTINGS},
        )
        self.value = getattr(objective, "value", None)
        if law in ELBO_LAWS:
            # one token a step leaves the budget to decoding
            scorer.config.max_denoising_steps = None if name == "dense" else args.max_denoising_steps
        self._measured: dict[str, list[torch.Tensor]] = defaultdict(list)
        super().__init__(
            model=objective,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=CanvasCollator(tokenizer=processing_class, canvas_length=args.canvas_length),
            **kwargs,
        )
        # the objective returns its own loss: it does not take Trainer's count of items
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self._measured[name if model.training else f"eval_{name}"].append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            # pyrefly: ignore[missing-attribute] (a pair only with return_outputs)
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means since the last call of `bound`, `kl` and `nfe`, over all processes."""
        wanted = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        for name in [n for n in self._measured if n.startswith("eval_") == bool(wanted)]:
            mean = torch.stack(self._measured.pop(name)).mean()
            logs[name] = round(self.accelerator.gather(mean).mean().item(), 4)
        super().log(logs, *args, **kwargs)

    def push_to_hub(  # pyrefly: ignore[bad-override] (None where there is nothing to push)
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        card: Card | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save to `output_dir` and push what stands there in one commit, see `hub.push_folder`.

        `private` and the repository's name are by default `args.hub_private_repo` and `args.hub_model_id`, `card` the
        trainer's. With `blocking=False` a future is returned; on all processes but the first, None.

        Raises:
            TypeError: `kwargs` of `Trainer.push_to_hub` are given: what they say of the card stands in `card`.
        """
        if kwargs:
            raise TypeError(f"push_to_hub takes what it writes into the card from card=Card(...), got {sorted(kwargs)}")
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = push_folder if blocking else partial(HfApi().run_as_future, push_folder)
        return push(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            card=card or self.card,
            commit_message=commit_message or "End of training",
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        with replacing(folder) as temporary, saving(folder):
            self.scorer.save_pretrained(temporary)
            self.processing_class.save_pretrained(temporary)
            settings = generation_config(self.scorer.config.max_denoising_steps, self.args.canvas_length)
            settings.save_pretrained(temporary)
            if self.posterior is not None:
                save_file(self.posterior.state_dict(), temporary / POSTERIOR_FILE)
            if self.value is not None:
                save_file(self.value.state_dict(), temporary / VALUE_FILE)
            if hasattr(self.denoiser.model, "peft_config"):
                self.denoiser.model.save_pretrained(temporary / ADAPTER_FOLDER)
            elif self.args.train_denoiser:
                self.denoiser.model.save_pretrained(temporary / DENOISER_FOLDER)
            # Trainer's own would be a pickle
            (temporary / TRAINING_FILE).write_text(self.args.to_json_string(), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with reading(folder):
            self.scorer.load_state_dict(load_file(folder / "model.safetensors"))
            if self.posterior is not None:
                self.posterior.load_state_dict(load_file(folder / POSTERIOR_FILE))
            if self.value is not None:
                self.value.load_state_dict(load_file(folder / VALUE_FILE))
            if hasattr(self.denoiser.model, "peft_config"):
                from peft import set_peft_model_state_dict

                weights = load_file(folder / ADAPTER_FOLDER / "adapter_model.safetensors")
                set_peft_model_state_dict(self.denoiser.model, weights)
            elif self.args.train_denoiser:
                tuned = type(self.denoiser.model).from_pretrained(folder / DENOISER_FOLDER)
                self.denoiser.model.load_state_dict(tuned.state_dict())
