"""What `train_denoiser.py` trains: a new model, or one to go on from, and its tokenizer."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.tasks.table import Task

# options that a model to go on from has settled
OF_A_NEW_MODEL = ("architecture", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(kw_only=True)
class DenoiserArguments:
    """What is trained on what."""

    _argument_group_name = "model and data"

    task: list[str] = field(
        default_factory=lambda: ["equations"],
        metadata={"help": "of tasks.TASKS; several must share a tokenizer"},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "GSM8K (openai/gsm8k) or your own data on the Hub, or a folder of data"}
    )
    train_file: list[str] | None = field(
        default=None, metadata={"help": "files instead of dataset_name: GSM8K's train.jsonl, or your own"}
    )
    test_file: list[str] | None = field(
        default=None,
        metadata={"help": "whose prompts are left out of the training; GSM8K: by default the one beside train_file"},
    )
    num_problems: int = field(default=1_200_000, metadata={"help": "problems drawn"})
    keep: float = field(default=0.4, metadata={"help": "how often an expression keeps its numbers"})
    growth: int = field(default=1, metadata={"help": "digits that a result may have more than the original one"})
    pieces: float = field(default=0.3, metadata={"help": "how often a part of a chain stands for the whole one"})
    drills: float = field(default=0.3, metadata={"help": "how often a chain is of unrelated expressions"})
    ramp_problems: int = field(default=100_000, metadata={"help": "of these, the short ones come first"})
    canvas_length: int | None = field(default=None, metadata={"help": "positions of a response; by default the task's"})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "go on from this model, e.g. your own BERT, instead of a new one"}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "your own tokenizer; by default the task's, else the model's"}
    )
    architecture: str = field(
        default="modernbert", metadata={"help": "bert: learned positions, for grids", "choices": ["modernbert", "bert"]}
    )
    hidden_size: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int | None = field(
        default=None, metadata={"help": "by default 512; a ModernBERT that is gone on from is widened to it"}
    )


def tokenizer_of(arguments: DenoiserArguments, tasks: list[Task]) -> PreTrainedTokenizerBase:
    """The one that is named, else that of the tasks, else that of the model.

    Raises:
        ValueError: there is none, it has no mask token, or tasks with tokenizers of their own do not share it.
    """
    name = arguments.tokenizer_name
    if name is None and tasks[0].tokenizer is None:
        name = arguments.model_name_or_path
        if name is None:
            raise ValueError(
                f"tokenizer_name or model_name_or_path must be given with task {arguments.task[0]!r}, which has no "
                "tokenizer of its own"
            )
    if name is not None:
        tokenizer = load_tokenizer(name)
        if tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer_name must be a tokenizer with a mask token, got {name}")
        return tokenizer
    tokenizer = tasks[0].tokenizer()  # pyrefly: ignore[not-callable] (it was looked at)
    for name, task in zip(arguments.task, tasks, strict=True):
        if task.tokenizer is None or task.tokenizer().get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"tasks must share a tokenizer, but {arguments.task[0]} and {name} do not")
    return tokenizer


def model_of(arguments: DenoiserArguments, tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedModel:
    """A new model, or the one to go on from, with the tokenizer's special tokens in its configuration.

    Raises:
        ValueError: it is to be widened and no ModernBERT, has fewer tokens than the tokenizer, or no room for `length`.
    """
    name = arguments.model_name_or_path
    if name is None:
        return new_model(arguments, tokenizer, length)
    model = load_denoiser(name, dtype="float32")
    if arguments.intermediate_size not in (None, model.config.intermediate_size):
        if not isinstance(model, ModernBertForMaskedLM):
            raise ValueError(f"intermediate_size must be left out but for a ModernBERT, got {type(model).__name__}")
        config: Any = copy.deepcopy(model.config)
        config.intermediate_size = arguments.intermediate_size
        model = widen(model, ModernBertForMaskedLM(config))
    limit = getattr(model.config, "max_position_embeddings", None) or length
    for what, needed, there in (("tokens", len(tokenizer), model.config.vocab_size), ("positions", length, limit)):
        if needed > there:
            raise ValueError(f"model_name_or_path must be a model of {needed} {what} or more, got {name} of {there}")
    for token in ("mask_token_id", "pad_token_id", "eos_token_id"):
        if getattr(tokenizer, token) is not None:
            setattr(model.config, token, getattr(tokenizer, token))
    return model


def new_model(arguments: DenoiserArguments, tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedModel:
    """A model without training. With learned positions it takes up to `length` tokens, without up to 256 or more."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 512,
        "max_position_embeddings": length if arguments.architecture == "bert" else max(256, length),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "attn_implementation": "eager",
    }
    if arguments.architecture == "bert":
        return BertForMaskedLM(BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    return ModernBertForMaskedLM(
        ModernBertConfig(
            **shape,
            layer_types=["full_attention"] * arguments.num_hidden_layers,
            rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1000.0}},
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=None,
            cls_token_id=None,
        )
    )


def widen(model: ModernBertForMaskedLM, wide: ModernBertForMaskedLM) -> ModernBertForMaskedLM:
    """`wide` with the function of `model` and more hidden units in each MLP: new ones are drawn, and give nothing."""
    old, new = model.config.intermediate_size, wide.config.intermediate_size
    weights = model.state_dict()
    for name, weight in wide.state_dict().items():
        if name.endswith("mlp.Wi.weight"):  # values above, gates below
            weight[:old], weight[new : new + old] = weights[name].chunk(2)
            weights[name] = weight
        elif name.endswith("mlp.Wo.weight"):
            weights[name] = F.pad(weights[name], (0, new - old))
    wide.load_state_dict(weights)
    return wide
