"""What the denoiser believes at each position of a canvas, computed once for rules and scorer; a step of decoding.

Symbols: `c` confidence, `m` margin, `H` entropy in nats; all from p_theta(x^i | x_t) with the mask token ruled out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def draw(scores: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Token ids [...], drawn from the softmax of `scores` [..., vocab]."""
    uniform = torch.rand(scores.shape, device=scores.device, generator=generator)
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    return (scores + gumbel).argmax(-1)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Beliefs of the denoiser about every position of a canvas.

    Attributes:
        log_probs: [batch, canvas, vocab], nats; `-inf` for the mask token.
        confidence: [batch, canvas], the highest probability.
        margin: [batch, canvas], the highest minus the second highest probability.
        entropy: [batch, canvas], nats.
    """

    log_probs: Tensor
    confidence: Tensor
    margin: Tensor
    entropy: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, mask_token_id: int | None = None) -> "Predictions":
        """Predictions from raw logits [batch, canvas, vocab], in float32 whatever the dtype of the logits.

        A denoiser may predict the mask token itself; decoding never may, so its logit is out of the softmax. None
        where the model has no mask token.
        """
        excluded = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        if mask_token_id is not None:
            excluded[mask_token_id] = True
        log_probs = logits.float().masked_fill(excluded, -torch.inf).log_softmax(-1)
        probs = log_probs.exp()
        top = probs.topk(2, dim=-1).values
        # p log p is 0 at p = 0, where the product of 0 and -inf would be nan, in the gradient too
        entropy = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
        return cls(log_probs, top[..., 0], top[..., 0] - top[..., 1], entropy.clamp(min=0.0))

    def draw(self, *, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Token ids [batch, canvas]: the most likely ones at temperature 0, else drawn from p^(1/temperature)."""
        if temperature == 0.0:
            return self.log_probs.argmax(-1)
        return draw(self.log_probs / temperature, generator=generator)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p_theta of `tokens` [batch, canvas] at their positions, [batch, canvas]."""
        return self.log_probs.gather(-1, tokens[..., None]).squeeze(-1)

    def kl(self, log_probs: Tensor) -> Tensor:
        """KL(these beliefs || `log_probs` [batch, canvas, vocab]) at each position, nats, [batch, canvas]."""
        # the mask token has log-probability -inf in both: 0 * (inf - inf) counts 0
        terms = self.log_probs.exp() * (self.log_probs - log_probs)
        return terms.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf).sum(-1)

    def detach(self) -> "Predictions":
        """The same beliefs outside the graph."""
        return Predictions(*(getattr(self, name).detach() for name in self.__slots__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a rule may look at.

    Attributes:
        predictions: the denoiser's beliefs.
        masked: bool [batch, canvas].
        steps_left: steps of the budget that are left, this one included.
        unmasked: bool [batch, canvas], what earlier steps unmasked; a rule that remasks may choose among these. In
            decoding only.
        canvas: int [batch, canvas], the tokens; the mask token where `masked`. In decoding only.
        token_log_probs: [batch, canvas], log p_theta of each token when it was unmasked, nats; 0 where `masked`. In
            decoding only.
        hidden_states: [batch, canvas, hidden], for rules with `needs_hidden_states`.
        generator: source of randomness.
    """

    predictions: Predictions
    masked: Tensor
    steps_left: int
    # decoding always sets these three; training asks no rule that reads them
    unmasked: Tensor = None  # pyrefly: ignore[bad-assignment]
    canvas: Tensor = None  # pyrefly: ignore[bad-assignment]
    token_log_probs: Tensor = None  # pyrefly: ignore[bad-assignment]
    hidden_states: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def quota(self) -> Tensor:
        """K = ceil(n / steps left), int [batch, 1]: the even share of a fixed-count rule."""
        count = self.masked.sum(-1, keepdim=True)
        return (count + self.steps_left - 1) // self.steps_left
