"""Our rules in DiffusionGemma's own `generate`: which tokens of its canvas a step accepts.

    model = DiffusionGemmaForBlockDiffusion.from_pretrained(...)
    model.generate(**inputs, sampler_config=AcceptanceConfig(sampler=FactorSampler(factor=1.5)))

DiffusionGemma knows no mask token. A canvas begins as random tokens; at each step the denoiser draws a token at every
position, the sampler accepts some of them, and the others become random again. So every position is eligible at every
step, and what one step accepts the next may take back. Hidden states are not shown to a sampler.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSampler as AcceptanceBase
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from hf_learned_order.decoding.samplers.base import Sampler, State
from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.laws.base import at_least_one

# the rules that choose the count themselves, from what the denoiser believes: a share of the positions that are still
# masked means nothing here
ACCEPTANCE = ("threshold", "factor", "entropy_bound", "klass", "learned_order")


@dataclass
class AcceptanceConfig(EntropyBoundSamplerConfig):
    """`sampler_config` of `generate`, with a rule in the place of the entropy bound. It is not saved with a model.

    Attributes:
        entropy_bound: not used; transformers' class has it.
        sampler: the rule, one of `ACCEPTANCE`; a `LearnedOrderSampler` with a scorer of `denoiser_hidden_size` 0.

    Raises:
        ValueError: the rule is another one, or its scorer asks for hidden states.
    """

    entropy_bound: float = 0.1
    sampler: Sampler = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if type(self.sampler) not in [SAMPLERS[name] for name in ACCEPTANCE]:
            names = ", ".join(SAMPLERS[name].__name__ for name in ACCEPTANCE)
            raise ValueError(f"sampler must be one of {names}, got {self.sampler!r}")
        if self.sampler.needs_hidden_states:
            raise ValueError(
                "scorer must have denoiser_hidden_size 0: DiffusionGemma shows a sampler its logits, no hidden states"
            )


class AcceptanceSampler(AcceptanceBase):
    """Accepts what the rule of an `AcceptanceConfig` unmasks, at least one position a step, and renoises the rest."""

    def __init__(self, config: AcceptanceConfig, canvas_length: int, vocab_size: int, max_denoising_steps: int):
        super().__init__(config, canvas_length, vocab_size, max_denoising_steps)
        self.rule = config.sampler
        self.max_denoising_steps = max_denoising_steps
        self.state: State = ()

    # pyrefly: ignore[bad-override] (LongTensor is a name for what Tensor is)
    def accept_canvas(
        self, current_canvas: Tensor, denoiser_canvas: Tensor, logits: Tensor, cur_step: int | Tensor
    ) -> Tensor:
        """The canvas [batch, canvas] with the accepted tokens of `denoiser_canvas`; `cur_step` counts down to 1."""
        every = torch.ones_like(current_canvas, dtype=torch.bool)
        step = Step(predictions=Predictions.from_logits(logits), masked=every, steps_left=int(cur_step))
        if step.steps_left == self.max_denoising_steps:  # a new canvas
            self.state = self.rule.init_state(step)
        accepted, self.state, _ = self.rule.propose(step, self.state)
        self.accepted_token_mask = at_least_one(accepted, every, step.predictions.confidence)
        return torch.where(self.accepted_token_mask, denoiser_canvas, current_canvas)


# the name of transformers' own class, which `save_pretrained` writes into the configuration
class DiffusionGemmaForBlockDiffusion(transformers.DiffusionGemmaForBlockDiffusion):
    """transformers' model; its `generate` takes an `AcceptanceConfig` as well. With any other it is as before."""

    def _prepare_sampler(self, generation_config: Any) -> AcceptanceBase:
        config = generation_config.sampler_config
        if not isinstance(config, AcceptanceConfig):
            return super()._prepare_sampler(generation_config)
        canvas_length, vocab_size = self.config.canvas_length, self.config.text_config.vocab_size  # pyrefly: ignore
        # pyrefly: ignore[bad-argument-type]
        return AcceptanceSampler(config, canvas_length, vocab_size, generation_config.max_denoising_steps)

    def _compile_functions(self, sampler: Any, diffusion_stopping_criteria: Any) -> Any:
        if isinstance(sampler, AcceptanceSampler):
            raise ValueError(
                "cache_implementation must not be a static one with an AcceptanceConfig, or disable_compile must be "
                "True: rules are not compiled"
            )
        return super()._compile_functions(sampler, diffusion_stopping_criteria)
