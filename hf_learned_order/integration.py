"""`attach(model)`: `model.generate(..., sampler=...)` for any masked diffusion model.

The way in is a class swap. `model.__class__` becomes a subclass of `(LearnedOrderGenerationMixin, type(model))`; the
object stays the same one, so PEFT, accelerate, pipelines and `state_dict` see no difference, and `detach` undoes it.
"""

import copy
import functools
import inspect
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_learned_order.checkpoints import check_inv_freq
from hf_learned_order.denoisers import Denoiser
from hf_learned_order.families import Family
from hf_learned_order.generation import LearnedOrderOutput, decode
from hf_learned_order.samplers import SAMPLERS, Sampler, make_sampler
from hf_learned_order.scorer import OrderScorer

Model = TypeVar("Model", bound=torch.nn.Module)


_Base = PreTrainedModel if TYPE_CHECKING else object  # a mixin for models


class LearnedOrderGenerationMixin(_Base):
    """`generate(sampler=...)`. transformers' `can_generate` looks for "GenerationMixin" in the names of the bases."""

    if TYPE_CHECKING:
        order_scorer: OrderScorer | None
        denoiser_options: dict[str, Any]

    def generate(self, *args: Any, sampler: str | Sampler | None = None, **kwargs: Any) -> Any:
        """`learned_order_generate` with a sampler; without one, the model's own `generate`, to the token.

        Raises:
            ValueError: no sampler is given and the model has no `generate` of its own.
        """
        if sampler is not None:
            return self.learned_order_generate(*args, sampler=sampler, **kwargs)
        own = getattr(super(), "generate", None)
        # a PEFT wrapper has a generate, which hands on to a model that may have none
        holder = self.get_base_model() if hasattr(self, "get_base_model") else super()  # pyrefly: ignore[not-callable]
        if own is None or not hasattr(holder, "generate"):
            raise ValueError(
                f"sampler must be one of {', '.join(SAMPLERS)}, got None: "
                f"{_base_class(self).__name__} has no generate of its own"
            )
        return own(*args, **kwargs)

    @torch.no_grad()
    def learned_order_generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        sampler: str | Sampler,
        sampler_config: dict[str, Any] | None = None,
        max_new_tokens: int = 128,
        max_denoising_steps: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        token_type_ids: Tensor | None = None,
        return_dict_in_generate: bool = False,
    ) -> LearnedOrderOutput | Tensor:
        """Fill a canvas of mask tokens behind each prompt, in the order that `sampler` gives.

        Args:
            input_ids: int [batch, prompt], padded on the left or on the right.
            attention_mask: [batch, prompt], 0 at padding.
            sampler: a name of `SAMPLERS` or a `Sampler`.
            sampler_config: options of a sampler given by name, e.g. `{"threshold": 0.9}`.
            max_new_tokens: length of the canvas.
            max_denoising_steps: step budget T; by default one for each position.
            do_sample: draw tokens at `temperature` instead of taking the most likely one.
            temperature: used with `do_sample`.
            seed: makes random rules and drawn tokens repeatable; by default torch's global generator is used.
            eos_token_id, pad_token_id: by default those of `generation_config`, then of `config`, then of the family.
            token_type_ids: as some tokenizers return them; must be 0.
            return_dict_in_generate: return a `LearnedOrderOutput` instead of its `sequences`.

        Raises:
            ValueError: the sampler is unknown or lacks its scorer, the scorer was made for another denoiser, the
                prompt and canvas exceed the model's positions, or a number is out of range.
            TypeError: an argument has the wrong type.
        """
        if token_type_ids is not None and token_type_ids.any():
            raise ValueError("token_type_ids must be 0 everywhere: prompt and canvas are one segment")
        if do_sample and not temperature > 0:
            raise ValueError(f"temperature must be positive when do_sample=True, got {temperature!r}")
        denoiser = self._denoiser()
        rule = make_sampler(sampler, sampler_config, scorer=self.order_scorer)
        scorer = getattr(rule, "scorer", None)
        if isinstance(scorer, OrderScorer):
            scorer.check_fits(denoiser)
            scorer.to(denoiser.device)  # pyrefly: ignore[bad-argument-type]
        generator = None if seed is None else torch.Generator(denoiser.device).manual_seed(seed)
        training = [module for module in self.modules() if module.training]  # a part may be frozen in eval mode
        self.eval()
        try:
            output = decode(
                denoiser,
                input_ids,
                attention_mask,
                sampler=rule,
                max_new_tokens=max_new_tokens,
                max_denoising_steps=max_denoising_steps,
                temperature=temperature if do_sample else 0.0,
                eos_token_id=self._special_token("eos_token_id", eos_token_id),
                pad_token_id=self._special_token("pad_token_id", pad_token_id),
                generator=generator,
            )
        finally:
            for module in training:
                module.training = True
        return output if return_dict_in_generate else output.sequences

    def _denoiser(self) -> Denoiser:
        return Denoiser(self, **self.denoiser_options)

    def _special_token(self, name: str, given: Any) -> Any:
        holders = (self.generation_config, self.config, self.denoiser_options["family"])
        for value in (given, *(getattr(holder, name, None) for holder in holders)):
            if value is not None:
                return value
        return None

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
        scorer: an `OrderScorer`, or where to load one from; needed for `sampler="learned_order"`.
        tokenizer: names the mask token; one that has none leaves it to the configuration, then to the family.
        mask_token_id: the same, as a number.
        family: how to call the model, where `families.FAMILIES` does not know it or is wrong about it.

    Raises:
        ValueError: no mask token is known, the scorer was made for another denoiser, or the model cannot denoise: an
            encoder-decoder, of no known family, causal, prompt tuned, or with rotary frequencies that are not its own.
        TypeError: `model` or `scorer` is of the wrong type.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    if isinstance(scorer, str | PathLike):
        scorer = OrderScorer.from_pretrained(scorer)
    if scorer is not None and not isinstance(scorer, OrderScorer):
        raise TypeError(f"scorer must be an OrderScorer or a path, got {type(scorer).__name__}")
    if tokenizer is not None and mask_token_id is None:
        mask_token_id = tokenizer.mask_token_id
    # pyrefly: ignore[bad-argument-type] (PEFT's wrapper is no PreTrainedModel)
    denoiser = Denoiser(model, mask_token_id=mask_token_id, family=family)
    if scorer is not None:
        scorer.check_fits(denoiser)
    check_inv_freq(model)  # pyrefly: ignore[bad-argument-type]
    denoiser.check_attention()
    model.__class__ = _attached_class(_base_class(model))
    if getattr(model, "generation_config", None) is None:
        # pyrefly: ignore[bad-argument-type]
        model.generation_config = GenerationConfig.from_model_config(model.config)
    # not as a submodule: the model's state_dict and parameters stay its own
    model.__dict__["order_scorer"] = scorer
    model.__dict__["denoiser_options"] = {"mask_token_id": denoiser.mask_token_id, "family": denoiser.family}
    return model


