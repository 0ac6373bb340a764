r"""Fit a scorer to a denoiser: the order in which it unmasks its tokens.

    accelerate launch examples/train.py --model_name_or_path examples/denoiser \
        --train_file ../shared/data/gsm8k/train.jsonl --output_dir runs/scorer

Any masked diffusion model of the Hub takes the place of `examples/denoiser`; `--task words` trains on whole solutions
with its tokenizer and chat template, `--task responses` and `--task infill` on your own data (docs/own_data.md).
`--use_lora` tunes the denoiser along with a LoRA adapter, saved in `adapter/`.
`train.py arguments.yaml` reads a file of arguments; what is typed behind it counts before the file.
Interrupted runs go on from the last checkpoint when the same command is given again; finished ones only save again.
"""

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.tuned import bring_up
from hf_learned_order.sharing.cards import Card
from hf_learned_order.tasks.answers import AnswerMetrics
from hf_learned_order.tasks.sources import OwnData, Source
from hf_learned_order.tasks.table import TASKS, find_task, unread_options
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.objectives.table import DEFAULTS, JUDGING
from hf_learned_order.training.rows import example_of
from hf_learned_order.training.saved import last_checkpoint
from hf_learned_order.training.scripts import ScriptParser
from hf_learned_order.training.trainer import OrderTrainer

DATA, LORA = "data", "LoRA"  # groups of --help
OF_A_NEW_SCORER = (  # options that a scorer to go on from has settled
    *("law", "law_temperature", "bound", "scorer_size", "scorer_layers", "hidden_layers", "predictions_only"),
)
OF_AN_ADAPTER = ("lora_rank", "lora_target_modules")


@dataclass(kw_only=True)
class ScriptArguments:
    """What is trained on what."""

    _argument_group_name = "scorer"

    model_name_or_path: str = field(default="examples/denoiser", metadata={"help": "the denoiser"})
    dataset_name: str | None = field(
        default=None,
        metadata={"group": DATA, "help": "GSM8K (openai/gsm8k) or your own data on the Hub, or a folder of data"},
    )
    train_file: list[str] | None = field(
        default=None,
        metadata={"group": DATA, "help": "files instead of dataset_name: GSM8K's train.jsonl, or your own"},
    )
    test_file: list[str] | None = field(
        default=None,
        metadata={
            "group": DATA,
            "help": "whose prompts are left out of the training; GSM8K: by default the one beside train_file",
        },
    )
    task: str = field(
        default="equations",
        metadata={"group": DATA, "help": f"one of {', '.join(TASKS)}; or your own, path/to/file.py:NAME"},
    )
    num_problems: int = field(
        default=20_000,
        metadata={"group": DATA, "help": "drawn for training; tasks of given rows take all that there are"},
    )
    scorer_name_or_path: str | None = field(
        default=None, metadata={"help": "a scorer to go on from; law and size are then its own"}
    )
    law: str = field(default="regret", metadata={"help": "law of the scorer", "choices": list(LAWS)})
    law_temperature: float | None = field(default=None, metadata={"help": "tau of a law that draws"})
    bound: float = field(default=0.5, metadata={"help": "of the regret law: what a position may cost"})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "objectives regret and reward: the published response is right, or what the task says; by default "
            "the latter where several responses may be right",
            "choices": ["exact", "task"],
        },
    )
    scorer_size: int = field(default=64, metadata={"help": "width of the scorer"})
    scorer_layers: int = 2
    hidden_layers: list[int] | None = field(
        default=None, metadata={"help": "hidden states of the denoiser that the scorer sees, e.g. 3 -1; default: -1"}
    )
    predictions_only: bool = field(
        default=False, metadata={"help": "the scorer sees no hidden states: for serving engines, which keep theirs"}
    )
    use_lora: bool = field(default=False, metadata={"group": LORA, "help": "tune the denoiser along, by LoRA"})
    lora_rank: int = field(default=8, metadata={"group": LORA, "help": "rank of the adapter"})
    lora_target_modules: str = field(
        default="all-linear", metadata={"group": LORA, "help": "modules that it changes, comma-separated, as in peft"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "evaluations without a better one, then training stops"}
    )


