"""The approximate posterior q_phi(r_t | x_t, x), which may look at the clean response. It exists for training only."""

import torch
from torch import Tensor, nn

from hf_learned_order.distributions import SubsetDistribution
from hf_learned_order.predictions import Step
from hf_learned_order.scorer import OrderNetwork, OrderScorerConfig, features_of, order_law

CLEAN_SIZE = 8  # width of the embedding of the clean token


class CleanPosterior(nn.Module):
    """q_phi, which sees the clean token at each position and how likely the denoiser finds it.

    Non-empty law: its scores are a correction to the prior's and start at zero. A posterior with scores of its own
    would have to move alone, and near a symmetric start its KL costs more than a better order gains; as a correction,
    both move together and the KL starts at 0. Max-normalised law: scores of its own, because tau makes the scale of
    the prior's scores a different one.

    Args:
        config: shape of the network, the same as the scorer's.
        law: family of the law, any of `scorer.LAWS`.
        temperature: tau; 0.05 to 0.1 worked best in arXiv 2602.23968.
    """

    def __init__(self, config: OrderScorerConfig, *, law: str = "non_empty", temperature: float = 0.1):
        super().__init__()
        self.kind = law
        self.temperature = temperature
        self.clean = nn.Embedding(config.vocab_size, CLEAN_SIZE)
        self.network = OrderNetwork(config, extra=CLEAN_SIZE + 2)

    def law(self, step: Step, clean: Tensor, prior_scores: Tensor) -> SubsetDistribution:
        """The law of the positions to unmask, given the clean response and the prior's scores, both [batch, canvas]."""
        log_prob = step.predictions.log_prob(clean).clamp(min=-20.0)
        extra = torch.cat([self.clean(clean), log_prob.exp()[..., None], log_prob[..., None] / 4], -1)
        features = torch.cat([features_of(step), extra.to(step.predictions.confidence.dtype)], -1)
        # pyrefly: ignore[bad-argument-type] (training always has hidden states)
        scores = self.network.scores(features, step.hidden_states)
        if self.kind == "non_empty":
            scores = scores + prior_scores
        return order_law(self.kind, scores, step, temperature=self.temperature)
