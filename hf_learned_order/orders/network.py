"""The network of a scorer: features and hidden states in, scores (and pairs) out."""

import torch
from torch import Tensor, nn

from hf_learned_order.orders.configuration import LAWS as LAWS
from hf_learned_order.orders.configuration import RANDOM_LAWS as RANDOM_LAWS
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.features import width_of
from hf_learned_order.orders.heads import CountHead, zeroed

REACH = 64  # distances between positions beyond this are one


class EachNorm(nn.LayerNorm):
    """Norms each of several layers' hidden states, side by side [..., layers * hidden]: the largest hides no other."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(-1, (-1, *self.normalized_shape))).flatten(-2)


class Layer(nn.TransformerEncoderLayer):
    """PyTorch's own in its form with norms first. Never are there weights [batch, heads, canvas, canvas] at once, which
    that one's fast path in evaluation makes.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As `nn.TransformerEncoder` calls it: `src` [batch, canvas, size], and -inf [batch, canvas] at padding."""
        own, padding = self.self_attn, src_key_padding_mask
        projected = nn.functional.linear(self.norm1(src), own.in_proj_weight, own.in_proj_bias)
        heads = projected.unflatten(-1, (3, own.num_heads, own.head_dim)).permute(2, 0, 3, 1, 4)
        mask = None if padding is None else padding[:, None, None, :].to(projected.dtype)
        attended = nn.functional.scaled_dot_product_attention(*heads.unbind(0), attn_mask=mask)
        src = src + own.out_proj(attended.transpose(1, 2).flatten(2))
        return src + self._ff_block(self.norm2(src))


class TokenPairs(nn.Module):
    """What it changes of the affinity of two positions whether their most likely tokens are the same, [batch, k, k].

    A token that is wanted at both places is the commonest harm that two positions do to each other: the first one that
    takes it rules it out at the other, or both say it twice.
    """

    def __init__(self, size: int):
        super().__init__()
        self.receives, self.gives = nn.Linear(size, size), zeroed(nn.Linear(size, size))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, encoded: Tensor, tokens: Tensor) -> Tensor:
        """From encoded positions [batch, k, size] and their tokens [batch, k]."""
        receives, gives = (layer(encoded).unflatten(-1, (2, -1)) for layer in (self.receives, self.gives))
        products = torch.einsum("bisd,bjsd->bijs", receives, gives) / receives.shape[-1] ** 0.5 + self.bias
        same, different = products.unbind(-1)
        return torch.where(tokens[:, :, None] == tokens[:, None, :], same, different)


class OrderNetwork(nn.Module):
    """From features of the state at each canvas position: projections, a small transformer, a head.

    `scores`: one number a position, and what else the law asks for; the heads start at zero, so every score does.
    `costs` (of the regret law): two numbers a position, and A_ij, one a pair. `extra` more features a position may come
    in (the posterior's).
    """

    def __init__(self, config: OrderScorerConfig, *, law: str, extra: int = 0):
        super().__init__()
        size, pairs = config.hidden_size, law == "regret"
        self.features = nn.Linear(width_of(config.seen) + extra, size)
        self.hidden_states, width = None, config.denoiser_hidden_size
        if config.layers_seen:
            # a projection of each layer, summed
            self.hidden_states = nn.Sequential(EachNorm(width), nn.Linear(len(config.layers_seen) * width, size))
        layer = Layer(
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
        self.head = zeroed(nn.Linear(size, 2 if pairs else 1))
        if pairs:
            self.receives, self.gives = nn.Linear(size, size // 2), nn.Linear(size, size // 2)
            self.distance = nn.Embedding(2 * REACH + 1, 1)
            nn.init.constant_(self.distance.weight, -2.0)
        self.tokens = TokenPairs(size) if pairs and config.token_pairs else None
        self.counts = CountHead(size) if law == "count" else None

    def scores(self, features: Tensor, hidden_states: Tensor, padding: Tensor | None = None) -> Tensor:
        """s [batch, canvas] from features [batch, canvas, columns + extra], hidden states [..., layers * hidden].

        What stands at `padding`, bool [batch, canvas], changes nothing anywhere else.

        With the counted law [batch, canvas, 2]: s, then the log-weight of a count of 1, 2, ...
        """
        encoded = self._encode(features, hidden_states, padding)
        scores = self.head(encoded)
        if self.counts is not None:
            scores = torch.cat([scores, self.counts(encoded, padding)], -1)
        return scores.squeeze(-1).float()

    def doubts(
        self, features: Tensor, hidden_states: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `pairs` are made of, [batch, canvas, size]; a correction to the logit of q and the logarithm of w,
        [batch, canvas].
        """
        encoded = self._encode(features, hidden_states, padding)
        correction, log_weight = self.head(encoded).float().unbind(-1)
        return encoded, correction, log_weight

    def affinity(self, encoded: Tensor, places: Tensor) -> Tensor:
        """What `pairs` are made of, [batch, k, k], from what `doubts` gives of k positions a row and their places."""
        affinity = self.receives(encoded) @ self.gives(encoded).mT / self.receives.out_features**0.5
        apart = (places[:, :, None] - places[:, None, :]).clamp(-REACH, REACH) + REACH
        return affinity + self.distance(apart).squeeze(-1)

    def pairs(self, affinity: Tensor, entropy: Tensor) -> Tensor:
        """A [batch, k, k], nats, of k positions a row, from their affinity and the entropy of each, [batch, k].

        A has no limit above, since regret has none, but is 0 where one of the two positions is certain.
        """
        return torch.minimum(entropy[:, :, None], entropy[:, None, :]) * nn.functional.softplus(affinity.float())

    def _encode(self, features: Tensor, hidden_states: Tensor, padding: Tensor | None) -> Tensor:
        dtype = self.features.weight.dtype
        inputs = self.features(features.to(dtype))
        if self.hidden_states is not None:
            inputs = inputs + self.hidden_states(hidden_states.to(dtype))
        if padding is not None:  # what a denoiser says there may be anything
            inputs = inputs.masked_fill(padding[..., None], 0.0)
        return self.encoder(inputs, src_key_padding_mask=padding)
