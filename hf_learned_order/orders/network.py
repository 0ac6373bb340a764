"""The network of a scorer: features and hidden states in, scores (and pairs) out."""

import torch
from torch import Tensor, nn

from hf_learned_order.orders.configuration import ELBO_LAWS as ELBO_LAWS
from hf_learned_order.orders.configuration import LAWS as LAWS
from hf_learned_order.orders.configuration import RANDOM_LAWS as RANDOM_LAWS
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.features import width_of
from hf_learned_order.orders.heads import CountHead, zeroed
from hf_learned_order.orders.laws.counted import CountedBernoulli, CountedPlackettLuce

COUNTED = {"count": CountedBernoulli, "plackett_luce": CountedPlackettLuce}
REACH = 64  # distances between positions beyond this are one


class EachNorm(nn.LayerNorm):
    """Norms each of several layers' hidden states, side by side [..., layers * hidden]: the largest hides no other."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(-1, (-1, *self.normalized_shape))).flatten(-2)


class OrderNetwork(nn.Module):
    """From features of the state at each canvas position: projections, a small transformer, a head.

    `scores`: one number a position, and what else the law asks for; the heads start at zero, so every score does.
    `dependence` (of the dependent law): A_ij, one number a pair. `costs` (of the regret law): both. `extra` more
    features a position may come in (the posterior's).
    """

    def __init__(self, config: OrderScorerConfig, *, law: str, extra: int = 0):
        super().__init__()
        size, pairs = config.hidden_size, law in ("regret", "dependent")
        self.features = nn.Linear(width_of(config.seen) + extra, size)
        self.hidden_states, width = None, config.denoiser_hidden_size
        if config.layers_seen:
            # a projection of each layer, summed
            self.hidden_states = nn.Sequential(EachNorm(width), nn.Linear(len(config.layers_seen) * width, size))
        layer = nn.TransformerEncoderLayer(
            size,
            config.num_attention_heads,
            4 * size,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.num_hidden_layers, nn.LayerNorm(size), enable_nested_tensor=False
        )
        self.repels = law == "repulsive"
        if pairs or self.repels:
            self.receives, self.gives = nn.Linear(size, size // 2), nn.Linear(size, size // 2)
            self.distance = nn.Embedding(2 * REACH + 1, 1)
            nn.init.constant_(self.distance.weight, -2.0 if pairs else 0.0)
        if law != "dependent":
            self.head = zeroed(nn.Linear(size, 2 if law == "regret" else 1))
        if self.repels:
            zeroed(self.gives)
        self.counts = CountHead(size) if law in COUNTED else None

    def scores(self, features: Tensor, hidden_states: Tensor, padding: Tensor | None = None) -> Tensor:
        """s [batch, canvas] from features [batch, canvas, columns + extra], hidden states [..., layers * hidden].

        What stands at `padding`, bool [batch, canvas], changes nothing anywhere else.

        Where the law asks for more, [batch, canvas, columns]: s, then the log-weight of a count of 1, 2, ... or A_i.
        """
        encoded = self._encode(features, hidden_states, padding)
        scores = self.head(encoded)
        if self.counts is not None:
            scores = torch.cat([scores, self.counts(encoded, padding)], -1)
        if self.repels:
            scores = torch.cat([scores, self._affinity(encoded)], -1)
        return scores.squeeze(-1).float()

    def dependence(
        self, features: Tensor, hidden_states: Tensor, entropy: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """A [batch, canvas, canvas], nats, in [0, min(H_i, H_j)] as mutual information is; entropy [batch, canvas]."""
        share = self._affinity(self._encode(features, hidden_states, padding)).float().sigmoid()
        return torch.minimum(entropy[:, :, None], entropy[:, None, :]) * share

    def costs(
        self, features: Tensor, hidden_states: Tensor, entropy: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A correction to the logit of q and the logarithm of w, [batch, canvas]; A [batch, canvas, canvas], nats.

        A has no limit above, since regret has none, but is 0 where one of the two positions is certain.
        """
        encoded = self._encode(features, hidden_states, padding)
        correction, log_weight = self.head(encoded).float().unbind(-1)
        pairs = nn.functional.softplus(self._affinity(encoded).float())
        return correction, log_weight, torch.minimum(entropy[:, :, None], entropy[:, None, :]) * pairs

    def _affinity(self, encoded: Tensor) -> Tensor:
        affinity = self.receives(encoded) @ self.gives(encoded).mT / self.receives.out_features**0.5
        index = torch.arange(encoded.shape[1], device=encoded.device)
        apart = (index[:, None] - index).clamp(-REACH, REACH) + REACH
        return affinity + self.distance(apart).squeeze(-1)

    def _encode(self, features: Tensor, hidden_states: Tensor, padding: Tensor | None) -> Tensor:
        dtype = self.features.weight.dtype
        inputs = self.features(features.to(dtype))
        if self.hidden_states is not None:
            inputs = inputs + self.hidden_states(hidden_states.to(dtype))
        if padding is not None:  # what a denoiser says there may be anything
            inputs = inputs.masked_fill(padding[..., None], 0.0)
        return self.encoder(inputs, src_key_padding_mask=padding)
