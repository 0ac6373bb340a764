"""What the command line works on, tiny and on disk: a denoiser with its tokenizer, scorers, GSM8K files."""

import runpy
from pathlib import Path

import torch
from models import tiny_model
from transformers import PreTrainedModel

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.data import equation_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
write_rows = runpy.run_path(str(EXAMPLES / "demo.py"))["write_rows"]


def equation_model() -> PreTrainedModel:
    """A random ModernBERT for the tokenizer of the equations; float64, as all tiny models."""
    tokenizer = equation_tokenizer()
    names = ("pad_token_id", "eos_token_id", "sep_token_id", "mask_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    return tiny_model("modernbert", vocab_size=len(tokenizer), max_position_embeddings=128, **special)


def scorer_of(model: PreTrainedModel, *, seed: int = 0, **config) -> OrderScorer:
    """A scorer whose scores differ between positions, as after training."""
    torch.manual_seed(seed)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **config}
    scorer = OrderScorer.for_denoiser(Denoiser(model), **options).eval()
    torch.nn.init.normal_(scorer.network.head.weight, std=0.05)  # scores are divided by tau
    return scorer


def save_all(folder: Path) -> None:
    """In `folder`: denoiser/, scorer-0/, scorer-1/, train.jsonl (410 problems), test.jsonl (12)."""
    model = equation_model()
    model.save_pretrained(folder / "denoiser")
    equation_tokenizer().save_pretrained(folder / "denoiser")
    for seed in range(2):
        scorer_of(model, seed=seed).save_pretrained(folder / f"scorer-{seed}")
    write_rows(folder / "train.jsonl", 410, 0)
    write_rows(folder / "test.jsonl", 12, 1)
