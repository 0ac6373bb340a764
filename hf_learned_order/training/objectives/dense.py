"""One token a step, and a reward for each: the log-likelihood of the clean token where it is unmasked.

    J = E sum_t log p_theta(x^{i_t} | x_t),     i_t ~ softmax of s / tau over M_t

It is the ELBO of `objective` with the scorer's law given that it unmasks a single position, as prior and posterior:
what is left of the law is which, and how many is left to whatever schedule decodes. The reward of a step is taken in
expectation over its position, the rewards that follow by REINFORCE with leave-one-out.

Source: arXiv 2606.23567 (dense log-likelihood reward at one token a step), known here by that description only.
"""

from typing import Any

import torch
from torch import Tensor

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import SubsetDistribution
from hf_learned_order.orders.laws.counted import IMPOSSIBLE, CountedBernoulli, CountedSubset
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.chains import Chains
from hf_learned_order.training.objectives.elbo import OrderELBO

LAWS = ("non_empty", "count", "plackett_luce")  # of one position each is the softmax of its scores


class DenseObjective(OrderELBO):
    """Maximises the expected log-likelihood at one token a step: T is the length of the canvas.

    Batch in, loss and measurements out, as `OrderELBO`.

    Args:
        denoiser: p_theta, never trained by this objective.
        scorer: an `OrderScorer` with law "non_empty", "count" or "plackett_luce".
        num_chains, eos_token_id, baseline, returns, gradient_steps: as in `OrderELBO`.

    Raises:
        ValueError: the scorer has another law, or as `OrderELBO`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        baseline: str = "leave_one_out",
        returns: str = "per_step",
        gradient_steps: str = "all",
    ):
        if scorer.config.law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)} for one token a step, got {scorer.config.law!r}")
        super().__init__(
            denoiser,
            scorer,
            num_chains=num_chains,
            eos_token_id=eos_token_id,
            baseline=baseline,
            returns=returns,
            gradient_steps=gradient_steps,
        )

    def chains(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Chains:
        self.max_denoising_steps = clean.shape[1]
        return super().chains(input_ids, attention_mask, clean, seeds, given)

    def laws(
        self, step: Step, clean: Tensor, own_scores: Tensor | None = None
    ) -> tuple[SubsetDistribution, SubsetDistribution, None]:
        """Both are the law of one position, without exploration."""
        whole: Any = self.scorer.law(step, self.scorer(step))
        which = whole.scores if isinstance(whole, CountedSubset) else whole.logits
        counts = torch.full_like(which, IMPOSSIBLE)
        counts[..., 0] = 0.0
        law = CountedBernoulli(counts, which, step.masked)
        return law, law, None
