"""SGLang: an algorithm for `--dllm-algorithm LearnedOrder`. Interface: `sglang.srt.dllm.algorithm` of SGLang 0.5.23.

The algorithm's YAML file (`--dllm-algorithm-config`) has one of

    scorer: /path/of/an/exported/scorer.pt2     # ExportedScorer.save
    sampler: threshold                          # or any other rule that reads predictions only

and, as wanted, `sampler_config`, `steps` for each block and `temperature`. Where the version has plug-ins
(`sglang.srt.plugins`), `register` is called by itself once this package is installed; else call it before the server.
"""

from typing import Any

import torch
from sglang.srt.dllm.algorithm import algo_name_to_cls
from sglang.srt.dllm.algorithm.base import DllmAlgorithm

from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.serving.decision import BlockDecision
from hf_learned_order.serving.export import ExportedScorer


class LearnedOrder(DllmAlgorithm):
    """A rule of ours in SGLang's loop, synchronous or first-done-first-out. A request's state is its steps so far."""

    def __init__(self, config: Any):
        super().__init__(config)
        options = dict(config.algorithm_config)
        path, name = options.get("scorer"), options.get("sampler")
        self.decision = BlockDecision(
            sampler=make_sampler(
                name or "learned_order",
                options.get("sampler_config"),
                scorer=None if path is None else ExportedScorer.load(path),  # pyrefly: ignore[bad-argument-type]
            ),
            mask_token_id=config.mask_id,
            steps=options.get("steps"),
            temperature=options.get("temperature", 0.0),
        )

    def init_step_state(self, forward_batch: Any) -> list[Any]:
        return [[0] for _ in range(forward_batch.batch_size)]

    def step(self, forward_batch: Any, full_logits: torch.Tensor, states: list[Any]) -> list[bool]:
        """One step, in place on `forward_batch.input_ids`; a row is done at the call that finds nothing masked."""
        shape = forward_batch.batch_size, self.block_size
        ids = forward_batch.input_ids.view(shape)
        masked = ids == self.mask_id
        if forward_batch.dllm_prompt_mask is not None:
            masked = masked & ~forward_batch.dllm_prompt_mask
        done = ~masked.any(-1)
        _, filled = self.decision(full_logits.view(*shape, -1), ids, masked, [state[0] for state in states])
        for state in states:
            state[0] += 1
        forward_batch.input_ids.copy_(filled.view(-1))  # in place: a CUDA graph holds this tensor
        return done.tolist()


def register() -> None:
    """Make SGLang know the algorithm by its name."""
    algo_name_to_cls[LearnedOrder.__name__] = LearnedOrder
