"""vLLM: a rule in the place of `MaskedDiffusionSampler`'s own choice. Interface: `nemotron_dllm` of vLLM's repository.

`register` is called by vLLM in each of its processes once this package is installed. It does nothing unless HLO_VLLM
names a YAML file, which has one of

    scorer: /path/of/an/exported/scorer.pt2     # ExportedScorer.save
    sampler: threshold                          # or any other rule that reads predictions only

and, as wanted, `sampler_config`. Steps and temperature are those of vLLM's `--diffusion-config`.
"""

import os
from collections import defaultdict
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.serving.decision import BlockDecision
from hf_learned_order.serving.export import ExportedScorer

OPTIONS = ("scorer", "sampler", "sampler_config")


class LearnedOrderStep:
    """vLLM's sampler, which is shown logits that leave it one choice: what the rule unmasks, with its tokens.

    Those of other masked positions are flat, so that none reaches the threshold. All bookkeeping stays vLLM's.
    """

    def __init__(self, sampler: Any, options: dict[str, Any]):
        if not getattr(sampler, "threshold_mode", False):
            raise ValueError('selection_policy must be "confidence_threshold" with HLO_VLLM, got another one')
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"HLO_VLLM must be a file with {', '.join(OPTIONS)} only, got {', '.join(unknown)}")
        states, path = sampler.diffusion_states, options.get("scorer")
        scorer: Any = None if path is None else ExportedScorer.load(path).to(states.device)
        rule = make_sampler(options.get("sampler") or "learned_order", options.get("sampler_config"), scorer=scorer)
        self.decision = BlockDecision(
            sampler=rule, mask_token_id=states.mask_token_id, steps=states.max_denoising_steps
        )
        self.inner = sampler
        sampler.log_threshold = -0.1  # between certain, 0, and flat

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def add_request(self, *arguments: Any) -> None:
        """As vLLM's, without `top_k` and `top_p`, and without log-probabilities of tokens that were not chosen."""
        *others, params = arguments
        params = copy(params)
        params.top_k, params.top_p = 0, 1.0
        params.logprobs = None if params.logprobs is None else 0
        self.inner.add_request(*others, params)

    def __call__(self, logits: Tensor, batch: Any, draft_logits: Tensor | None = None) -> Any:
        """One step of all requests."""
        states, starts = self.inner.diffusion_states, batch.cu_num_logits_np
        slots = torch.as_tensor(batch.idx_mapping_np[: batch.num_reqs], device=logits.device).long()
        drawn = self.inner.sampling_states.temperature.gpu[slots] > 0
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for row, (commits, draws) in enumerate(
            zip(states.is_encoder_phase[slots].tolist(), drawn.tolist(), strict=True)
        ):
            if starts[row + 1] > starts[row] and not commits:
                groups[int(starts[row + 1] - starts[row]), draws].append(row)
        shown, notes = logits.clone(), []
        for (length, draws), rows in groups.items():
            first = torch.as_tensor(starts[rows], device=logits.device).long()
            at = first[:, None] + torch.arange(length, device=logits.device)
            own, ids = slots[rows], states.canvas[slots[rows], :length]
            masked, taken = ids == states.mask_token_id, states.step[own].tolist()
            decision = replace(self.decision, temperature=self.inner.temperature if draws else 0.0)
            unmask, filled = decision(logits[at], ids, masked, taken)
            shown[at[masked]] = 0.0
            shown[at[unmask]] = -torch.inf
            shown[at[unmask], filled[unmask]] = 0.0
            notes.append(
                (own[unmask.nonzero()[:, 0]], unmask.nonzero()[:, 1], logits[at[unmask]], filled[unmask], decision)
            )
        output = self.inner(shown, batch, draft_logits)
        for note in notes:
            self._note(*note)
        return output

    def _note(self, slots: Tensor, places: Tensor, logits: Tensor, tokens: Tensor, decision: BlockDecision) -> None:
        """The log-probability and the rank of each token that was unmasked, which vLLM saw as certain."""
        scores = logits.float() / (decision.temperature or 1.0)
        scores[:, decision.mask_token_id] = -torch.inf
        own = scores.gather(-1, tokens[:, None])
        states = self.inner.diffusion_states
        states.unmask_logprobs[slots, places] = own.squeeze(-1) - scores.logsumexp(-1)
        states.unmask_ranks[slots, places] = (scores >= own).sum(-1).to(states.unmask_ranks.dtype)


def register() -> None:
    """Make vLLM's masked diffusion models use the rule that HLO_VLLM describes.

    Raises:
        ImportError: this vLLM has none.
    """
    path = os.environ.get("HLO_VLLM")
    if not path:
        return
    try:
        from vllm.model_executor.models.nemotron_dllm import NemotronLabsDiffusionModelState as State
    except ImportError as error:
        raise ImportError(
            "HLO_VLLM must not be set with this vLLM, which has no vllm.model_executor.models.nemotron_dllm"
        ) from error

    options, made = yaml.safe_load(Path(path).read_text()) or {}, State.custom_sampler
    if getattr(made, "learned_order", False):  # vLLM may call this again
        return

    def custom_sampler(self: Any, sampler: Any) -> tuple[Any, Any]:
        inner, rejection = made(self, sampler)
        return LearnedOrderStep(inner, options), rejection

    custom_sampler.learned_order = True  # pyrefly: ignore
    State.custom_sampler = custom_sampler
