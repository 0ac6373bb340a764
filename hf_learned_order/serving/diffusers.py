"""diffusers: a scheduler for `LLaDA2Pipeline`. Interface: `BlockRefinementScheduler` of diffusers 0.42.1.

It is given to the pipeline, which is called without changes of tokens that stand:

    pipeline = LLaDA2Pipeline(model=model, scheduler=LearnedOrderScheduler(sampler), tokenizer=tokenizer)
    pipeline("What is 12 * 5?", editing_threshold=None)

A rule is no part of a pipeline's saved configuration.
"""

from typing import Any

import torch
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementScheduler, BlockRefinementSchedulerOutput
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.serving.decision import BlockDecision


class LearnedOrderScheduler(BlockRefinementScheduler):
    """A rule of ours in the pipeline's loop. A block may take the pipeline's `num_inference_steps`.

    Args:
        sampler: the rule, as `BlockDecision` takes it.
        block_length: positions of a block, where the pipeline is not given another.
    """

    def __init__(self, sampler: Sampler, *, block_length: int = 32):
        super().__init__(block_length=block_length)
        self.sampler = sampler
        self._filled = False  # whether the last step left nothing masked

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step of a block, with the arguments and results of the class above.

        `threshold` and `minimal_topk` are not read: the rule has options of its own. `sampled_tokens` is the block
        after the step, `sampled_probs` [batch, block] what the model thinks of these tokens, at temperature 1.

        Raises:
            ValueError: there is no mask token, `top_p` or `top_k` is given, or `editing_threshold` is above 0.
        """
        if mask_token_id is None:
            raise ValueError("mask_token_id must be a token id, got None: a rule says which masks a step fills")
        for name, value in (("top_p", top_p), ("top_k", top_k)):
            if value is not None:
                raise ValueError(f"{name} must be None with LearnedOrderScheduler, got {value!r}: use temperature")
        if editing_threshold is not None and editing_threshold > 0:
            raise ValueError(
                f"editing_threshold must be None with LearnedOrderScheduler, got {editing_threshold!r}: rules do not "
                "change tokens that stand; call the pipeline with editing_threshold=None"
            )
        decision = BlockDecision(
            sampler=self.sampler,
            mask_token_id=mask_token_id,
            steps=self.num_inference_steps,
            temperature=0.0 if sampling_method == "greedy" else temperature,
            generator=generator,
        )
        masked = sample == mask_token_id
        if prompt_mask is not None:
            masked = masked & ~prompt_mask
        unmask, filled = decision(model_output, sample, masked, [int(timestep)] * len(sample))
        self._filled = torch.equal(unmask, masked)
        output = BlockRefinementSchedulerOutput(
            prev_sample=filled,
            transfer_index=unmask,
            editing_transfer_index=torch.zeros_like(unmask),
            sampled_tokens=filled,
            sampled_probs=model_output.float().softmax(-1).gather(-1, filled[..., None]).squeeze(-1),
            pred_logits=model_output,
        )
        return output if return_dict else output.to_tuple()

    def check_block_should_continue(self, *args: Any, **options: Any) -> bool:
        """Whether the block needs another call of the model: the class above asks for one that finds nothing masked."""
        return not self._filled and super().check_block_should_continue(*args, **options)
