"""What differs between model families: a few facts each, in one table.

A family is looked up by the class of the model ("LLaDAMoEModelLM"), then by the `model_type` of its configuration
("roberta"). The class comes first because publishers share model types: LLaDA and LLaDA-MoE are both "llada".
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedModel

ATTENTION = ("2d", "4d", "additive", "none")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What must be known to call a model as a denoiser.

    Attributes:
        attention: how the model is told who sees whom. "2d": the padding mask [batch, length], as encoders take it.
            "4d": bool [batch, 1, length, length], for decoders that are causal unless told otherwise. "additive": the
            same shape, 0 where seen and -inf elsewhere, in the model's dtype. "none": nothing; the model masks by
            itself and padding is refused.
        block_size: attention is block-causal on a grid from the first token: a position sees its own block and those
            before it. None: every position sees every other. The configuration's `block_size` or `bd_size` wins.
        causal_context: blocks begin where the canvas begins. A position of the current block sees all of it; what
            comes before is causal. The first token of a block is predicted from the token before it, the others where
            they are (`causal_context.py`).
        shift: 1 when the logits of position i stand at i - 1, as in a model tuned from an autoregressive one.
        position_offset: position id of the first token.
        head_input: the model returns no hidden states; they are what goes into its output embeddings.
        cache: the argument that makes the model write keys and values to the cache that it is given. None: it can be
            given none, as with attention "2d", where padding could not be told from what is kept.
        mask_token_id: used where neither the tokenizer nor the configuration names one.
        eos_token_id, pad_token_id: used where the configurations name none. Several ids may end a response.

    Raises:
        ValueError: a fact is out of range.
    """

    attention: str = "2d"
    block_size: int | None = None
    causal_context: bool = False
    shift: int = 0
    position_offset: int = 0
    head_input: bool = False
    cache: str | None = "use_cache"
    mask_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {self.attention!r}")
        if self.block_size is not None and self.block_size <= 0:
            raise ValueError(f"block_size must be positive, got {self.block_size}")
        if self.block_size is not None and self.attention == "2d":
            raise ValueError("block_size must be None with attention='2d': that mask cannot tell blocks apart")
        if self.shift not in (0, 1):
            raise ValueError(f"shift must be 0 or 1, got {self.shift!r}")
        if self.causal_context and (self.block_size is None or self.shift or self.attention == "none"):
            raise ValueError(
                "causal_context=True needs a block_size, shift=0 and attention '4d' or 'additive', "
                f"got block_size={self.block_size}, shift={self.shift}, attention={self.attention!r}"
            )

    @property
    def tokens_before(self) -> int:
        """How many tokens must come before the first one that the model predicts."""
        return 1 if self.causal_context else self.shift

    @property
    def takes_cache(self) -> bool:
        return self.cache is not None and self.attention != "2d"


ENCODER = Family()
_A2D = Family(attention="4d")
_SDAR = Family(attention="4d", block_size=4, head_input=True, cache="store_kv", mask_token_id=151669)
_END = {"eos_token_id": 156892, "pad_token_id": 156892}
FAMILIES = {
    # transformers' own classes, by model type; their ids come from the configuration or the tokenizer
    "llama": Family(attention="4d"),
    "qwen2": Family(attention="4d", shift=1),
    "qwen3": Family(attention="4d"),
    "roberta": Family(position_offset=2),
    "xlm-roberta": Family(position_offset=2),
    # published checkpoints, by class
    "LLaDAModelLM": Family(
        attention="4d", mask_token_id=126336, eos_token_id=(126081, 126348), pad_token_id=126081
    ),  # LLaDA-8B, LLaDA-1.5
    "DreamModel": Family(
        attention="4d", shift=1, mask_token_id=151666, eos_token_id=151643, pad_token_id=151643
    ),  # Dream, DiffuCoder
    "NemotronLabsDiffusionModel": Family(
        attention="4d", block_size=32, causal_context=True, mask_token_id=100
    ),  # Nemotron-Labs-Diffusion-3B, 8B, 14B
    "A2DLlamaLMHeadModel": _A2D,
    "A2DQwen2LMHeadModel": _A2D,
    "A2DQwen3LMHeadModel": replace(_A2D, mask_token_id=151669),
    # by remote code
    "LLaDAMoEModelLM": Family(mask_token_id=156895, **_END),
    "LLaDA2MoeModelLM": Family(
        attention="additive", block_size=32, cache=None, mask_token_id=156895, **_END
    ),  # LLaDA2.0, 2.1; their code refuses a mask that is not square
    "SDARForCausalLM": _SDAR,
    "SDARMoeForCausalLM": _SDAR,
    "Fast_dLLM_QwenForCausalLM": Family(
        attention="none",
        block_size=32,
        shift=1,
        head_input=True,
        cache="update_past_key_values",
        mask_token_id=151665,
        eos_token_id=151645,
    ),
    "MDLM": Family(attention="none", cache=None, mask_token_id=50257, eos_token_id=50256),
}


