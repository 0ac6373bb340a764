"""`attach(model)`: `model.generate(..., sampler=...)` for any masked diffusion model.

The way in is a class swap. `model.__class__` becomes a subclass of `(LearnedOrderGenerationMixin, type(model))`; the
object stays the same one, so PEFT, accelerate, pipelines and `state_dict` see no difference, and `detach` undoes it.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.decoding.streaming import ended_on_error
from hf_learned_order.denoisers.attention import check_attention
from hf_learned_order.denoisers.checkpoints import check_inv_freq
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.inside.wrappers import base_of, uncompiled
from hf_learned_order.interface.arguments import by_name, foreign, mask_of, of_guarantee
from hf_learned_order.interface.calls import run
from hf_learned_order.interface.settings import Settings, merged, saved_settings
from hf_learned_order.interface.tokenizers import Ending, check_tokenizer, ending_of, warn_of_ending
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.orders.tuned import bring_up

Model = TypeVar("Model", bound=torch.nn.Module)


_Base = PreTrainedModel if TYPE_CHECKING else object  # a mixin for models


class LearnedOrderGenerationMixin(_Base):
    """`generate(sampler=...)`. transformers' `can_generate` looks for "GenerationMixin" in the names of the bases."""

    if TYPE_CHECKING:
        order_scorer: OrderScorer | None
        denoiser_options: dict[str, Any]
        prompt_ending: Ending | None

    def generate(self, *args: Any, sampler: str | Sampler | None = None, **kwargs: Any) -> Any:
        """`learned_order_generate` with a sampler; without one, the model's own `generate`, to the token.

        The sampler is the call's, else the one that a `sampler_config` names: the call's, its `generation_config`'s or
        the model's.

        The prompt may be given as to transformers' `generate`: by position or as `inputs`, ids or what a tokenizer
        returns.

        Raises:
            ValueError: no sampler is given and the model has no `generate` of its own, or transformers' one, which does
                not know another library's names.
        """
        with ended_on_error(kwargs.get("streamer")):
            return self._generate(args, sampler, kwargs)

    def _generate(self, args: tuple, sampler: str | Sampler | None, kwargs: dict[str, Any]) -> Any:
        if sampler is None and "custom_generate" not in kwargs:
            called = [one for one in (*args[1:], kwargs.get("generation_config")) if isinstance(one, GenerationConfig)]
            configs = (getattr(config, "sampler_config", None) for config in (*called, self.generation_config))
            sampler = merged([kwargs.get("sampler_config"), *configs]).get("sampler")
        if sampler is not None:
            return self.learned_order_generate(**by_name(args, kwargs), sampler=sampler)
        own: Any = getattr(super(), "generate", None)
        # a PEFT wrapper has a generate, which hands on to a model that may have none
        holder = super() if base_of(self) is self else base_of(self)
        if own is None or not hasattr(holder, "generate"):
            hint = foreign(kwargs)
            raise ValueError(
                f"sampler must be one of {', '.join(SAMPLERS)}, got None: "
                f"{_base_class(self).__name__} has no generate of its own" + (hint and f"; and {hint}")
            )
        if getattr(own, "__func__", None) is GenerationMixin.generate:
            taken = inspect.signature(self.forward).parameters
            hint = foreign({name: value for name, value in kwargs.items() if name not in taken})
            if hint:
                raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)} with these arguments: {hint}")
        return own(*args, **kwargs)

    @torch.no_grad()
    def learned_order_generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        sampler: str | Sampler,
        sampler_config: dict[str, Any] | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        streamer: BaseStreamer | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        infill: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        token_type_ids: Tensor | None = None,
        **settings: Any,
    ) -> LearnedOrderOutput | Tensor:
        """Fill a canvas of mask tokens behind each prompt, in the order that `sampler` gives.

        Args:
            input_ids: int [batch, prompt], padded on the left or on the right.
            attention_mask: [batch, prompt], 0 at padding; by default inferred as transformers does (`mask_of`).
            sampler: a name of `SAMPLERS`, a `Sampler`, or the name of a guarantee of the scorer, such as
                `"equations@0.02"`: its setting and its step budget then hold.
            sampler_config: options of a sampler given by name, e.g. `{"threshold": 0.9}`.
            generation_config: settings; those of the model's own hold where it has none.
            logits_processor: change what the denoiser believes, at each position, before rules and draws. What each
                is given, and which are refused: `decoding.processors`.
            stopping_criteria: end a response, asked once for each token of it, in order.
            prefix_allowed_tokens_fn: the tokens that may follow in a row behind given ones, as in transformers; from
                left to right, one position a step.
            tokenizer: for `stop_strings`.
            streamer: gets the prompt and the response, in order, and drafts if it has `put_draft`.
            negative_prompt_ids, negative_prompt_attention_mask: with `guidance_scale`; by default the prompt, masked.
            infill: fill the masks in `input_ids` instead of a canvas behind it.
            seed, generator: make random rules and drawn tokens repeatable, by row: alone and in a batch a row draws the
                same. By default torch's global generator is used.
            token_type_ids: as some tokenizers return them; must be 0.
            settings: fields of `Settings`, over those of `generation_config`.

        Raises:
            ValueError: the sampler is unknown or lacks its scorer, the scorer was made for another denoiser, the
                prompt and canvas exceed the model's positions, or settings are unknown, out of range or contradict
                each other.
            TypeError: an argument has the wrong type.
        """
        if isinstance(token_type_ids, Tensor) and token_type_ids.any():
            raise ValueError("token_type_ids must be 0 everywhere: prompt and canvas are one segment")
        if isinstance(sampler, str) and self.order_scorer is not None and sampler in self.order_scorer.guarantees:
            saved = self.order_scorer.guarantees[sampler]
            sampler, sampler_config = of_guarantee(sampler, saved, sampler_config, settings)
        if isinstance(sampler, str):
            options = {"sampler": sampler, **merged([sampler_config])}
            if options["sampler"] != sampler:
                raise ValueError(
                    f"sampler must be the one that sampler_config names, got {sampler!r} and {options['sampler']!r}"
                )
            settings["sampler_config"] = options
        resolved = Settings.resolve(
            settings,
            generation_config,
            own=self.generation_config,
            special_tokens=(self.config, self.denoiser_options["family"]),
            infill=infill,
        )
        rule = resolved.rule(sampler, sampler_config, scorer=self.order_scorer)
        special = {"pad_token_id": resolved.pad_token_id, "eos_token_id": resolved.eos_token_id}
        attention_mask = mask_of("input_ids", input_ids, attention_mask, **special)
        negative_mask = mask_of("negative_prompt_ids", negative_prompt_ids, negative_prompt_attention_mask, **special)
        if not infill:
            warn_of_ending(ending_of(tokenizer) or self.prompt_ending, input_ids, attention_mask)
        denoiser = self._denoiser()
        width = input_ids.shape[-1] if isinstance(input_ids, Tensor) else 0  # `decode` says what is wrong with others
        processors = resolved.processors(width, denoiser.device)
        if prefix_allowed_tokens_fn is not None:
            constraint = PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, resolved.num_return_sequences)
            processors.append(constraint)
        output = run(
            denoiser,
            rule,
            resolved,
            input_ids=input_ids,
            attention_mask=attention_mask,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_mask,
            infill=infill,
            logits_processor=[*processors, *(logits_processor or ())],
            logits_warper=resolved.warpers(denoiser.device),
            stopping_criteria=[*(stopping_criteria or ()), *resolved.criteria(tokenizer)],
            streamer=streamer,
            seed=seed,
            generator=generator,
        )
        return output if resolved.return_dict_in_generate else output.sequences

    def _denoiser(self) -> Denoiser:
        return Denoiser(self, **self.denoiser_options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # the class is made at run time: a pickle names the model's own class and attaches again
        return _rebuild, (_base_class(self),), self.__dict__


def attach(
    model: Model,
    scorer: OrderScorer | str | PathLike | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mask_token_id: int | None = None,
    family: Family | None = None,
) -> Model:
    """Give a masked diffusion model `generate(..., sampler=...)`; returns the same object. May be called again.

    Args:
        model: a transformers model, PEFT-wrapped or not.
        scorer: an `OrderScorer`, or where to load one from; needed for `sampler="learned_order"`. A LoRA adapter that
            was trained along lies beside it and is loaded into `model`, unless that has an adapter already, merged or
            not. An `OrderScorer` brings none.
        tokenizer: names the mask token; one that has none leaves it to the configuration, then to the family. One that
            is another model's is warned of, and prompts behind a token with which it ends a text by itself.
        mask_token_id: the same, as a number.
        family: how to call the model, where `families.FAMILIES` does not know it or is wrong about it; by default as
            the scorer was trained with it.

    Raises:
        ValueError: no mask token is known, the scorer was made for another denoiser, or the model cannot denoise: an
            encoder-decoder, of no known family, causal, prompt tuned, or with rotary frequencies that are not its own.
            Or the denoiser was tuned along with the scorer, and `model` is the one from before.
        TypeError: `model` or `scorer` is of the wrong type.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    wrapped, model = model, uncompiled(model)  # what torch.compile makes hands `generate` on to what it wraps
    scorer, source = _loaded(scorer)
    if tokenizer is not None and mask_token_id is None:
        mask_token_id = tokenizer.mask_token_id
    if family is None and scorer is not None:
        family = scorer.config.family
    # pyrefly: ignore[bad-argument-type] (PEFT's wrapper is no PreTrainedModel)
    denoiser = Denoiser(model, mask_token_id=mask_token_id, family=family)
    if scorer is not None:
        scorer.check_fits(denoiser)
    check_inv_freq(model)  # pyrefly: ignore[bad-argument-type]
    check_attention(denoiser)
    if tokenizer is not None:
        check_tokenizer(tokenizer, denoiser)
    if scorer is not None:
        bring_up(denoiser, scorer.config, source)
    if not isinstance(model, LearnedOrderGenerationMixin):
        model.__class__ = _attached_class(type(model))
    if getattr(model, "generation_config", None) is None:
        # pyrefly: ignore[bad-argument-type]
        model.generation_config = saved_settings(model.config)
    # with this mark, which a configuration made from the model's carries, loading would drop the settings that are ours
    settings: Any = model.generation_config
    settings._from_model_config = False
    # not as a submodule: the model's state_dict and parameters stay its own
    model.__dict__["order_scorer"] = scorer
    model.__dict__["prompt_ending"] = ending_of(tokenizer)
    model.__dict__["denoiser_options"] = {"mask_token_id": denoiser.mask_token_id, "family": denoiser.family}
    return wrapped


def _loaded(scorer: OrderScorer | str | PathLike | None) -> tuple[OrderScorer | None, str | PathLike | None]:
    """A scorer, and where it was loaded from."""
    if isinstance(scorer, str | PathLike):
        return OrderScorer.from_pretrained(scorer), scorer
    if scorer is not None and not isinstance(scorer, OrderScorer):
        raise TypeError(f"scorer must be an OrderScorer or a path, got {type(scorer).__name__}")
    return scorer, None


def detach(model: Model) -> Model:
    """Undo `attach`; returns the same object."""
    wrapped, model = model, uncompiled(model)
    model.__class__ = _base_class(model)
    for name in ("order_scorer", "prompt_ending", "denoiser_options"):
        model.__dict__.pop(name, None)
    return wrapped


@functools.cache
def _attached_class(base: type) -> type:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (LearnedOrderGenerationMixin, base), names)


def _base_class(model: object) -> type:
    kind = type(model)
    return kind.__bases__[1] if LearnedOrderGenerationMixin in kind.__bases__ else kind


def _rebuild(base: type) -> PreTrainedModel:
    kind = _attached_class(base)
    return kind.__new__(kind)  # pyrefly: ignore[no-matching-overload]
