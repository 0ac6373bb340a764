"""What `test_distributed.py` runs in two processes: `accelerate launch ... tests/processes.py FOLDER`."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from test_trainer import CASES, PROBLEMS, trainer_of

from hf_learned_order.answers import AnswerMetrics, decoded
from hf_learned_order.data import equation_tokenizer, equations
from hf_learned_order.gsm8k import chains_of, read_rows
from hf_learned_order.saved import save_weights
from hf_learned_order.updates import seeds_of

# plain gradient descent: Adam divides a gradient by itself, and where there is none that is noise
OPTIONS = {"optim": "sgd", "learning_rate": 0.3, "max_denoising_steps": 3}
if "WORLD_SIZE" in os.environ:
    OPTIONS["ddp_backend"] = "gloo"
SPLIT = {
    **CASES,
    "range": {"min_denoising_steps": 1},
    "paced": {"law": "factor", "target_nfe": 4.0},
    "paced_draws": {"posterior": "prior", "target_nfe": 4.0, "max_denoising_steps": 8},
}


def rows_of(tokenizer):
    return equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=32).select(range(12))


def train_all(folder: Path, *, batch: int) -> dict[str, list[dict]]:
    """Train every case for three updates and save it; what each has logged."""
    tokenizer, logs = equation_tokenizer(), {}
    for case, options in SPLIT.items():
        options = {**OPTIONS, **options, "per_device_train_batch_size": batch}
        trainer = trainer_of(folder / case, tokenizer, rows_of(tokenizer), **options)
        trainer.train()
        trainer.save_model()
        logs[case] = [log for log in trainer.state.log_history if "loss" in log]
    return logs


def evaluate(folder: Path, *, batch: int) -> dict:
    """Metrics of an evaluation whose last batch has to be filled up, and each row's reference, response and answer."""
    tokenizer, rows = equation_tokenizer(), []
    metrics = AnswerMetrics(tokenizer, lambda response, answer: len(response) % 3 == len(answer) % 3)

    def keep(prediction) -> dict[str, float]:
        references, answers = prediction.label_ids
        texts = map(tokenizer.batch_decode, (references, prediction.predictions))
        rows.extend(zip(*texts, decoded(answers), strict=True))
        return metrics(prediction)

    options = {**OPTIONS, "posterior": "prior", "max_denoising_steps": 8, "per_device_eval_batch_size": batch}
    trainer = trainer_of(folder / "evaluated", tokenizer, rows_of(tokenizer).select(range(7)), **options)
    trainer.compute_metrics = keep
    return {**trainer.evaluate(), "rows": [list(row) for row in rows]}


def sharded_gradients(case: str, folder: Path) -> None:
    """Loss and gradients of an objective whose weights FSDP has split, next to those of the objective as it is."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    tokenizer = equation_tokenizer()
    trainer = trainer_of(folder / f"fsdp-{case}", tokenizer, rows_of(tokenizer), **CASES[case])
    plain = trainer.model.train()
    rank, rows = dist.get_rank(), 2
    batch = trainer.data_collator(list(rows_of(tokenizer).select(range(rank * rows, (rank + 1) * rows))))
    del batch["answer"]
    batch["seeds"] = seeds_of(0, 0, first=rank * rows, rows=rows)
    begun = {name: batch[name] for name in ("input_ids", "attention_mask", "clean", "seeds")}
    begun["given"] = (torch.arange(32) % 4 == 0).expand(rows, -1)
    generated = plain.generate(**begun)
    loss = plain(**batch)["loss"]
    loss.backward()
    expected = {}
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            expected[name] = parameter.grad / dist.get_world_size()
            parameter.grad = None
    split = plain
    for module in list(split.modules()):
        if type(module).__name__ in split._no_split_modules:
            fully_shard(module)
    fully_shard(split)
    assert any(isinstance(parameter, DTensor) for parameter in split.parameters())
    again = split(**batch)["loss"]
    again.backward()
    torch.testing.assert_close(again, loss)
    found = {n: p.grad.full_tensor() for n, p in split.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    register_fsdp_forward_method(split, "generate")  # as Trainer does
    for tensor, before in zip(split.generate(**begun), generated, strict=True):
        assert torch.equal(tensor, before)
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in split.state_dict().items()
    }
    if rank == 0:
        save_weights(folder / f"fsdp-{case}", split, state)


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # as pyproject.toml
    folder = Path(sys.argv[1])
    logs = {**train_all(folder, batch=2), "evaluation": evaluate(folder, batch=2)}
    assert dist.get_world_size() == 2
    for case in ("clean", "lora", "train_denoiser"):
        sharded_gradients(case, folder)
    if dist.get_rank() == 0:
        (folder / "logs.json").write_text(json.dumps(logs))
    dist.destroy_process_group()