def adapter_of(script: ScriptArguments) -> Any:
    """The LoRA adapter of the denoiser, if one is to be trained."""
    if not script.use_lora:
        return None
    from peft import LoraConfig

    targets = script.lora_target_modules
    return LoraConfig(
        r=script.lora_rank,
        lora_alpha=2 * script.lora_rank,
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )


def scorer_of(script: ScriptArguments, denoiser: Denoiser) -> OrderScorer:
    """The scorer to go on from, or a new one."""
    if script.scorer_name_or_path is not None:
        scorer = OrderScorer.from_pretrained(script.scorer_name_or_path)
        bring_up(denoiser, scorer.config, script.scorer_name_or_path)
        return scorer
    unseen = {"denoiser_hidden_size": 0} if script.predictions_only else {}
    return OrderScorer.for_denoiser(
        denoiser,
        law=script.law,
        law_temperature=script.law_temperature,
        bound=script.bound,
        hidden_size=script.scorer_size,
        num_hidden_layers=script.scorer_layers,
        hidden_layers=script.hidden_layers,
        **unseen,
    )


def main() -> None:
    parser = ScriptParser(ScriptArguments, OwnData, OrderTrainingArguments)
    script, own, training = parser.arguments()
    if script.scorer_name_or_path is not None:
        parser.refuse(OF_A_NEW_SCORER, "with --scorer_name_or_path, whose scorer has its own")
    if not script.use_lora:
        parser.refuse(OF_AN_ADAPTER, "without --use_lora")
    if script.predictions_only:
        parser.refuse(["hidden_layers"], "with --predictions_only")
    task = find_task(script.task)
    parser.refuse(unread_options([task]), f"with --task {script.task}, which does not read them")
    set_seed(training.seed)
    tokenizer = load_tokenizer(script.model_name_or_path)
    model = load_denoiser(script.model_name_or_path)
    if not parser.given("canvas_length"):
        training.canvas_length = task.canvas_length
    source = Source(
        split="train",
        count=script.num_problems,
        seed=training.seed,
        canvas_length=training.canvas_length,
        dataset_name=script.dataset_name,
        train_file=script.train_file,
        test_file=script.test_file,
        own=own,
    )
    with training.main_process_first():
        train = task.load(tokenizer, source)
        validation = task.load(tokenizer, replace(source, split="validation", count=400))
    scorer = scorer_of(script, Denoiser(model, mask_token_id=tokenizer.mask_token_id))
    judges = (training.objective or DEFAULTS.get(scorer.config.law)) in JUDGING
    reward = script.reward or ("task" if judges and task.many_answers else "exact")
    files = [Path(file).name for file in script.train_file or ()]
    where = script.dataset_name or ", ".join(files)
    # a card shows a problem only where these are drawn: one's own data may be private
    prompt, infill = ("", None) if where or script.task not in TASKS else example_of(train[0], tokenizer)
    trainer = OrderTrainer(
        model=model,
        scorer=scorer,
        args=training,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=validation,
        peft_config=adapter_of(script),
        is_right=task.is_right if reward == "task" else None,
        compute_metrics=AnswerMetrics(tokenizer, task.is_right),
        callbacks=[EarlyStoppingCallback(patience)] if (patience := script.early_stopping_patience) else None,
        card=Card(
            task=script.task,
            data=f"{len(train)} training problems of {script.task}" + (where and f", from {where}"),
            prompt=prompt,
            infill=infill,
            command=shlex.join(["python", sys.argv[0], *parser.words]),
            seeds=(training.seed,),
        ),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    trainer.save_model()


if __name__ == "__main__":
    main()