def detach(model: Model) -> Model:
    """Undo `attach`; returns the same object."""
    model.__class__ = _base_class(model)
    for name in ("order_scorer", "denoiser_options"):
        model.__dict__.pop(name, None)
    return model


def custom_generate(
    model: PreTrainedModel,
    scorer: str | PathLike,
    *,
    inputs: Tensor | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> LearnedOrderOutput | Tensor:
    """What `model.generate(..., custom_generate="user/scorer", trust_remote_code=True)` runs; `model` stays as it is.

    Args:
        model: the denoiser.
        scorer: the repository (or folder) that holds the scorer and a `generation_config.json`.
        inputs: the prompt, where `generate` got it by position.
        revision, token: of the repository.
        **kwargs: of `learned_order_generate`; what is None counts as not given. By default the settings of the
            repository's `generation_config.json`.

    Raises:
        TypeError: an argument of transformers' `generate` that this decoding does not have.
    """
    known = inspect.signature(LearnedOrderGenerationMixin.learned_order_generate).parameters
    given = {name: value for name, value in {"input_ids": inputs, **kwargs}.items() if value is not None}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(f"arguments of generate must be among {', '.join(list(known)[1:])}, got {', '.join(unknown)}")
    place: dict[str, Any] = {"revision": revision, "token": token}
    loaded = OrderScorer.from_pretrained(scorer, **place).eval()
    settings = GenerationConfig.from_pretrained(scorer, **place).to_diff_dict()
    defaults = {name: value for name, value in settings.items() if name in known}
    # a shallow copy shares the weights; the class swap is its own
    attached: Any = attach(copy.copy(model), loaded, mask_token_id=loaded.config.mask_token_id)
    return attached.learned_order_generate(**{"sampler": "learned_order", **defaults, **given})


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
