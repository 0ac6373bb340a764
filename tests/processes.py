"""What `test_distributed.py` runs in two processes: `accelerate launch ... tests/processes.py FOLDER PART`.

First each process has all weights, then they are split. The part "few" is what `make test` waits for; "rest" is slow.
"""

import gc
import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from models import MASK, tiny_model
from test_trainer import CANVAS, CASES, PROBLEMS, trainer_of
from torch.distributed.fsdp import FSDPModule, fully_shard

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.answers import AnswerMetrics, decoded
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows

# plain gradient descent: Adam divides a gradient by itself, and where there is none that is noise
OPTIONS = {"optim": "sgd", "learning_rate": 0.3, "max_denoising_steps": 3}
if "WORLD_SIZE" in os.environ:
    OPTIONS["ddp_backend"] = "gloo"
SPLIT = {
    **CASES,
    "range": {"min_denoising_steps": 1},
    "paced": {"law": "regret", "target_nfe": 4.0},
    "paced_draws": {"posterior": "prior", "target_nfe": 4.0, "max_denoising_steps": 8},
}
# with split weights; a slower rate, or the orders that are learned take one step, and no process waits for another
SLOW = {"learning_rate": 0.03, "train_sampling_strategy": "sequential", "max_steps": 2}
SHARDED = {
    name: {**SLOW, **options}
    for name, options in {
        **{name: SPLIT[name] for name in ("clean_once", "count", "regret")},
        **{name: SPLIT[name] for name in ("range", "lora", "train_denoiser", "paced", "paced_draws")},
        # tries enough that some go on behind the step that explores
        "reward": {**SPLIT["reward"], "max_denoising_steps": 8, "num_chains": 8},
        "hidden_layers": {"hidden_layers": [1, -1]},
        "lora_one": {"lora": True, "gradient_steps": "one"},
        "train_denoiser_one": {"train_denoiser": True, "gradient_steps": "one", "hidden_layers": [0, 1]},
    }.items()
}

RESUMED = ("count", "lora", "train_denoiser")
FEW = {"whole": ("clean", "paced_draws"), "split": ("count", "lora")}


def cases_of(part: str) -> dict[str, dict[str, dict]]:
    """The cases of the part "few" or "rest", with whole and with split weights."""
    return {
        weights: {name: options for name, options in cases.items() if (name in FEW[weights]) == (part == "few")}
        for weights, cases in (("whole", SPLIT), ("split", SHARDED))
    }


def rows_of(tokenizer):
    return equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=CANVAS).select(range(12))


def uneven(rows):
    """Nine rows; of four in turn the first two, which are the first process's, have one position to decode.

    Their prompts are equally long: where positions are given a scorer sees the prompts too, and their padding.
    """
    given = [[number % 4 < 2 and i > 0 for i in range(CANVAS)] for number in range(9)]
    rows = rows.select(range(9)).map(lambda row: {"prompt_ids": row["prompt_ids"][:6]})
    return rows.add_column("given", given)


def train_all(folder: Path, cases: dict[str, dict], *, batch: int, split: bool) -> dict[str, list[dict]]:
    """Train every case and save it; what each has logged."""
    tokenizer, logs = equation_tokenizer(), {}
    for case, options in cases.items():
        options = {**OPTIONS, **options, "per_device_train_batch_size": batch}
        rows = rows_of(tokenizer)
        if split:
            rows = uneven(rows)
        trainer = trainer_of(folder / case, tokenizer, rows, **options)
        trainer.train()
        trainer.save_model()
        logs[case] = [log for log in trainer.state.log_history if "loss" in log]
        assert isinstance(trainer.model, FSDPModule) == (split and "WORLD_SIZE" in os.environ)
    return logs


