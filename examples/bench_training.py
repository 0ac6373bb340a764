"""What training costs beside the denoiser: updates a second against the bound that its calls alone would set.

    make bench

One process on the CPU, through `OrderTrainer`, from data to optimizer. The models are random Llamas; what they say does
not matter here. With `OMP_NUM_THREADS=1` the time of the process is counted, so that what else runs hardly matters.
"""

import tempfile
from typing import Any

import torch
from bench import BASE, CLOCK, TINY
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.data import equation_tokenizer
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.trainer import OrderTrainer

TARGET = 0.85
PROMPT, CANVAS = 24, 32
SIZES: dict[str, tuple[dict[str, Any], int]] = {"tiny": (TINY, 1000), "100M": (BASE, 32_000)}
# law, options of the trainer
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "elbo, clean posterior": ("non_empty", {"posterior": "clean"}),
    "elbo, shared law": ("non_empty", {"posterior": "prior"}),
    "regret": ("regret", {}),
    "reward": ("regret", {"objective": "reward"}),
}
UPDATES, ROWS = 3, 2  # the first update is a warm-up


class Clock(TrainerCallback):
    """When each update ended, and how long the denoiser has worked by then."""

    def __init__(self, denoiser: Denoiser):
        self.inside, self.ends = 0.0, []
        denoiser.register_forward_pre_hook(self._start)
        denoiser.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.started = CLOCK()

    def _stop(self, *_: Any) -> None:
        self.inside += CLOCK() - self.started

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((CLOCK(), self.inside))

    @property
    def share(self) -> float:
        """Of the time of all updates but the first, what the denoiser's calls took."""
        (start, before), (end, after) = self.ends[0], self.ends[-1]
        return (after - before) / (end - start)


def share(size: dict[str, Any], vocab_size: int, law: str, options: dict[str, Any]) -> float:
    """Denoiser calls as a share of the time of an update."""
    torch.manual_seed(0)
    tokenizer = equation_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**size, vocab_size=vocab_size))
    scorer = OrderScorer.for_denoiser(Denoiser(model, mask_token_id=tokenizer.mask_token_id), law=law)
    ids = torch.randint(5, len(tokenizer), (UPDATES * ROWS, PROMPT + CANVAS - 1)).tolist()
    rows = [{"prompt_ids": row[:PROMPT], "response_ids": row[PROMPT:]} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        args = OrderTrainingArguments(
            output_dir=folder,
            max_steps=UPDATES,
            max_denoising_steps=4,
            num_chains=4,
            canvas_length=CANVAS,
            per_device_train_batch_size=ROWS,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **options,
        )
        trainer = OrderTrainer(
            model=model, scorer=scorer, args=args, processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
        )
        clock = Clock(trainer.denoiser)
        trainer.add_callback(clock)
        trainer.train()
    return clock.share


def main() -> None:
    title = f"updates a second, as a share of what denoiser calls alone would allow (target {TARGET:.0%} at 100M)"
    view = Table("model", *CASES, "met", title=title)
    for name, (size, vocab_size) in SIZES.items():
        found = [share(size, vocab_size, law, options) for law, options in CASES.values()]
        met = "-" if name == "tiny" else "yes" if min(found) >= TARGET else "no"
        view.add_row(name, *(f"{value:.0%}" for value in found), met)
    Console().print(view)


if __name__ == "__main__":
    main()
