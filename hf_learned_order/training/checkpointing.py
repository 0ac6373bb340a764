"""`CheckpointingTrainer`: what a run of `OrderTrainer` writes to its folder, goes on from, and pushes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer

from hf_learned_order.common.files import replacing, saving
from hf_learned_order.denoisers.probe import probe
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.cards import TRAINING_FILE, Card, training_file
from hf_learned_order.sharing.hub import generation_config, push_folder
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.rows import rows_of
from hf_learned_order.training.saved import load_weights, save_weights


class ResumingTrainer(Trainer):
    """What transformers' `Trainer` lacks where a run is given again, after a kill or when it is done.

    From a checkpoint with all its updates done, `train` loads and makes no more; patience outlasts a kill.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks whether training is done behind an update only, so a finished run given once more would go on
        impatient = any(
            each.early_stopping_patience_counter >= each.early_stopping_patience for each in self._early_stopping()
        )
        if self.state.global_step >= self.state.max_steps or (self.state.global_step > 0 and impatient):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_callback_state(self) -> None:
        """The evaluations in a row that were no better: Trainer's own starts to count anew, or drops a new patience."""
        super()._load_callback_state()
        saved: Any = self.state.stateful_callbacks
        for callback in self._early_stopping():
            if EarlyStoppingCallback.__name__ in saved:
                attributes = saved[EarlyStoppingCallback.__name__]["attributes"]
                callback.early_stopping_patience_counter = attributes["early_stopping_patience_counter"]

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]


class CheckpointingTrainer(ResumingTrainer):
    """A checkpoint holds what is trained and no more (`saved.py`); a push is a scorer's repository with its card."""

    if TYPE_CHECKING:
        args: OrderTrainingArguments
        processing_class: PreTrainedTokenizerBase
        scorer: OrderScorer
        card: Card
        _objective: Any

    def push_to_hub(  # pyrefly: ignore[bad-override] (None where there is nothing to push)
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        card: Card | None = None,
        tags: str | Sequence[str] | None = None,
        license: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save to `output_dir` and push what stands there in one commit, see `hub.push_folder`.

        `private` and the repository's name are by default `args.hub_private_repo` and `args.hub_model_id`, `card` the
        trainer's, with these `tags` and this `license`. With `blocking=False` a future is returned; on all processes
        but the first, None.

        Raises:
            TypeError: other `kwargs` of `Trainer.push_to_hub` are given: what they say of the card stands in `card`.
        """
        if kwargs:
            raise TypeError(f"push_to_hub takes what it writes into the card from card=Card(...), got {sorted(kwargs)}")
        card = card or self.card
        card = replace(card, tags=[*card.tags, *([tags] if isinstance(tags, str) else tags or ())])
        card = card if license is None else replace(card, license=license)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = push_folder if blocking else partial(HfApi().run_as_future, push_folder)
        return push(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            card=card,
            commit_message=commit_message or "End of training",
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision,
        )

    def whole(self, what: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`what(*args, **kwargs)`, by way of the module that is trained: with all weights where FSDP has split them.

        All processes have to come.
        """
        model: Any = self.model
        return model.generate(what, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """transformers' own; a scorer whose denoiser is tuned along remembers what that one says now."""
        denoiser = self._objective.denoiser
        if any(parameter.requires_grad for parameter in denoiser.parameters()):
            self.scorer.config.denoiser_probe = self.whole(probe, denoiser)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        with replacing(folder) as temporary, saving(folder):
            save_weights(temporary, self._objective, state_dict or self._objective.state_dict())
            self.processing_class.save_pretrained(temporary)
            args, steps = self.args, self.scorer.config.max_denoising_steps
            settings = generation_config(steps, args.canvas_length, temperature=args.temperature)
            settings.save_pretrained(temporary)
            # Trainer's own would be a pickle
            facts = training_file(self.args.to_json_string(), self._stated(), self.state.global_step)
            (temporary / TRAINING_FILE).write_text(facts, encoding="utf-8")

    def _stated(self) -> Card:
        """The card; where it has no example, one that shows nothing of the training data, which may be private."""
        if self.card.prompt or self.train_dataset is None:
            return self.card
        if next(rows_of(self.train_dataset), {}).get("given") is None:
            return replace(self.card, prompt="your prompt", infill=False)
        return replace(self.card, prompt=f"your text with {self.processing_class.mask_token} in it", infill=True)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # or a kill could leave a checkpoint that looks whole and lacks another process's state
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(Path(resume_from_checkpoint), self._objective)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
