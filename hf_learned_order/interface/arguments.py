"""What a call of `generate` may say: transformers' habits, and the names that other libraries have for our settings.

What transformers takes for a default, or what changes nothing here, is accepted. What means something that decoding
with a sampler does not have is refused, each with what to write instead. It is the same for an argument of the call and
for an attribute of its `generation_config`.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from hf_learned_order.decoding.samplers.table import ELSEWHERE as RULES_ELSEWHERE

# of transformers' own loop, or seen by itself (`synced_gpus`): changes no token here, whatever the value
IGNORED = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "low_memory",
    "max_cache_len",
    "prefill_chunk_size",
    "renormalize_logits",
    "synced_gpus",
    "transformers_version",
    "use_cache",
}
# name -> the value with which it asks for nothing; None and False are such values for whatever transformers knows
NEUTRAL: dict[str, Any] = {
    "alg_temp": 0,
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "cfg_scale": 0,
    "diversity_penalty": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "length_penalty": 1,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "num_beam_groups": 1,
    "num_beams": 1,
    "target_lookbehind": 10,
}
# arguments of LLaDA, Dream, dLLM, Fast-dLLM, SDAR and LLaDA2 -> what to write here
ELSEWHERE = {
    "alg": "sampler",
    "alg_temp": 'sampler="iid" or a learned order, which draw their positions',
    "block_size": "block_length",
    "cfg_keep_tokens": "negative_prompt_ids, the prompt with everything else masked",
    "cfg_scale": "guidance_scale, which is cfg_scale plus 1",
    "confidence_eos_eot_inf": "a rule of your own",
    "confidence_threshold": 'sampler="threshold", sampler_config={"threshold": ...}',
    "denoising_steps": "max_denoising_steps",
    "dual_cache": 'kv_cache="dual"',
    "dynamic_threshold": 'sampler="threshold", sampler_config={"threshold": ...}',
    "eos_early_stop": "eos_token_id; a row always ends at its first EOS",
    "eos_id": "eos_token_id",
    "factor": 'sampler="factor", sampler_config={"factor": ...}',
    "gen_length": "max_new_tokens",
    "generation_logits_hook_func": "logits_processor",
    "generation_tokens_hook_func": "a rule of your own, or a streamer",
    "logits_eos_inf": "suppress_tokens=[eos]",
    "mask_id": "attach(model, mask_token_id=...)",
    "mask_token_id": "attach(model, mask_token_id=...)",
    "output_history": "return_dict_in_generate=True, whose order and token_log_probs say it",
    "prompt": "input_ids",
    "prompt_ids": "input_ids",
    "remasking": "sampler",
    "remasking_strategy": "sampler",
    "return_dict": "return_dict_in_generate",
    "right_shift_logits": "attach(model, family=Family(shift=1, ...))",
    "small_block_size": "block_length",
    "steps": "max_denoising_steps",
    "stochastic_transfer": 'sampler="iid", which draws its counts',
    "stop_token": "eos_token_id",
    "threshold": 'sampler="threshold", sampler_config={"threshold": ...}',
    "use_block_cache": 'kv_cache="prefix" or "dual"',
}
_LEFT_TO_RIGHT = "it belongs to decoding from left to right"
_OUTPUT = "return_dict_in_generate=True gives order, token_log_probs and nfe instead"
# transformers' own arguments that mean nothing here -> why
REFUSED = {
    "assistant_model": _LEFT_TO_RIGHT,
    "constraints": _LEFT_TO_RIGHT,
    "encoder_no_repeat_ngram_size": "there is no encoder",
    "encoder_repetition_penalty": "there is no encoder",
    "force_words_ids": _LEFT_TO_RIGHT,
    "forced_bos_token_id": "a response follows its prompt",
    "inputs_embeds": "masks are token ids, so a prompt must be input_ids",
    "length_penalty": "there are no beams",
    "max_time": "max_denoising_steps bounds what a call costs",
    "num_beams": "there are no beams; num_return_sequences gives several responses",
    "output_attentions": _OUTPUT,
    "output_hidden_states": _OUTPUT,
    "output_logits": _OUTPUT,
    "output_scores": _OUTPUT,
    "past_key_values": "a canvas is read from both sides; kv_cache keeps keys and values",
    "penalty_alpha": _LEFT_TO_RIGHT,
    "position_ids": "positions are counted from the attention_mask",
    "prompt_lookup_num_tokens": _LEFT_TO_RIGHT,
    "remove_invalid_values": "logits that are no numbers are an error",
    "token_healing": "the tokens of a prompt stay as they are",
    "watermarking_config": "a watermark is a logits processor, which knows what stands before from left to right only",
}
_TRANSFORMERS = {*vars(GenerationConfig()), *REFUSED, "logits_processor", "stopping_criteria", "trust_remote_code"}


def understood(source: str, given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of `given` that are among `names`, without what is None; `source` is what they came by.

    Raises:
        ValueError: something else is given that is not neutral. The message says of each what to write here.
    """
    others = {name: value for name, value in given.items() if name not in names and not is_neutral(name, value)}
    if others:
        said = "; ".join(_answer(name, value) for name, value in others.items())
        raise ValueError(f"with a sampler, {source} must set only {', '.join(sorted(names))}; got {said}")
    return {name: value for name, value in given.items() if name in names and value is not None}


