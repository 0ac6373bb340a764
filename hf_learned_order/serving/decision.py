"""What an engine's step unmasks: the decision of the decoding loop, on logits that the engine gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.laws.base import at_least_one, everything


@dataclass(frozen=True, kw_only=True)
class BlockDecision:
    """A rule with all that a block needs. Each call unmasks at least one position, and the last one everything.

    Attributes:
        sampler: the rule; a learned order with an `ExportedScorer`, or an `OrderScorer` that sees predictions only.
        mask_token_id: what a masked position holds. It is never drawn.
        steps: the steps that a block may take; None: one for each position.
        temperature: 0 takes the most likely token, otherwise it is drawn.
        generator: source of all randomness; None: torch's global one.

    Raises:
        ValueError: the rule reads hidden states, remasks or remembers something between steps.
    """

    sampler: Sampler
    mask_token_id: int
    steps: int | None = None
    temperature: float = 0.0
    generator: torch.Generator | None = None

    def __post_init__(self):
        sampler, name = self.sampler, type(self.sampler).__name__
        if sampler.needs_hidden_states:
            raise ValueError(f"sampler must read predictions only, but {name} reads hidden states: engines give none")
        if sampler.remasks or type(sampler).init_state is not Sampler.init_state:
            raise ValueError(f"sampler must not remask or remember anything between steps, but {name} does")
        if self.steps is not None and (isinstance(self.steps, bool) or self.steps < 1):
            raise ValueError(f"steps must be 1 or more, or None, got {self.steps!r}")

    @torch.no_grad()
    def __call__(self, logits: Tensor, ids: Tensor, masked: Tensor, taken: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What to unmask, bool [batch, block], and the block after that, int [batch, block].

        Args:
            logits: [batch, block, vocab], each position's own.
            ids: int [batch, block].
            masked: bool [batch, block], the positions that are to be filled.
            taken: steps that each row's block has had already.
        """
        unmask, tokens = torch.zeros_like(masked), ids.clone()
        total = self.steps or ids.shape[1]
        left = torch.tensor([max(1, total - steps) for steps in taken], device=ids.device)
        going_on = masked.any(-1)
        for steps_left in left[going_on].unique().tolist():  # rows with the same budget go together
            rows = (going_on & (left == steps_left)).nonzero().squeeze(-1)
            unmask[rows], tokens[rows] = self._decide(logits[rows], ids[rows], masked[rows], steps_left)
        return unmask, tokens

    def _decide(self, logits: Tensor, ids: Tensor, masked: Tensor, steps_left: int) -> tuple[Tensor, Tensor]:
        predictions = Predictions.from_logits(logits, self.mask_token_id)
        step = Step(
            predictions=predictions,
            masked=masked,
            steps_left=steps_left,
            unmasked=~masked,
            canvas=ids,
            rows=torch.arange(len(ids), device=ids.device),
            generator=self.generator,
        )
        if steps_left == 1:
            unmask = everything(masked)
        else:
            unmask = at_least_one(self.sampler.propose(step, ()).unmask, masked, predictions.confidence)
        drawn = predictions.draw(temperature=self.temperature, generator=self.generator)
        return unmask, torch.where(unmask, drawn.to(ids.dtype), ids)