def evaluate(folder: Path, *, batch: int, split: bool = False) -> dict:
    """Metrics of an evaluation whose last batch has to be filled up, and each row's reference, response and answer."""
    tokenizer, rows = equation_tokenizer(), []
    metrics = AnswerMetrics(tokenizer, lambda response, answer: len(response) % 3 == len(answer) % 3)

    def keep(prediction) -> dict[str, float]:
        references, answers, *_ = prediction.label_ids
        texts = map(tokenizer.batch_decode, (references, prediction.predictions))
        rows.extend(zip(*texts, decoded(answers), strict=True))
        return metrics(prediction)

    options = {**OPTIONS, "posterior": "prior", "max_denoising_steps": 8, "per_device_eval_batch_size": batch}
    data = rows_of(tokenizer)
    if split:
        data, options = uneven(data), {**options, **SLOW, "per_device_train_batch_size": batch}
    trainer = trainer_of(folder / "evaluated", tokenizer, data.select(range(7)), **options)
    trainer.compute_metrics = keep
    if split:
        trainer.train()  # without, transformers 5.24 cannot evaluate what FSDP2 is to split
    return {**trainer.evaluate(), "rows": [list(row) for row in rows]}


def train_and_resume(folder: Path) -> None:
    """Two updates, and the second one again from the checkpoint before it, with split weights."""
    tokenizer = equation_tokenizer()
    rows = uneven(rows_of(tokenizer))
    for case in RESUMED:
        options = {**OPTIONS, **SHARDED[case], "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1}
        for name, checkpoint in ((case, None), (f"{case}-resumed", str(folder / case / "checkpoint-1"))):
            trainer = trainer_of(folder / name, tokenizer, rows, per_device_train_batch_size=2, **options)
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()


def split_as_shipped() -> None:
    """From now on accelerate splits weights as `examples/accelerate/fsdp.yaml` says. By itself it does on GPUs only."""
    settings = yaml.safe_load((PROBLEMS.parent / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})  # as `accelerate launch` does
    begin = AcceleratorState.__init__

    def begin_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, **kwargs)
        if self.distributed_type != DistributedType.FSDP:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()

    AcceleratorState.__init__ = begin_with_fsdp


def generate_with_split_weights() -> None:
    """`generate` of an attached model, whether it is split before or behind: two positions here, nine there."""
    rank = dist.get_rank()
    prompts = torch.randint(4, 40, (2, 5), generator=torch.Generator().manual_seed(rank))
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 2, "hidden_layers": [0, 1, -1]}
    scorer = OrderScorer.for_denoiser(Denoiser(tiny_model("llama"), mask_token_id=MASK), **shape).double()
    torch.nn.init.normal_(scorer.network.head.weight, std=0.05)

    def generated(model) -> list[list]:
        length = (2, 9)[rank]
        outputs = [
            model.generate(prompts, max_new_tokens=length, seed=1, return_dict_in_generate=True, **options)
            for options in (
                {"sampler": "learned_order", "max_denoising_steps": (2, 6)[rank]},
                {"sampler": "top_prob", "guidance_scale": 2.0},
                {"sampler": "learned_order", "max_denoising_steps": length, "kv_cache": "dual", "block_length": length},
            )
        ]
        return [[output.sequences.tolist(), output.order.tolist(), output.nfe.tolist()] for output in outputs]

    # transformers' own eager attention takes another mask than what else there is
    expected = generated(attach(tiny_model("llama", attn_implementation="eager"), scorer, mask_token_id=MASK))
    for before in (True, False):
        model = tiny_model("llama", attn_implementation="eager")
        if before:
            attach(model, scorer, mask_token_id=MASK)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert generated(attach(model, scorer, mask_token_id=MASK)) == expected


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # as pyproject.toml
    gc.freeze()  # as conftest.py does
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))  # a process may wait for another in vain
    (folder, part), logs = (Path(sys.argv[1]), sys.argv[2]), {}
    cases = cases_of(part)
    logs["whole"] = train_all(folder / "whole", cases["whole"], batch=2, split=False)
    assert dist.get_world_size() == 2
    if part == "few":
        logs["whole"]["evaluation"] = evaluate(folder, batch=2)
        generate_with_split_weights()
    split_as_shipped()
    logs["split"] = train_all(folder / "split", cases["split"], batch=2, split=True)
    if part == "rest":
        logs["split"]["evaluation"] = evaluate(folder, batch=2, split=True)
        train_and_resume(folder / "resumed")
    if dist.get_rank() == 0:
        (folder / "logs.json").write_text(json.dumps(logs))
    dist.destroy_process_group()
