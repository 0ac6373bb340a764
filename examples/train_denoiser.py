r"""Train a small masked diffusion model, a stock `ModernBertForMaskedLM` or `BertForMaskedLM`, on a task.

    accelerate launch examples/train_denoiser.py \
        --train_file ../shared/data/gsm8k/train.jsonl --output_dir runs/denoiser
    accelerate launch examples/train_denoiser.py --task sudoku --architecture bert --output_dir runs/sudoku-denoiser

With `--task responses` or `--task infill` on your own data, with your own tokenizer and model:

    accelerate launch examples/train_denoiser.py --task responses --model_name_or_path path/to/bert \
        --train_file rows.csv --prompt_column question --response_column answer --output_dir runs/own

Absorbing noise with a linear schedule. For a canvas of L positions, t is stratified over the batch, exactly
n = ceil(tL) positions are masked, and their loss is weighted by 1/t: the any-order form of the diffusion bound, with
less variance than independent masks (Ou et al., arXiv 2406.03736, section 3). Matrices are trained by Muon, the rest
by AdamW.
Interrupted runs go on from the last checkpoint when the same command is given again.
"""

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from datasets import concatenate_datasets
from denoiser_models import OF_A_NEW_MODEL, DenoiserArguments, model_of, tokenizer_of
from muon import MuonAdamW
from transformers import (
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from hf_learned_order.denoisers.calls import whole_mask
from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.data import HELD_OUT
from hf_learned_order.tasks.sources import OwnData, Source
from hf_learned_order.tasks.table import find_task, unread_options
from hf_learned_order.training.checkpointing import ResumingTrainer
from hf_learned_order.training.saved import last_checkpoint
from hf_learned_order.training.scripts import ScriptParser


@dataclass(kw_only=True)
class DenoiserTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for this job on two cores."""

    _argument_group_name = "noise"

    output_dir: str = "runs/denoiser"
    per_device_train_batch_size: int = 128
    per_device_eval_batch_size: int = 128
    learning_rate: float = field(default=0.02, metadata={"help": "of Muon; AdamW's is 0.15 times that"})
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 200
    max_steps: int = 9000
    max_grad_norm: float = 1.0
    train_sampling_strategy: str = "sequential"  # `curriculum` puts the rows in order
    torch_compile: bool = True
    bf16: bool = torch.accelerator.is_available()  # CPUs that have no instructions for it are slower with it by far
    use_cpu: bool = not torch.accelerator.is_available()  # without it, bf16 is refused there
    dataloader_pin_memory: bool = False
    remove_unused_columns: bool = False
    logging_steps: float = 50
    eval_strategy: str = "steps"
    eval_steps: float = 500
    save_steps: float = 500
    save_total_limit: int = 2
    arithmetic_share: float = field(
        default=0.6,
        metadata={"help": "equations: share of the rows whose mask makes the model calculate instead of copy"},
    )
    noise_ramp_steps: int = field(default=1500, metadata={"help": "updates until t reaches up to 1, from 0.3"})
    seed: int = 0


class DenoiserTrainer(ResumingTrainer):
    """Trainer whose loss is the masked diffusion bound in nats a token."""

    if TYPE_CHECKING:
        args: DenoiserTrainingArguments
        processing_class: PreTrainedTokenizerBase

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        prompt, clean = inputs["input_ids"], inputs["clean"]
        fixed = self._fixed(inputs)
        if model.training and fixed is None:
            clean = self._trim(clean)
        batch = len(clean)
        t = (torch.rand((), device=clean.device) + torch.arange(batch, device=clean.device) / batch) % 1
        if model.training:  # little noise first: copying and arithmetic are learned where most of the canvas is seen
            t = t * min(1.0, 0.3 + 0.7 * self.state.global_step / max(1, self.args.noise_ramp_steps))
        chance, length = torch.rand(clean.shape, device=clean.device), clean.shape[1]
        if fixed is not None:
            chance, length = chance.masked_fill(fixed, 2.0), (~fixed).sum(-1)
        masked = chance.argsort(-1).argsort(-1) <= (t * length).floor()[:, None]
        scored = masked
        if model.training:
            masked, scored = self.hidden_and_scored(clean, masked)
        config: Any = self.accelerator.unwrap_model(model).config
        canvas = clean.masked_fill(masked, config.mask_token_id)
        logits = model(
            input_ids=torch.cat([prompt, canvas], 1),
            attention_mask=whole_mask(inputs["attention_mask"], prompt, canvas),
        ).logits[:, prompt.shape[1] :]
        # The mask token is never an answer: its logit is out of the softmax, here as in decoding.
        logits = logits.float().index_fill(-1, torch.tensor([config.mask_token_id], device=logits.device), -torch.inf)
        losses = F.cross_entropy(logits.transpose(1, 2), clean, reduction="none")
        loss = ((losses * scored).sum(1) / scored.sum(1).clamp(min=1)).mean()
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    # pyrefly: ignore[bad-override] (compute_loss gives a pair only with return_outputs)
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def hidden_and_scored(self, clean: torch.Tensor, masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is hidden in training, and what of it the loss is taken of."""
        return masked, masked

    def _fixed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """bool [batch, canvas], of texts to infill: padding and special tokens, which are never hidden; else None.

        What an evaluation hides of a text (`given`) does not count here.
        """
        if "given" not in inputs:
            return None
        clean = inputs["clean"]
        special = torch.tensor(self.processing_class.all_special_ids, device=clean.device)
        padding = whole_mask(inputs["attention_mask"], inputs["input_ids"], clean)[:, -clean.shape[1] :] == 0
        return padding | torch.isin(clean, special)

    def _trim(self, clean: torch.Tensor) -> torch.Tensor:
        """Three batches of four end soon after their longest response: most EOS at the end teach nothing."""
        if torch.rand(()) < 0.25:
            return clean
        longest = int((clean != self.processing_class.eos_token_id).sum(1).max())
        return clean[:, : longest + 1 + int(torch.randint(8, ()))]


class EquationTrainer(DenoiserTrainer):
    """With other masks in some rows, so that the model has to calculate instead of copying."""

    def hidden_and_scored(self, clean: torch.Tensor, masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In some rows other masks than `masked`; and what is scored. Any law of masks has the same optimum.

        Under scattered masks a result can mostly be copied from where the chain uses it again, and arithmetic is
        hardly learned. So in half of these rows everything from one position on is hidden, and the next characters are
        scored; in the other half all results are hidden from their first, second or third digit on.
        """
        tokenizer, length = self.processing_class, clean.shape[1]
        equals, space, answer = (clean.eq(tokenizer.get_vocab()[c]) for c in "= #")
        position = torch.arange(length, device=clean.device)
        kind, ahead, anywhere = torch.rand(3, len(clean), 1, device=clean.device)

        # half of the hidden parts begin in a result, and the padding behind the response may be visible
        end = (clean != tokenizer.eos_token_id).sum(1, keepdim=True) + 1
        result = (equals + 1e-6).multinomial(1) + 1 + (3 * ahead).long()
        start = torch.where(kind < self.args.arithmetic_share / 4, (anywhere * end).long(), result)
        hidden = (position >= start) & (position < end + (anywhere * 2 * length).long())

        # inside a result more `=` than spaces have gone by
        inside = equals.cumsum(1) - equals.long() > space.cumsum(1)
        digit = position - torch.where(equals, position, 0).cummax(1).values - 1
        final = (answer.cumsum(1) - answer.long() > 0) & (position < end)
        results = final | (inside & (digit >= (3 * ahead**2).long()))

        suffix, drill = kind < self.args.arithmetic_share / 2, kind < self.args.arithmetic_share
        masked = torch.where(suffix, hidden, torch.where(drill, results, masked))
        return masked, torch.where(suffix, hidden & (position < start + 12), masked)


def curriculum(lengths: list[int], *, batch_size: int, ramp: int, seed: int) -> list[int]:
    """An order of the rows: short ones first for `ramp` rows, then mixed; batches hold rows of like length.

    Batches themselves are shuffled within windows of 50, so that no run of updates sees one length only.
    """
    rng = random.Random(seed)
    order = sorted(range(min(ramp, len(lengths))), key=lambda i: lengths[i] + rng.random())
    order += range(len(order), len(lengths))
    arranged: list[int] = []
    for start in range(0, len(order), 50 * batch_size):
        window = sorted(order[start : start + 50 * batch_size], key=lengths.__getitem__)
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        tail = [batches.pop()] if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        arranged += [i for batch in batches + tail for i in batch]
    return arranged


def main() -> None:
    parser = ScriptParser(DenoiserArguments, OwnData, DenoiserTrainingArguments)
    arguments, own, training = parser.arguments()
    tasks = [find_task(name) for name in arguments.task]
    parser.refuse(unread_options(tasks), f"with --task {' '.join(arguments.task)}, which does not read them")
    if arguments.model_name_or_path is not None:
        parser.refuse(OF_A_NEW_MODEL, "with --model_name_or_path, whose model has its own")
    set_seed(training.seed)
    tokenizer = tokenizer_of(arguments, tasks)
    canvas_length = arguments.canvas_length or max(task.canvas_length for task in tasks)
    source = Source(
        split="train",
        count=arguments.num_problems // len(tasks),
        seed=training.seed,
        canvas_length=canvas_length,
        dataset_name=arguments.dataset_name,
        train_file=arguments.train_file,
        test_file=arguments.test_file,
        own=own,
        resampling={name: getattr(arguments, name) for name in ("keep", "growth", "pieces", "drills")},
    )
    with training.main_process_first():
        train = concatenate_datasets([task.load(tokenizer, source) for task in tasks]).shuffle(training.seed)
        held_out = replace(source, split="validation", count=HELD_OUT)
        validation = concatenate_datasets([task.load(tokenizer, held_out) for task in tasks])
    batch_size = training.train_batch_size * training.world_size
    lengths: Any = train["length"][:]
    order = curriculum(lengths, batch_size=batch_size, ramp=arguments.ramp_problems, seed=training.seed)
    model = model_of(arguments, tokenizer, canvas_length + max(map(len, train["prompt_ids"])))
    trainer = (EquationTrainer if "equations" in arguments.task else DenoiserTrainer)(
        model=model,
        args=training,
        # pyrefly: ignore[bad-argument-type, missing-attribute] (a Dataset's is a Dataset)
        train_dataset=train.select(order),
        eval_dataset=validation,
        data_collator=CanvasCollator(tokenizer=tokenizer, canvas_length=canvas_length),
        processing_class=tokenizer,
        optimizers=(MuonAdamW(model, lr=training.learning_rate), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    trainer.save_model()


if __name__ == "__main__":
    main()
