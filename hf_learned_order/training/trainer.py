"""`OrderTrainer`: fits a scorer on `transformers.Trainer`, with the denoiser frozen, LoRA-tuned or fully tuned.

accelerate, FSDP, DeepSpeed, resuming and trackers are the Trainer's own. What is written, read again and pushed is in
`checkpointing.py`.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import ProgressCallback

from hf_learned_order.denoisers.attention import check_attention
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.sharding import check_wrapping, splittable
from hf_learned_order.orders.configuration import RANDOM_LAWS
from hf_learned_order.orders.posterior import CleanPosterior
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.cards import Card
from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.training.arguments import OBJECTIVE_SETTINGS, OrderTrainingArguments
from hf_learned_order.training.generating import GeneratingTrainer
from hf_learned_order.training.objectives.elbo import UNREACHED, OrderELBO, remaining
from hf_learned_order.training.objectives.judging import Judge
from hf_learned_order.training.objectives.regret import RegretObjective
from hf_learned_order.training.objectives.table import DEFAULTS, make_objective
from hf_learned_order.training.objectives.updates import seeds_of
from hf_learned_order.training.pace import EVERY, Pace
from hf_learned_order.training.progress import Measured, OrderProgress
from hf_learned_order.training.refusals import check_arguments, check_batch, check_objective, check_tuning
from hf_learned_order.training.tuning import to_be_trained_with
from hf_learned_order.training.weighing import choose_weights, rows_to_weigh_on

logger = logging.getLogger(__name__)


class OrderTrainer(GeneratingTrainer):
    """Trains a scorer for a denoiser.

    Args:
        model: the denoiser; frozen unless `peft_config` or `args.train_denoiser` says otherwise.
        scorer: the `OrderScorer`; by default a new one that fits `model`.
        args: `OrderTrainingArguments`.
        train_dataset, eval_dataset: rows of `prompt_ids` and `response_ids`, and where there are any `given` and
            `answer` (`hf_learned_order.tasks.data`).
        processing_class: the tokenizer; it must have mask, EOS and padding tokens.
        peft_config: a PEFT configuration, e.g. `LoraConfig`, to tune the denoiser along.
        is_right: of the objectives "regret" and "reward": from the text of a response and the row's `answer` ("" where
            there is none), a task's (`tasks.TASKS`); by default nothing is right but the row's response.
        card: what the model card says of data and command when the scorer is pushed; the seed by default.
        family: how to call the model, where `families.FAMILIES` does not know it or is wrong about it; by default as it
            is attached.
        data_collator: from rows a dict of `input_ids`, `attention_mask`, `clean`, `answer`, and where there are any
            `given`; by default a `CanvasCollator`.
        **kwargs: `Trainer`'s own. With `compute_metrics`, an evaluation decodes its rows: `predictions` are token ids
            [rows, canvas], `label_ids` a pair, those of the references and the answers as `answers.decoded` reads them.
            `answers.AnswerMetrics` is one.

    Raises:
        ValueError: the tokenizer has no mask token, the scorer does not fit, both ways of tuning are asked for,
            `is_right` or a setting is given that the objective has not, or one of Trainer's that it has no use for,
            `target_nfe` is out of reach, or DeepSpeed (ZeRO-3) or FSDP (SIZE_BASED_WRAP) is to split the scorer.
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
        family: Family | None = None,
        data_collator: Callable[[list], dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        check_tuning(model, args, peft_config)
        check_arguments(args, kwargs, train_dataset, eval_dataset)
        denoiser = Denoiser(model, mask_token_id=processing_class.mask_token_id, family=family)
        scorer = OrderScorer.for_denoiser(denoiser) if scorer is None else scorer
        scorer.check_fits(denoiser)
        scorer.config.note_family(denoiser)
        denoiser = to_be_trained_with(denoiser, scorer.config, peft_config=peft_config, whole=args.train_denoiser)
        check_attention(denoiser)  # before its calls are counted, and weights are split
        self.scorer = scorer
        self.denoiser = denoiser
        self.card = card or Card(seeds=(args.seed,))
        tuned = peft_config is not None or args.train_denoiser
        check_objective(objective_name(scorer, args), args, tuned=tuned, judged=is_right is not None)
        self.judge = Judge.of_text(processing_class, is_right)
        objective = objective_of(denoiser, scorer, args, self.judge)
        self.posterior, self.value = (getattr(objective, name, None) for name in ("posterior", "value"))
        if scorer.config.law in RANDOM_LAWS:
            scorer.config.max_denoising_steps = args.max_denoising_steps
        self.pace = None if args.target_nfe is None else Pace.of_run(scorer, args)
        if isinstance(objective, OrderELBO):
            objective.holds_speed = self.pace is not None
        self._objective = objective
        self._lend_to(objective)
        self._trained, self._evaluated = Measured(), Measured()  # since the last log; in this evaluation
        self._calls = 0  # sequences that the denoiser was called with in this batch
        self._update: int | None = None  # the one that batches are counted in; -1: an evaluation
        self._batch = 0
        if data_collator is None:
            sizes = {"canvas_length": args.canvas_length, "vocab_size": scorer.config.vocab_size}
            data_collator = CanvasCollator(tokenizer=processing_class, with_answers=True, **sizes)
        super().__init__(
            model=objective,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
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
        objective.generate = lambda what, *args, **kwargs: what(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        check_batch(inputs)
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
        outputs = model(**inputs, seeds=self._seeds(rows, training=training))
        outputs = {**outputs, "denoiser_calls": torch.tensor(self._calls / rows)}
        for name, value in outputs.items():
            if name != "loss":
                (self._trained if training else self._evaluated).add(name, value, rows)
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
        self._trained.add("generated_nfe", mean, len(nfe))
        pace.update(mean.item(), number=self.state.global_step // EVERY)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; then objective "regret" weighs doubt against pairs (`weighing`) on the first rows of
        `eval_dataset`, or of the training set where there is none, and with `target_nfe` the speed is set to it, on the
        first training prompts.

        From a checkpoint with all its updates done it loads, and does what stands behind the training, no more. Where
        something fails when all updates are done, what was trained is saved in `output_dir` first.
        """
        try:
            output = super().train(*args, **kwargs)
            self._settle()
        except Exception:
            if 0 < self.state.max_steps <= self.state.global_step:  # all updates are done: nothing of them is lost
                self.save_model(_internal_call=True)
                logger.error("What was trained is in %s; what stands behind the training failed", self.args.output_dir)
            raise
        return output

    def _settle(self) -> None:
        """Chooses what is not learned by updates: weights of the regret law, the speed."""
        if isinstance(self._objective, RegretObjective):
            at_once = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            rows = self.train_dataset if self.eval_dataset is None else self.eval_dataset
            batches = list(self._first_rows(rows, rows_to_weigh_on(self.state.max_steps * at_once)))
            quiet = self.args.disable_tqdm or not self.is_world_process_zero()
            self.log(choose_weights(self.scorer, lambda bias: self._calls_and_share(batches, bias), quiet=quiet))
        if self.pace is not None:
            batches = list(self._first_rows(self.train_dataset))
            self.pace.solve(lambda: self._mean_nfe(batches))

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """transformers' own; what the objective measured stands among the metrics, with their prefix."""
        self._update, self._batch = -1, 0
        self._evaluated = Measured()  # without what an evaluation that broke off has left
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._evaluated.means(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": mean for name, mean in means.items()})
        return output

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
        self._evaluated.add("generated_nfe", nfe.float().mean(), len(nfe))
        given = (inputs["given"],) if "given" in inputs else ()
        return loss, responses, (inputs["clean"], inputs["answer"], *given)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds to what is logged of the training the means, since the last time, of what the objective measured."""
        if "loss" in logs or "total_flos" in logs:  # after some updates, or at the end; an evaluation has neither
            logs.update(self._trained.means(self.accelerator))
            if self.pace is not None:
                logs[f"law_{self.pace.setting.removeprefix('law_')}"] = round(self.pace.value, 4)
        super().log(logs, *args, **kwargs)


def objective_name(scorer: OrderScorer, args: OrderTrainingArguments) -> str:
    """The one that is asked for, else that of the scorer's law."""
    return args.objective or DEFAULTS.get(scorer.config.law, "elbo")


def objective_of(denoiser: Denoiser, scorer: OrderScorer, args: OrderTrainingArguments, judge: Judge) -> Any:
    """With its settings among `args`, and with a posterior where it has one."""
    name = objective_name(scorer, args)
    return make_objective(
        name,
        denoiser,
        scorer,
        posterior=_posterior_of(scorer, args) if name == "elbo" else None,
        eos_token_id=judge.eos_token_id,
        is_right=judge.is_right,
        **{setting: getattr(args, setting) for setting in OBJECTIVE_SETTINGS},
    )


def _posterior_of(scorer: OrderScorer, args: OrderTrainingArguments) -> CleanPosterior | None:
    """None where the scorer's law is shared."""
    kind = args.posterior or ("prior" if scorer.config.law in UNREACHED else "clean")
    if kind == "prior":
        return None
    how = {"law": args.posterior_law, "temperature": args.posterior_temperature}
    return CleanPosterior(scorer.config, once=kind == "clean_once", **how)  # pyrefly: ignore[bad-argument-type]
