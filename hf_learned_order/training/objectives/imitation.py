"""Imitation of a slow decoding: `correctness` with the tokens that one token a step ends with, not the clean ones.

    y^i = 1 if argmax_v p_theta(v | x_t) at i is what the slow decoding has at i

No labels: what is learned is when the denoiser need not be asked again. Source: Bao et al., Learning to Parallel
(Learn2PD), arXiv 2509.25188. There the states are those of an oracle that unmasks what is right; here they are the
learner's own.
"""

from torch import Tensor

from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.correctness import CorrectnessObjective


class ImitationObjective(CorrectnessObjective):
    """Fits a scorer with the "factor" law. Batch in, loss and measurements out, as `CorrectnessObjective`.

    Of the clean responses it takes the length of the canvas only. A batch costs one call more for each token of the
    longest response.

    Args:
        denoiser, scorer, max_denoising_steps, min_denoising_steps, eos_token_id: as in `CorrectnessObjective`.
        teacher: name of the rule of the slow decoding.

    Raises:
        ValueError: `teacher` is unknown or needs more than its name, or as `CorrectnessObjective`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int,
        min_denoising_steps: int | None = None,
        eos_token_id: int | None = None,
        teacher: str = "top_prob",
    ):
        super().__init__(
            denoiser,
            scorer,
            max_denoising_steps=max_denoising_steps,
            min_denoising_steps=min_denoising_steps,
            eos_token_id=eos_token_id,
        )
        try:
            self.teacher = make_sampler(teacher)
        except ValueError as error:
            raise ValueError(
                f"teacher must be a rule that needs no more than its name, got {teacher!r}: {error}"
            ) from error

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As `CorrectnessObjective.forward`; `exact` is the share of responses equal to those of the slow decoding."""
        slow = decode(
            self.denoiser,
            **start(input_ids, attention_mask, clean, given, mask_token_id=self.denoiser.mask_token_id),
            sampler=self.teacher,
            eos_token_id=self.eos_token_id,
        )
        return super().forward(input_ids, attention_mask, slow.sequences[:, -clean.shape[1] :], seeds, given)
