"""The approximate posterior q_phi(r_t | x_t, x), which may look at the clean response. It exists for training only."""

import torch
from torch import Tensor, nn

from hf_learned_order.distributions import SubsetDistribution
from hf_learned_order.predictions import Step
from hf_learned_order.scorer import OrderNetwork, OrderScorerConfig, features_of, order_law

CLEAN_SIZE = 8  # width of the embedding of the clean token


class CleanPosterior(nn.Module):
    """q_phi, which sees the clean token at each position and how likely the denoiser finds it.

    With the prior's own law its scores are a correction to the prior's and start at zero. A posterior with scores of
    its own would have to move alone, and near a symmetric start its KL costs more than a better order gains; as a
    correction, both move together and the KL starts at 0. With another law: scores of its own, because they mean
    something else.

    Args:
        config: the scorer's; the network has the same shape.
        law: family of the law, any of `scorer.ELBO_LAWS`; None: the scorer's.
        temperature: tau; 0.05 to 0.1 worked best in arXiv 2602.23968.
    """

    def __init__(self, config: OrderScorerConfig, *, law: str | None = None, temperature: float = 0.1):
        super().__init__()
        self.kind = law or config.law
        self.corrects = self.kind == config.law
        self.temperature = temperature
        self.clean = nn.Embedding(config.vocab_size, CLEAN_SIZE)
        self.network = OrderNetwork(config, law=self.kind, extra=CLEAN_SIZE + 2)

    def law(self, step: Step, clean: Tensor, prior_scores: Tensor) -> SubsetDistribution:
        """The law of the positions to unmask, given the clean response [batch, canvas] and the prior's scores."""
        log_prob = step.predictions.log_prob(clean).clamp(min=-20.0)
        extra = torch.cat([self.clean(clean), log_prob.exp()[..., None], log_prob[..., None] / 4], -1)
        features = torch.cat([features_of(step), extra.to(step.predictions.confidence.dtype)], -1)
        # pyrefly: ignore[bad-argument-type] (training always has hidden states)
        scores = self.network.scores(features, step.hidden_states)
        if self.corrects:
            scores = scores + prior_scores
        return order_law(self.kind, scores, step, temperature=self.temperature)
