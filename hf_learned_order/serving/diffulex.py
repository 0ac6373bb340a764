"""Diffulex: a sampler for its models. Interface: `diffulex.sampler` of SJTU-DENG-Lab/Diffulex, commit 184ba97.

Call it in the process that starts the engine, before that starts:

    register("llada", LearnedOrderSampler(scorer=ExportedScorer.load("scorer.pt2")))

Diffulex chooses its sampler by the name of the model, so ours takes the place of that model's own.
"""

from dataclasses import replace
from typing import Any

import torch
from diffulex.sampler.auto_sampler import AutoSampler
from diffulex.sampler.base import DllmSamplerNoShiftBase

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.serving.decision import BlockDecision

MODELS = ("llada", "sdar", "sdar_moe", "llada2", "llada2_moe", "llada2_mini")  # a position's logits are its own
NEEDED = {"data_parallel_size": 1, "sampling_mode": "naive"}  # others: processes without our sampler; tokens change


class LearnedOrderBlockSampler(DllmSamplerNoShiftBase):
    """A rule of ours in Diffulex's loop. It fills one block after another, also where several are open.

    Args:
        decision: the rule and its steps; mask token and temperature are those of each block.
    """

    def __init__(self, decision: BlockDecision):
        super().__init__()
        self.decision = decision
        self._taken: dict[str, tuple[int, int]] = {}  # of each request: where its block starts, the block's steps

    def evict_req_states(self, req_ids: list[Any]) -> None:
        """Forget requests that are finished; the engine calls it."""
        for req_id in req_ids:
            self._taken.pop(str(req_id), None)

    def _compute_accepted_ids(self, block: Any, confidence: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return torch.empty(0, dtype=torch.long, device=confidence.device)  # chosen below, where all logits are at hand

    def _postprocess_sample_output(
        self, reqs: Any, split_logits: Any, temperatures: Any, sample_output: Any, attn_metadata: Any, **options: Any
    ) -> Any:
        for number, (req, logits) in enumerate(zip(reqs, split_logits, strict=True)):
            prefill = attn_metadata.is_prefill[number]
            start = req.contiguous_in_cache_prefix_len if prefill else req.dllm_block_buffer.first_running_block.start
            name = str(req.req_id)
            for key in sample_output.mask_token_rel_ids_map[name]:
                block = req.dllm_blocks[int(key)]
                first = block.prev_block is None or block.prev_block.is_complete
                whole = start <= block.start and block.end - start <= len(logits)  # else at the next step
                if first and whole:
                    own = logits[block.start - start : block.end - start]
                    local, tokens = self._fill(name, block, own, float(temperatures[number]))
                    masked = sample_output.mask_token_rel_ids_map[name][key]
                    sample_output.true_local_ids_map[name][key] = local
                    sample_output.accepted_ids_map[name][key] = [masked.index(place) for place in local]
                    sample_output.sampled_tokens_map[name][key] = [tokens[place] for place in masked]
        return sample_output

    def _fill(self, name: str, block: Any, logits: torch.Tensor, temperature: float) -> tuple[list[int], list[int]]:
        """What a step unmasks of a block, as positions in it, and the block's tokens after that."""
        if self.tokenizer_vocab_size is not None:
            logits = logits.clone()
            logits[:, self.tokenizer_vocab_size :] = -torch.inf
        ids = torch.tensor(block.token_ids, device=logits.device)
        masked = torch.zeros_like(ids, dtype=torch.bool)
        masked[block.mask_token_relative_ids] = True
        before, taken = self._taken.get(name, (block.start, 0))
        taken = taken if before == block.start else 0
        self._taken[name] = block.start, taken + 1
        decision = replace(self.decision, mask_token_id=int(block.mask_token_id), temperature=temperature)
        unmask, filled = decision(logits[None], ids[None], masked[None], [taken])
        return unmask[0].nonzero().squeeze(-1).tolist(), filled[0].tolist()


def register(model_name: str, sampler: Sampler, *, steps: int | None = None) -> None:
    """Make Diffulex use a rule for the models of that name, in the place of their own sampler.

    Args:
        model_name: one of `MODELS`.
        sampler: the rule, as `BlockDecision` takes it.
        steps: the steps that a block may take; None: one for each position.

    Raises:
        ValueError: it is another model; when the engine starts: its configuration is one of `NEEDED` otherwise.
    """
    if model_name not in MODELS:
        raise ValueError(f"model_name must be one of {', '.join(MODELS)}, got {model_name!r}")
    decision = BlockDecision(sampler=sampler, mask_token_id=0, steps=steps)

    def factory(config: Any) -> LearnedOrderBlockSampler:
        for name, value in NEEDED.items():
            if (found := getattr(config, name)) != value:
                raise ValueError(f"{name} must be {value!r} with LearnedOrderBlockSampler, got {found!r}")
        return LearnedOrderBlockSampler(decision)

    AutoSampler.register(model_name, factory, use_full_config=True, exist_ok=True)
