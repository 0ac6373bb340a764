"""What an unmasking rule is: it gets a `Step` and its own state, and returns a `Proposal`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_learned_order.denoisers.predictions import Step

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# What a rule remembers from step to step: tensors with the batch first. The loop drops the rows that finish. `propose`
# may write over what it is given.
State = tuple[Tensor, ...]


class Proposal(NamedTuple):
    """What a rule says about one step.

    Attributes:
        unmask: bool [batch, canvas]; ignored outside `step.masked`.
        state: what `propose` gets at the next step, without the rows that have finished by then.
        remask: bool [batch, canvas], for rules with `remasks`; ignored outside `step.unmasked`.
    """

    unmask: Tensor
    state: State = ()
    remask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A rule. It keeps nothing between steps but its state, so one sampler serves any number of generations at once.

    Attributes:
        needs_hidden_states: the rule reads `step.hidden_states`, the denoiser's last ones; or a tuple, the numbers of
            those that it reads (`layers.py`).
        needs_attentions: the rule reads `step.attentions`. The model must have attn_implementation="eager".
        is_random: the rule draws, so that several responses to one prompt can differ.
        remasks: the rule may propose to mask an unmasked position again.
        reads_unmasked: the rule reads `step.predictions` at positions that are not masked too; for others they are
            computed, and the denoiser's head is asked, where `step.masked` only.
    """

    needs_hidden_states: ClassVar[bool | tuple[int, ...]] = False
    needs_attentions: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    remasks: ClassVar[bool] = False
    reads_unmasked: ClassVar[bool] = False

    def init_state(self, step: Step) -> State:
        """What the first `propose` gets; `step` is the first one."""
        return ()

    def propose(self, step: Step, state: State) -> Proposal:
        raise NotImplementedError

    def preference(self, step: Step) -> Tensor:
        """Float [batch, canvas]: the masked positions that this rule is to take first have the largest.

        What `verification` drafts by. By default the surest first.
        """
        return step.predictions.confidence

    # transformers takes what it hands on from this signature
    def __call__(
        self,
        model: "PreTrainedModel",
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: "GenerationConfig",
        max_denoising_steps: int | None = None,
        block_length: int | None = None,
        kv_cache: str | None = None,
        infill: bool = False,
        mask_token_id: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        output_order: bool | None = None,
        verify: "str | Sampler | None" = None,
        num_assistant_tokens: int | None = None,
        **prepared: Any,
    ) -> Any:
        """`model.generate(ids, custom_generate=sampler)`: decoding without `attach`, for models with a `generate`.

        `prepared` is what transformers makes for its own loop; all but `attention_mask` is not used.
        """
        # by the public name: a call of `generate` is the business of a room above this one
        from hf_learned_order import generate_custom

        return generate_custom(
            model,
            input_ids,
            sampler=self,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            attention_mask=prepared["attention_mask"],
            infill=infill,
            mask_token_id=mask_token_id,
            seed=seed,
            generator=generator,
            max_denoising_steps=max_denoising_steps,
            block_length=block_length,
            kv_cache=kv_cache,
            output_order=output_order,
            verify=verify,
            num_assistant_tokens=num_assistant_tokens,
        )


def check_range(name: str, value: float, *, low: float, high: float = float("inf")) -> None:
    """Raises `ValueError` unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low}, {high}], got {value!r}")


def check_integer(name: str, value: int, *, low: int) -> None:
    """Raises `ValueError` unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer of {low} or more, got {value!r}")
