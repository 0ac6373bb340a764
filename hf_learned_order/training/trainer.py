"""`OrderTrainer`: fits a scorer on `transformers.Trainer`, with the denoiser frozen, LoRA-tuned or fully tuned.

accelerate, FSDP, DeepSpeed, resuming and trackers are the Trainer's own. A checkpoint holds what is
trained and no more (`saved.py`).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ProgressCallback

from hf_learned_order.common.files import replacing, saving
from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.hooks import evaluating
from hf_learned_order.denoisers.sharding import check_wrapping, splittable
from hf_learned_order.orders.configuration import ELBO_LAWS, RANDOM_LAWS
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.cards import TRAINING_FILE, Card, training_file
from hf_learned_order.sharing.hub import generation_config, push_folder
from hf_learned_order.tasks.answers import judged
from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.training.arguments import OBJECTIVE_SETTINGS, OrderTrainingArguments
from hf_learned_order.training.objectives.elbo import OrderELBO, remaining
from hf_learned_order.training.objectives.table import DEFAULTS, make_objective
from hf_learned_order.training.pace import EVERY, Pace
from hf_learned_order.training.progress import OrderProgress
from hf_learned_order.training.resuming import ResumingTrainer
from hf_learned_order.training.rollouts import OrderByRow
from hf_learned_order.training.saved import load_weights, save_weights
from hf_learned_order.training.updates import Draws, seeds_of

CALIBRATION_ROWS = 256


class OrderTrainer(ResumingTrainer):
    """Trains a scorer for a denoiser.

    Args:
        model: the denoiser; frozen unless `peft_config` or `args.train_denoiser` says otherwise.
        scorer: the `OrderScorer`; by default a new one that fits `model`.
        args: `OrderTrainingArguments`.
        train_dataset, eval_dataset: rows of `prompt_ids` and `response_ids`, and where there are any `given` and
            `answer` (`hf_learned_order.tasks.data`).
        processing_class: the tokenizer; it must have mask, EOS and padding tokens.
        peft_config: a PEFT configuration, e.g. `LoraConfig`, to tune the denoiser along.
        is_right: of objective "reward": from the text of a response and the row's `answer` ("" where there is none), a
            task's (`tasks.TASKS`); by default nothing is right but the row's response.
        card: what the model card says of data and command when the scorer is pushed; the seed by default.
        **kwargs: `Trainer`'s own. With `compute_metrics`, an evaluation decodes its rows: `predictions` are token ids
            [rows, canvas], `label_ids` a pair, those of the references and the answers as `answers.decoded` reads them.
            `answers.AnswerMetrics` is one.

    Raises:
        ValueError: the tokenizer has no mask token, the scorer does not fit, both ways of tuning are asked for,
            `is_right` or a setting is given that the objective has not, `target_nfe` is out of reach, or DeepSpeed
            (ZeRO-3) or FSDP (SIZE_BASED_WRAP) is to split the scorer.
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
        is_right: Callable[[str, str], bool] | None = None,
        card: Card | None = None,
        **kwargs: Any,
    ):
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "deepspeed must not be ZeRO-3, which splits the scorer too, and processes call that unequally often; "
                "FSDP2 and ZeRO-2 work"
            )
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
        if name != "reward" and is_right is not None:
            raise ValueError(f'is_right must be None with objective {name!r}: only "reward" judges responses')
        args.check_settings(name)
        if name == "elbo" and law in ELBO_LAWS and args.posterior != "prior":
            self.posterior = CleanPosterior(
                scorer.config,
                law=args.posterior_law,
                temperature=args.posterior_temperature,
                once=args.posterior == "clean_once",
            )
        objective = make_objective(
            name,
            denoiser,
            scorer,
            posterior=self.posterior,
            eos_token_id=processing_class.eos_token_id,
            is_right=None if is_right is None else partial(judged, tokenizer=processing_class, is_right=is_right),
            **{setting: getattr(args, setting) for setting in OBJECTIVE_SETTINGS},
        )
        self.value = getattr(objective, "value", None)
        if law in RANDOM_LAWS:
            # one token a step leaves the budget to decoding
            scorer.config.max_denoising_steps = None if name == "dense" else args.max_denoising_steps
        scorer.config.denoiser_tuning = "adapter" if peft_config else "denoiser" if args.train_denoiser else None
        self.pace = None if args.target_nfe is None else Pace.of_run(scorer, args)
        if isinstance(objective, OrderELBO):
            objective.holds_speed = self.pace is not None
        self._objective = objective
        self._unasked = ("answer",) if is_right is None else ()
        self._lend_to(objective)
        # name -> what was measured in each batch since the last log, and in how many rows
        self._measured: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self._calls = 0  # sequences that the denoiser was called with in this batch
        self._update: int | None = None  # the one that batches are counted in; -1: an evaluation
        self._batch = 0
        super().__init__(
            model=objective,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=CanvasCollator(
                tokenizer=processing_class,
                canvas_length=args.canvas_length,
                with_answers=True,
                vocab_size=scorer.config.vocab_size,
            ),
            **kwargs,
        )
        check_wrapping(getattr(self.accelerator.state, "fsdp_plugin", None))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OrderProgress)
        # the objective returns its own loss: it does not take Trainer's count of items
        self.model_accepts_loss_kwargs = False

    def _lend_to(self, objective: Any) -> None:
        """What Trainer, accelerate and FSDP look for on the module that they train."""

        def count(module: nn.Module, inputs: tuple, output: Any) -> None:
            self._calls += 0 if self.denoiser.is_idle else len(inputs[0])

        self.denoiser.register_forward_hook(count)
        for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
            if hasattr(self.denoiser.model, name):
                setattr(objective, name, getattr(self.denoiser.model, name))
        objective._no_split_modules = splittable(self.denoiser.model)
        # of this name Trainer makes a method that gathers the weights which FSDP has split
        objective.generate = self._decode

    @torch.no_grad()
    def _decode(
        self, input_ids: Tensor, attention_mask: Tensor, clean: Tensor, given: Tensor | None, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Responses [batch, canvas] and NFE [batch] of the scorer as it is, by generation without a knob.

        Of `clean` it sees what is `given`.
        """
        length, steps = clean.shape[1], self.scorer.config.max_denoising_steps
        draws = Draws(seeds, rows=len(clean), device=clean.device)
        with evaluating(self.denoiser):
            output = decode(
                self.denoiser,
                **start(input_ids, attention_mask, clean, given, mask_token_id=self.denoiser.mask_token_id),
                sampler=OrderByRow(scorer=self.scorer, draws=draws),
                max_denoising_steps=None if steps is None else min(steps, length),
                eos_token_id=self.processing_class.eos_token_id,
            )
        return output.sequences[:, -length:], output.nfe

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows, training = len(inputs["clean"]), model.training
        update = self.state.global_step if training else -1
        if update != self._update:
            self._update, self._batch = update, 0
        if training and self.pace is not None and self._batch == 0 and update % EVERY == 0:
            self._keep_pace(self.pace, inputs)
        if isinstance(self._objective, OrderELBO):
            left = remaining(update / self.state.max_steps) if training else 0.0
            self._objective.exploration = self.args.exploration * left
        self._calls = 0
        asked = {name: value for name, value in inputs.items() if name not in self._unasked}
        outputs = model(**asked, seeds=self._seeds(rows, training=training))
        outputs = {**outputs, "denoiser_calls": torch.tensor(self._calls / rows)}
        for name, value in outputs.items():
            if name != "loss":
                self._measured[name if training else f"eval_{name}"].append((value.detach(), rows))
        self._batch += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _seeds(self, rows: int, *, training: bool) -> Tensor:
        """Of the rows of this batch, counted through the batches and processes of the update.

        An evaluation is counted through its batches, whenever it is: of two checkpoints, the same is drawn.
        """
        world, rank, batch = self.args.world_size, self.args.process_index, self._batch
        if training:
            first = (batch * world + rank) * self._train_batch_size
            return seeds_of(self.args.seed, self.state.global_step, first=first, rows=rows)
        return seeds_of(self.args.seed, -1 - batch, first=rank * self.args.eval_batch_size, rows=rows)

    def _keep_pace(self, pace: Pace, inputs: dict[str, Tensor]) -> None:
        """Measures the NFE of generation on these prompts and moves the scorer's speed towards the target."""
        _, nfe = self._generated(inputs, self._seeds(len(inputs["clean"]), training=True))
        mean: Any = self.accelerator.reduce(nfe.float().mean(), "mean")
        self._measured["generated_nfe"].append((mean, len(nfe)))
        pace.update(mean.item(), number=self.state.global_step // EVERY)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; with `target_nfe` the speed is then set to it, on the first training prompts.

        From a checkpoint with all its updates done it loads, and does what stands behind the training, no more.
        """
        output = super().train(*args, **kwargs)
        if self.pace is not None:
            batches = list(self._first_rows())
            self.pace.solve(lambda: self._mean_nfe(batches))
        return output

    def _first_rows(self) -> Iterator[tuple[dict[str, Tensor], Tensor, int]]:
        """This process's share of the first training rows, in batches, their seeds, and how many of each batch count.

        Each process has as many as the others, filled up with rows from the front: weights that FSDP has split are
        gathered by all together.
        """
        world, size = self.args.world_size, self.args.eval_batch_size
        # pyrefly: ignore[missing-attribute, bad-argument-type] (a Dataset)
        rows = list(self.train_dataset.select(range(min(len(self.train_dataset), CALIBRATION_ROWS))))
        seeds = seeds_of(self.args.seed, self.state.global_step, first=0, rows=len(rows))
        mine = range(self.args.process_index, math.ceil(len(rows) / world) * world, world)
        for at in range(0, len(mine), size):
            numbers = mine[at : at + size]
            places = [number % len(rows) for number in numbers]
            batch = self._prepare_inputs(self.data_collator([rows[place] for place in places]))
            yield batch, seeds[places], sum(number < len(rows) for number in numbers)

    def _mean_nfe(self, batches: list[tuple[dict[str, Tensor], Tensor, int]]) -> float:
        """Of generation without a knob, over the rows of all processes."""
        nfe = torch.cat([self._generated(batch, seeds)[1][:count] for batch, seeds, count in batches]).float()
        sums = torch.stack([nfe.sum(), torch.tensor(float(len(nfe)), device=nfe.device)])
        summed: Any = self.accelerator.reduce(sums, "sum")
        total, count = summed.tolist()
        return total / count

    def _generated(self, batch: dict[str, Tensor], seeds: Tensor) -> tuple[Tensor, Tensor]:
        """`_decode`, by way of the module, see `_lend_to`."""
        model: Any = self.model
        return model.generate(
            batch["input_ids"], batch["attention_mask"], batch["clean"], given=batch.get("given"), seeds=seeds
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._update, self._batch = -1, 0
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> Any:
        inputs = self._prepare_inputs(inputs)
        seeds = self._seeds(len(inputs["clean"]), training=False)
        with torch.no_grad(), self.compute_loss_context_manager():
            # pyrefly: ignore[missing-attribute] (a pair only with return_outputs)
            loss = self.compute_loss(model, inputs).detach()
            if prediction_loss_only:
                return loss, None, None
            responses, nfe = self._generated(inputs, seeds)
        # of all processes, without the rows that only fill up the last batch
        nfe: Any = self.accelerator.gather_for_metrics(nfe)
        self._measured["eval_generated_nfe"].append((nfe.float().mean(), len(nfe)))
        return loss, responses, (inputs["clean"], inputs["answer"])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means since the last call of what the objective measured, over the rows of all processes."""
        evaluation = any(name.startswith("eval_") for name in logs)
        for name in [n for n in self._measured if n.startswith("eval_") == evaluation]:
            values, rows = zip(*self._measured.pop(name), strict=True)
            weights = torch.tensor(rows, dtype=torch.float)
            sums = torch.stack([(torch.stack(values).float().cpu() * weights).sum(), weights.sum()])
            summed: Any = self.accelerator.reduce(sums.to(self.args.device), "sum")
            logs[name] = round((summed[0] / summed[1]).item(), 4)
        if self.pace is not None and not evaluation:
            logs[f"law_{self.pace.setting.removeprefix('law_')}"] = round(self.pace.value, 4)
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        with replacing(folder) as temporary, saving(folder):
            save_weights(temporary, self._objective, state_dict or self._objective.state_dict())
            self.processing_class.save_pretrained(temporary)
            settings = generation_config(self.scorer.config.max_denoising_steps, self.args.canvas_length)
            settings.save_pretrained(temporary)
            # Trainer's own would be a pickle
            facts = training_file(self.args.to_json_string(), self.card, self.state.global_step)
            (temporary / TRAINING_FILE).write_text(facts, encoding="utf-8")

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
