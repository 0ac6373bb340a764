"""What the objectives share: a batch as they look at it, and the module that a Trainer calls."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_learned_order.decoding.canvas import left_padded
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.updates import Draws


@dataclass(eq=False)
class Batch:
    """What `collator.CanvasCollator` makes of some rows, and what is drawn for them.

    Attributes:
        input_ids, attention_mask: int [batch, prompt], padded on either side.
        clean: int [batch, canvas], the responses.
        seeds: those of `updates.Draws`; None takes torch's global generator.
        given: bool [batch, canvas], positions of `clean` that are known from the start; None for none.
        answer: int [batch, width], what a judge takes.
        prompt, prompt_mask: the prompts, padded on the left.
        masked: bool [batch, canvas], what is masked at the start.
        draws: the random numbers of the batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    clean: Tensor
    seeds: Tensor | None = None
    given: Tensor | None = None
    answer: Tensor | None = None

    def __post_init__(self):
        self.prompt, self.prompt_mask = left_padded(self.input_ids, self.attention_mask)
        self.masked = torch.ones_like(self.clean, dtype=torch.bool) if self.given is None else ~self.given
        self.draws = Draws(self.seeds, rows=len(self.clean), device=self.clean.device)


class Objective(nn.Module, ABC):
    """A module that a Trainer can wrap: batch in, loss and measurements out. Each objective has its own `measured`.

    Args:
        denoiser: p_theta.
        scorer: the network that is trained.
        max_denoising_steps: the largest step budget T.
        eos_token_id: a row is finished when everything before its first EOS is settled, as in generation.
    """

    def __init__(self, denoiser: Denoiser, scorer: OrderScorer, *, max_denoising_steps: int, eos_token_id: int | None):
        super().__init__()
        self.denoiser = denoiser
        self.scorer = scorer
        self.max_denoising_steps = max_denoising_steps
        self.eos_token_id = eos_token_id

    def forward(self, *args: Tensor, **kwargs: Tensor | None) -> dict[str, Tensor]:
        """`measured` of the `Batch` of these."""
        return self.measured(Batch(*args, **kwargs))

    @abstractmethod
    def measured(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, to be minimised, and the means of what there is to watch."""
