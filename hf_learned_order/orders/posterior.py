"""Networks that look at the clean response, so for training only: the approximate posterior, a value baseline."""

import torch
from torch import Tensor, nn

from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.features import features_of
from hf_learned_order.orders.laws.base import SubsetDistribution
from hf_learned_order.orders.network import OrderNetwork
from hf_learned_order.orders.scorer import order_law

CLEAN_SIZE = 8  # width of the embedding of the clean token


class CleanNetwork(nn.Module):
    """An `OrderNetwork` that sees the clean token at each position too, and how likely the denoiser finds it."""

    def __init__(self, config: OrderScorerConfig, *, law: str):
        super().__init__()
        self.config = config
        self.clean = nn.Embedding(config.vocab_size, CLEAN_SIZE)
        self.network = OrderNetwork(config, law=law, extra=CLEAN_SIZE + 2)

    def scores(self, step: Step, clean: Tensor) -> Tensor:
        """`OrderNetwork.scores`, given the clean response [batch, canvas]; 0 at the start."""
        log_prob = step.predictions.log_prob(clean).clamp(min=-20.0)
        extra = torch.cat([self.clean(clean), log_prob.exp()[..., None], log_prob[..., None] / 4], -1)
        features = torch.cat([features_of(step, self.config.seen), extra.to(step.predictions.confidence.dtype)], -1)
        # pyrefly: ignore[bad-argument-type] (`layers_seen` asks for them)
        return self.network.scores(features, step.hidden_states, step.padding)


class CleanPosterior(CleanNetwork):
    """q_phi(r_t | x_t, x), the approximate posterior.

    With the prior's own law its scores are a correction to the prior's and start at zero. A posterior with scores of
    its own would have to move alone, and near a symmetric start its KL costs more than a better order gains; as a
    correction, both move together and the KL starts at 0. With another law: scores of its own, because they mean
    something else.

    Args:
        config: the scorer's; the network has the same shape.
        law: family of the law, any of `scorer.RANDOM_LAWS`; None: the scorer's.
        temperature: tau of a law that is not the scorer's; one that is has its `law_temperature`. 0.05 to 0.1 worked
            best in arXiv 2602.23968.
        once: its scores are computed at the first state of a response and kept for all states that follow.
    """

    def __init__(
        self, config: OrderScorerConfig, *, law: str | None = None, temperature: float = 0.1, once: bool = False
    ):
        super().__init__(config, law=law or config.law)
        self.kind = law or config.law
        self.corrects = self.kind == config.law
        self.temperature = temperature
        self.once = once

    def law(
        self,
        step: Step,
        clean: Tensor,
        prior_scores: Tensor,
        *,
        own_scores: Tensor | None = None,
        tilt: Tensor | None = None,
    ) -> SubsetDistribution:
        """The law of the positions to unmask, given the clean response [batch, canvas] and the prior's scores.

        `own_scores` are its `scores` of the first state where they are computed `once`; `tilt` is the prior's.
        """
        scores = self.scores(step, clean) if own_scores is None else own_scores
        temperature = self.temperature
        if self.corrects:
            scores, temperature = scores + prior_scores, self.config.law_temperature
        # in the prior it is part of the law that is corrected
        bias = self.config.law_bias + (0.0 if tilt is None else tilt) if self.corrects else 0.0
        return order_law(self.kind, scores, step, temperature=temperature, bias=bias)


class ValueBaseline(CleanNetwork):
    """v^i(x_t, x): what each masked position is still to bring if it stays masked, nats.

    At the start log p(x^i | x_t), what it would bring now. It learns a factor, so that what is certain is worth 0.
    """

    def __init__(self, config: OrderScorerConfig):
        super().__init__(config, law="non_empty")  # one number a position

    def forward(self, step: Step, clean: Tensor) -> Tensor:
        """[batch, canvas]; 0 outside the masked positions."""
        now = step.predictions.log_prob(clean).clamp(min=-20.0)
        return (now * (1 + self.scores(step, clean))).masked_fill(~step.masked, 0.0)