def is_neutral(name: str, value: Any) -> bool:
    """Whether it asks for nothing that decoding with a sampler does not do anyway."""
    if value is None or name in IGNORED:
        return True
    if isinstance(value, Tensor):
        return False
    if value is False:
        return name in _TRANSFORMERS or name in ELSEWHERE
    return name in NEUTRAL and not isinstance(value, bool) and value == NEUTRAL[name]


def foreign(given: Mapping[str, Any]) -> str:
    """What to write for those of `given` that are other libraries' names; "" where none is."""
    return "; ".join(
        _answer(name, value) for name, value in given.items() if name in ELSEWHERE and not is_neutral(name, value)
    )


def _answer(name: str, value: Any) -> str:
    if name in ELSEWHERE:
        instead = ELSEWHERE[name]
        if instead == "sampler" and value in RULES_ELSEWHERE:
            instead = f'sampler="{RULES_ELSEWHERE[value]}"'
        shown = f"={value!r}" if isinstance(value, str | int | float) else ""
        return f"{name}{shown} (here: {instead})"
    return f"{name} ({REFUSED[name]})" if name in REFUSED else name


def by_name(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names: `input_ids`, `attention_mask`, ..., however the prompt was given.

    Args:
        args: by position: the prompt, and its attention mask or, as in transformers, a generation configuration. The
            prompt may be what a tokenizer returns.
        kwargs: by name; the prompt is `input_ids` or `inputs`.

    Raises:
        ValueError: something is given twice.
        TypeError: there is no prompt, there are more arguments by position, or `generation_config` is none.
    """
    if len(args) > 2:
        raise TypeError(f"arguments by position must be a prompt and its attention mask, got {len(args)}")
    named = {name: value for name, value in kwargs.items() if value is not None}
    second = "generation_config" if len(args) > 1 and isinstance(args[1], GenerationConfig) else "attention_mask"
    _add(named, dict(zip(("inputs", second), args, strict=False)))
    prompt = named.pop("inputs", None)
    if isinstance(named.get("input_ids"), Mapping):
        prompt = named.pop("input_ids")
    if prompt is not None:
        _add(named, prompt if isinstance(prompt, Mapping) else {"input_ids": prompt})
    if "input_ids" not in named:
        raise TypeError("input_ids must be an integer tensor [batch, prompt], got None")
    config = named.get("generation_config")
    if not isinstance(config, GenerationConfig | None):
        raise TypeError(f"generation_config must be a GenerationConfig, got {type(config).__name__}")
    return named


def _add(named: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if value is None:
            continue
        if name in named:
            raise ValueError(f"{name} must be given once, but it is given twice")
        named[name] = value


def mask_of(
    name: str, ids: Any, attention_mask: Tensor | None, *, pad_token_id: Any, eos_token_id: Any
) -> Tensor | None:
    """The attention mask of `ids` [batch, prompt]: the one that is given, else inferred as transformers does.

    Everything that is `pad_token_id` is padding, unless that token also ends responses: then nothing can be inferred,
    and rows that begin or end with it are warned of.

    Args:
        name: what the ids are called.
        ids: what was given for them.
        attention_mask: the one that was given.
        pad_token_id, eos_token_id: of the settings; where no padding is named, it is the first EOS.
    """
    if attention_mask is not None or not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] == 0:
        return attention_mask
    ends = eos_token_id if isinstance(eos_token_id, list | tuple) else [eos_token_id]
    pad = pad_token_id if pad_token_id is not None else next(iter(ends), None)
    if not isinstance(pad, int):  # unknown; `decode` says what is wrong with another type
        return None
    padding = ids == pad
    if pad not in ends:
        return (~padding).long() if padding.any() else None
    mask_name = f"{name.removesuffix('_ids')}_attention_mask".removeprefix("input_")
    if len(ids) > 1 and bool(padding[:, [0, -1]].any()):
        warnings.warn(
            f"{mask_name} was not given and cannot be inferred: {name} begin or end with {pad}, which is both padding "
            "and EOS, and it is read as text",
            stacklevel=2,
        )
    return None


def of_guarantee(
    name: str, saved: Mapping[str, Any], sampler_config: Any, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The rule of the guarantee `name` of a scorer, and its options; its step budget goes into `settings`.

    Raises:
        ValueError: a `sampler_config` or a step budget is given as well.
    """
    given = {"sampler_config": sampler_config, "max_denoising_steps": settings.get("max_denoising_steps")}
    if any(value is not None for value in given.values()):
        raise ValueError(f"{' and '.join(given)} must be None with the guarantee {name!r}, which has its own")
    settings["max_denoising_steps"] = saved["max_denoising_steps"]
    return saved["sampler"], saved["options"]


def warn_unused(values: Mapping[str, Any]) -> None:
    """Warns of what is for drawn tokens, where none are drawn."""
    if values:
        said = ", ".join(f"{name}={value!r}" for name, value in values.items())
        warnings.warn(f"{said} counts with do_sample=True only: the most likely tokens are taken", stacklevel=2)


def as_ids(value: Any) -> Any:
    """A tensor of token ids as the number or list that it holds; anything else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor) else value