# models that have no mask token, whose own `generate` takes our rules
ELSEWHERE = {"diffusion_gemma": "hf_learned_order.interface.diffusion_gemma"}


def register_family(name: str, **facts: Any) -> Family:
    """Enter a model into the table: `register_family("my-model", attention="4d", shift=1)`.

    Args:
        name: the `model_type` of its configuration, or the name of its class.
        facts: fields of `Family`; those left out keep their defaults.

    Raises:
        ValueError: the name has other facts already, or a fact is out of range.
        TypeError: a fact is unknown.
    """
    family = Family(**facts)
    if FAMILIES.setdefault(name, family) != family:
        raise ValueError(
            f"name must not be in the table with other facts, but {name!r} is: {FAMILIES[name]}; "
            "attach(model, family=Family(...)) takes others for one model"
        )
    return family


def find_family(config: PreTrainedConfig, class_name: str | None, *, masked_lm: bool = False) -> Family:
    """The facts about a model, by what it was published as, its class, or its model type.

    Args:
        config: its configuration; `denoiser_family` is set in the one of a natively loaded checkpoint.
        class_name: its class, None where it is not known.
        masked_lm: whether it is known to be a masked language model although transformers does not list it.

    Raises:
        ValueError: it is an encoder-decoder, or neither in the table nor a masked language model.
    """
    refuse_encoder_decoder(config)
    for name in (getattr(config, "denoiser_family", None), class_name, config.model_type):
        if name in FAMILIES:
            family = FAMILIES[name]
            block_size = getattr(config, "block_size", None) or getattr(config, "bd_size", None)
            return family if None in (family.block_size, block_size) else replace(family, block_size=block_size)
    if config.model_type in ELSEWHERE:
        raise ValueError(
            f"model must have a mask token, but one of type {config.model_type!r} has none: its own generate takes our "
            f"rules, see {ELSEWHERE[config.model_type]}"
        )
    if not masked_lm and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise ValueError(
            f"model must be a masked language model or of a known family, got {class_name or 'a model'} of type "
            f"{config.model_type!r}: a causal model cannot denoise. If it was trained with attention in both "
            f"directions, register_family({config.model_type!r}, attention=..., shift=...) says how it is called. "
            f"Known: {', '.join(FAMILIES)}"
        )
    return ENCODER


def refuse_encoder_decoder(config: PreTrainedConfig) -> None:
    """Raises `ValueError` for a T5, BART or the like."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model must not be an encoder-decoder, got type {config.model_type!r}: "
            "prompt and canvas are one sequence of one network"
        )


def refuse_what_cannot_denoise(model: PreTrainedModel) -> None:
    """Raises `ValueError` for an encoder-decoder, a prompt or prefix tuning adapter, a model conditioned on time."""
    refuse_encoder_decoder(model.config)
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                f"model must not have a prompt or prefix tuning adapter, but {name!r} is {adapter.peft_type.value}: "
                "its virtual tokens would stand where positions are counted. LoRA and its relatives work"
            )
    if getattr(model.config, "time_conditioning", False):
        raise ValueError(
            "model must not be conditioned on time, but its configuration has time_conditioning=True: "
            "an order of its own knows no time at which a canvas stands"
        )
