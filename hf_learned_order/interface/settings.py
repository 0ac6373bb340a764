"""What a call of `generate` asks for: its arguments, else the generation configuration, else the defaults.

Settings that transformers knows have its names and live in its `GenerationConfig`, which the model saves and loads.
Four are ours, and a `GenerationConfig` holds them as it holds any attribute: `max_denoising_steps`, `block_length`,
`kv_cache` and the nested `sampler_config`, e.g. `{"sampler": "threshold", "threshold": 0.8}`. There is no attribute
`sampler`: with one, an unattached model would take `generate(sampler=...)` for a setting and decode from left to right
without a word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StopStringCriteria,
)

from hf_learned_order.common.checks import check_positive
from hf_learned_order.decoding.inputs import DEFAULT_LENGTH
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.interface.arguments import as_ids, is_neutral, understood, warn_unused
from hf_learned_order.interface.processors import PROCESSORS, WARPERS, processor_of
from hf_learned_order.orders.scorer import OrderScorer

# these read what comes before a position, which most rules do not know: only who asks for them in the call gets them
CALL_ONLY = {"sequence_bias", "no_repeat_ngram_size", "bad_words_ids"}
ABOUT_EOS = {"min_length", "min_new_tokens", "exponential_decay_length_penalty"}
# what is said of canvases; infilling takes it from the call only
CANVAS_ONLY = {
    "max_new_tokens",
    "max_length",
    "block_length",
    "kv_cache",
    "stop_strings",
    "min_length",
    "min_new_tokens",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "begin_suppress_tokens",
}
# for drawn tokens only -> the values that ask for nothing without any: off, transformers' default, greedy
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0, 0.0),
    **{name: (off,) for name, (_, off) in WARPERS.items()},
    "top_k": (0, 50),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one call. None: not set, the default of `decode` holds.

    Attributes:
        sampler_config: options of the rule; `"sampler"` among them names it.
        max_new_tokens, max_length: length of the canvas, or of prompt and canvas; the first one counts.
        max_denoising_steps: as in `decode`; by default what `calls.steps_of` says.
        block_length, kv_cache: as in `decode`.
        do_sample: draw tokens at `temperature` instead of taking the most likely ones.
        top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: which tokens may be drawn, by the classes in
            `WARPERS`; used with `do_sample` and off by default.
        repetition_penalty, suppress_tokens, min_new_tokens, min_length, forced_eos_token_id, begin_suppress_tokens,
            exponential_decay_length_penalty, bad_words_ids, sequence_bias, no_repeat_ngram_size: change what the
            denoiser believes, by the classes in `PROCESSORS`.
        guidance_scale: classifier-free guidance; 1 is none.
        verify: the rule, or its name, whose response with one step for each position is wanted; see `decode`.
        num_assistant_tokens: with `verify`, the most canvases of a row in one call.
        stop_strings: texts that end a response.
        num_return_sequences: responses to each prompt.
        eos_token_id, pad_token_id: also taken from the model's configuration.
        return_dict_in_generate: return a `LearnedOrderOutput` instead of its `sequences`.
        output_order: whether `order` is in it.
    """

    sampler_config: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    max_length: int | None = None
    max_denoising_steps: int | None = None
    block_length: int | None = None
    kv_cache: str | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    suppress_tokens: list[int] | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: Any = None
    no_repeat_ngram_size: int | None = None
    guidance_scale: float | None = None
    verify: str | Sampler | None = None
    num_assistant_tokens: int | None = None
    stop_strings: str | list[str] | None = None
    num_return_sequences: int = 1
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    return_dict_in_generate: bool = False
    output_order: bool = True

    def __post_init__(self):
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float):
            raise ValueError(f"temperature must be a number, got {self.temperature!r}")
        if self.do_sample and not self.temperature > 0:
            raise ValueError(f"temperature must be positive when do_sample=True, got {self.temperature!r}")
        check_positive("num_return_sequences", self.num_return_sequences)
        texts = self.stop_strings if isinstance(self.stop_strings, list | tuple) else [self.stop_strings]
        if self.stop_strings is not None and not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop_strings must be a text or a list of texts, none empty, got {self.stop_strings!r}")

    @classmethod
    def resolve(
        cls,
        given: dict[str, Any],
        generation_config: GenerationConfig | None,
        *,
        own: GenerationConfig,
        special_tokens: Sequence[object] = (),
        infill: bool = False,
    ) -> "Settings":
        """From the call's arguments `given`, then its `generation_config`, then the model's `own`, then the defaults.

        What else the model's `own` sets is for its own `generate` and is not looked at; nor, with `infill`, is what it
        says of canvases behind a prompt. `special_tokens` are where to look for EOS and padding last. What is given
        for drawn tokens, where none are drawn, is warned of. With `verify` the model's own budget does not hold.

        Raises:
            ValueError: `given` or `generation_config` sets something that decoding with a sampler does not know, or
                `given` says how to verify without a rule to be verified.
        """
        names = [entry.name for entry in fields(cls)]
        called = {} if generation_config is None else generation_config.to_diff_dict()
        called = {name: value for name, value in called.items() if not name.startswith("_")}
        given, called = understood("generate", given, names), understood("generation_config", called, names)
        found: dict[str, Any] = {}
        for name in names:
            hidden = name in CALL_ONLY or (infill and name in CANVAS_ONLY)
            models = [] if hidden else [getattr(own, name, None)]
            if name in ("eos_token_id", "pad_token_id"):
                models += [getattr(holder, name, None) for holder in special_tokens]
                # with -1 a model's configuration says that there is none, as Llama's once did
                models = [value for value in models if value != -1]
            values = [value for value in (given.get(name), called.get(name), *models) if value is not None]
            if values:
                found[name] = merged(values) if name == "sampler_config" else as_ids(values[0])
        if "verify" in found and "max_denoising_steps" not in {**called, **given}:
            found.pop("max_denoising_steps", None)  # a saved budget is not that of the slow rule
        elif "verify" not in found and not is_neutral("num_assistant_tokens", given.get("num_assistant_tokens")):
            raise ValueError(
                f"num_assistant_tokens must not be set without verify, got {given['num_assistant_tokens']!r}"
            )
        settings = cls(**found)
        if not settings.do_sample:
            # who turns draws off in the call needs not unset what a configuration has for them
            asked = given if "do_sample" in given else {**called, **given}
            warn_unused({name: asked[name] for name, off in SAMPLING.items() if asked.get(name) not in (None, *off)})
        return settings

    def canvas_length(self, prompt_length: int) -> int | None:
        """The length of the canvas. Raises `ValueError` where `max_length` leaves no room for one."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        if self.max_length <= prompt_length:
            raise ValueError(f"max_length must exceed the prompt's {prompt_length} tokens, got {self.max_length!r}")
        return self.max_length - prompt_length

    def rule(
        self, sampler: str | Sampler, sampler_config: dict[str, Any] | None, *, scorer: OrderScorer | None
    ) -> Sampler:
        """The rule that the call names, with the options that were found; the call's instance comes with its own.

        Raises:
            ValueError: as `make_sampler`, or several responses would all be the same.
        """
        options = {name: value for name, value in self.sampler_config.items() if name != "sampler"}
        rule = make_sampler(sampler, options if isinstance(sampler, str) else sampler_config, scorer=scorer)
        if self.num_return_sequences > 1 and not (self.do_sample or rule.is_random):
            raise ValueError(
                "num_return_sequences must be 1 without do_sample=True or a random sampler, "
                f"got {self.num_return_sequences}: the responses would be equal"
            )
        return rule

    def slow_rule(self) -> Sampler | None:
        """The rule that `verify` names. Raises `ValueError` where it cannot be verified."""
        if self.verify is None or isinstance(self.verify, Sampler):
            return self.verify
        allowed = [
            name for name, rule in SAMPLERS.items() if not (rule.is_random or rule.remasks or rule.needs_attentions)
        ]
        if self.verify not in allowed:
            raise ValueError(
                f"verify must be a rule that neither draws, nor remasks, nor is learned, {', '.join(allowed)}; "
                f"got {self.verify!r}"
            )
        return make_sampler(self.verify)

    def criteria(self, tokenizer: PreTrainedTokenizerBase | None) -> list[StoppingCriteria]:
        """What `stop_strings` ask for. Raises `ValueError` where they lack their tokenizer."""
        if not self.stop_strings:
            return []
        if tokenizer is None:
            raise ValueError("tokenizer must be given with stop_strings, got None")
        return [StopStringCriteria(tokenizer, self.stop_strings)]

    def warpers(self, device: torch.device | str = "cpu") -> LogitsProcessorList:
        """What narrows the choice of tokens when they are drawn."""
        wanted = self._wanted(WARPERS) if self.do_sample else {}
        return LogitsProcessorList(
            [processor_of(WARPERS[name][0], value, device=device) for name, value in wanted.items()]
        )

    def processors(self, prompt_length: int, device: torch.device | str = "cpu") -> LogitsProcessorList:
        """What changes the denoiser's beliefs behind prompts of this length, padding included.

        Where nothing ends a response, what is about its end is left out.
        """
        eos, made = self.eos_token_id, LogitsProcessorList()
        for name, value in self._wanted(PROCESSORS).items():
            if name in ABOUT_EOS and eos in (None, []):
                continue
            before: tuple[Any, ...] = ()
            if name == "forced_eos_token_id":
                before = (prompt_length + (self.canvas_length(prompt_length) or DEFAULT_LENGTH),)
            elif name == "min_new_tokens":
                before = (prompt_length,)
            behind = {
                **dict.fromkeys(("min_length", "min_new_tokens", "bad_words_ids"), (eos,)),
                "exponential_decay_length_penalty": (eos, prompt_length),
                "begin_suppress_tokens": (prompt_length,),
            }.get(name, ())
            made.append(processor_of(PROCESSORS[name][0], *before, value, *behind, device=device))
        return made

    def _wanted(self, table: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in table}
        return {name: value for name, value in values.items() if value is not None and value != table[name][1]}


def merged(configs: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """One `sampler_config` from several, the first before the others; one that names another rule hides those behind.

    Raises:
        TypeError: one of them is no dict.
    """
    result: dict[str, Any] = {}
    for options in reversed([options for options in configs if options is not None]):
        if not isinstance(options, dict):
            raise TypeError(f"sampler_config must be a dict, got {type(options).__name__}")
        if "sampler" in options and result.get("sampler", options["sampler"]) != options["sampler"]:
            result = {}
        result |= options
    return result


def saved_settings(config: PreTrainedConfig) -> GenerationConfig:
    """What was saved beside the model. transformers loads it for models with a `generate` of their own only."""
    try:
        return GenerationConfig.from_pretrained(config.name_or_path or "")
    except OSError:  # not a folder or a repository, or one that has no such file
        return GenerationConfig.from_model_config(config)
