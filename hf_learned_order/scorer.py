"""The learned order: `OrderScorer`, the prior p_psi(r_t | x_t), which generation uses and the Hub holds.

It sees what generation sees and nothing else: the denoiser's predictions and hidden states on the partly masked
canvas, and how many steps of the budget are left.

Symbols: `s` scores, `H` entropy, `T - t` steps left.
"""

import inspect
import math
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_learned_order.counted import CountedBernoulli, CountedPlackettLuce, log_binomial
from hf_learned_order.denoisers import Denoiser
from hf_learned_order.distributions import (
    BoundedDependence,
    BoundedRisk,
    MaxNormalizedBernoulli,
    NonEmptyBernoulli,
    SubsetDistribution,
    ancestral_logit,
    factor_edge,
)
from hf_learned_order.files import reading
from hf_learned_order.heads import CountHead, zeroed
from hf_learned_order.hub import HubMixin
from hf_learned_order.predictions import Predictions, Step
from hf_learned_order.repulsion import RepulsiveBernoulli

ELBO_LAWS = ("non_empty", "max_normalized", "count", "plackett_luce", "repulsive")  # have a density to differentiate
DETERMINISTIC_LAWS = ("dependent", "factor")
LAWS = (*ELBO_LAWS, *DETERMINISTIC_LAWS)
COUNTED = {"count": CountedBernoulli, "plackett_luce": CountedPlackettLuce}
REACH = 64  # distances between positions beyond this are one
FEATURES, BUDGET_FEATURES = 8, 2


class OrderScorerConfig(PreTrainedConfig):
    """Shape of a scorer, and the denoiser it was made for.

    Args:
        law: "non_empty" (`NonEmptyBernoulli` with the ancestral schedule as offset), "max_normalized", "count"
            (`CountedBernoulli`: how many, then which), "plackett_luce" (`CountedPlackettLuce`, likewise), "repulsive"
            (`RepulsiveBernoulli`, by rising entropy), "dependent" (`BoundedDependence` with a learned A), or "factor"
            (`BoundedRisk` with a learned probability).
        law_temperature: tau, which scores (and log-weights of counts, and repulsions) are divided by; not used by the
            deterministic laws.
        bound: of the dependent law: what a position may cost, nats; of the factor law: what the risk may be.
        entropy_weight: of the dependent law: what a position costs by itself, as a share of its entropy.
        max_denoising_steps: T, the budget that the scorer was trained for; None if it serves any.
        hidden_size: width of the scorer.
        num_hidden_layers: transformer layers over the canvas.
        num_attention_heads: heads of each.
        denoiser_hidden_size, vocab_size, mask_token_id: what a denoiser must have to be used with this scorer. A
            `denoiser_hidden_size` of 0 is a scorer that looks at predictions only, never at hidden states.
        base_model_name_or_path, base_model_revision: the denoiser it was trained with, for the card.

    Raises:
        ValueError, TypeError: a field is out of its range or of another type.
    """

    model_type = "order_scorer"

    def __init__(
        self,
        *,
        law: str = "non_empty",
        law_temperature: float = 0.1,
        bound: float = 0.5,
        entropy_weight: float = 1.5,
        max_denoising_steps: int | None = None,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        denoiser_hidden_size: int = 128,
        vocab_size: int = 32,
        mask_token_id: int | None = None,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        **kwargs: Any,
    ):
        _check_fields(locals())
        if law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
        if not law_temperature > 0:
            raise ValueError(f"law_temperature must be positive, got {law_temperature!r}")
        for name, value in (
            ("bound", bound),
            ("entropy_weight", entropy_weight),
        ):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value!r}")
        self.law = law
        self.bound = bound
        self.entropy_weight = entropy_weight
        self.max_denoising_steps = max_denoising_steps
        self.law_temperature = law_temperature
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.denoiser_hidden_size = denoiser_hidden_size
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        super().__init__(**kwargs)

    @classmethod
    def for_denoiser(cls, denoiser: Denoiser, **kwargs: Any) -> "OrderScorerConfig":
        """The configuration of a scorer that fits `denoiser`."""
        config = denoiser.model.config
        kwargs.setdefault("denoiser_hidden_size", denoiser.hidden_size)
        return cls(
            vocab_size=config.vocab_size,
            mask_token_id=denoiser.mask_token_id,
            base_model_name_or_path=getattr(config, "_name_or_path", None) or None,
            base_model_revision=getattr(config, "_commit_hash", None),
            **kwargs,
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' own, with a warning that names the keys this version does not know."""
        known = {*inspect.signature(cls.__init__).parameters, *PreTrainedConfig().to_dict(), "auto_map", "torch_dtype"}
        unknown = sorted(name for name in config_dict if name not in known and not name.startswith("_"))
        if unknown:
            warnings.warn(
                f"the scorer's configuration has keys that this version of hf_learned_order does not know and that it "
                f"does not use: {', '.join(unknown)}; a newer version may have written them",
                stacklevel=2,
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; a damaged file raises `ValueError`, `TypeError` or `OSError` and nothing else."""
        with reading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# field of a configuration -> its type, and its least and largest value where it has them
_FIELDS: dict[str, tuple[Any, float, float]] = {
    **dict.fromkeys(("law_temperature", "bound", "entropy_weight"), (int | float, -math.inf, math.inf)),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "vocab_size"), (int, 1, 2**24)),
    "denoiser_hidden_size": (int, 0, 2**24),
    "num_hidden_layers": (int, 1, 256),
    "max_denoising_steps": (int | None, 1, math.inf),
    "mask_token_id": (int | None, 0, math.inf),
    **dict.fromkeys(("base_model_name_or_path", "base_model_revision"), (str | None, 0, 0)),
}


def _check_fields(values: dict[str, Any]) -> None:
    for name, (kind, low, high) in _FIELDS.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")
        if isinstance(value, int | float) and not (math.isnan(value) or low <= value <= high):
            raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")
    if values["hidden_size"] % values["num_attention_heads"]:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, "
            f"got {values['hidden_size']} and {values['num_attention_heads']}"
        )


class OrderNetwork(nn.Module):
    """From features of the state at each canvas position: projections, a small transformer, a head.

    `scores`: one number a position, and what else the law asks for; the heads start at zero, so every score does.
    `dependence` (of the dependent law): A_ij, one number a pair. `extra` more features a position may come in (the
    posterior's).
    """

    def __init__(self, config: OrderScorerConfig, *, law: str, extra: int = 0):
        super().__init__()
        size, pairs = config.hidden_size, law == "dependent"
        # what a deterministic law learns of a state does not depend on the budget
        self.features = nn.Linear(FEATURES - BUDGET_FEATURES * (law in DETERMINISTIC_LAWS) + extra, size)
        self.hidden_states = (
            nn.Sequential(nn.LayerNorm(config.denoiser_hidden_size), nn.Linear(config.denoiser_hidden_size, size))
            if config.denoiser_hidden_size > 0
            else None
        )
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
        if not pairs:
            self.head = zeroed(nn.Linear(size, 1))
        if self.repels:
            zeroed(self.gives)
        self.counts = CountHead(size) if law in COUNTED else None

    def scores(self, features: Tensor, hidden_states: Tensor) -> Tensor:
        """s [batch, canvas] from features [batch, canvas, 8 + extra] and hidden states [batch, canvas, hidden].

        Where the law asks for more, [batch, canvas, columns]: s, then the log-weight of a count of 1, 2, ... or A_i.
        """
        encoded = self._encode(features, hidden_states)
        scores = self.head(encoded)
        if self.counts is not None:
            scores = torch.cat([scores, self.counts(encoded)], -1)
        if self.repels:
            scores = torch.cat([scores, self._affinity(encoded)], -1)
        return scores.squeeze(-1).float()

    def dependence(self, features: Tensor, hidden_states: Tensor, entropy: Tensor) -> Tensor:
        """A [batch, canvas, canvas], nats, in [0, min(H_i, H_j)] as mutual information is; entropy [batch, canvas]."""
        share = self._affinity(self._encode(features, hidden_states)).float().sigmoid()
        return torch.minimum(entropy[:, :, None], entropy[:, None, :]) * share

    def _affinity(self, encoded: Tensor) -> Tensor:
        affinity = self.receives(encoded) @ self.gives(encoded).mT / self.receives.out_features**0.5
        index = torch.arange(encoded.shape[1], device=encoded.device)
        apart = (index[:, None] - index).clamp(-REACH, REACH) + REACH
        return affinity + self.distance(apart).squeeze(-1)

    def _encode(self, features: Tensor, hidden_states: Tensor) -> Tensor:
        dtype = self.features.weight.dtype
        inputs = self.features(features.to(dtype))
        if self.hidden_states is not None:
            inputs = inputs + self.hidden_states(hidden_states.to(dtype))
        return self.encoder(inputs)


def confidence_logit(predictions: Predictions) -> Tensor:
    """What the factor law's scores correct, [batch, canvas]."""
    return predictions.confidence.logit(eps=1e-6)


def features_of(step: Step) -> Tensor:
    """What the predictions and the budget say at each position, [batch, canvas, 8], all of order 1."""
    predictions, masked = step.predictions, step.masked.float()
    share = masked.mean(-1, keepdim=True)
    left = torch.full_like(share, float(step.steps_left))
    quota = share / left
    columns = [
        predictions.confidence,
        predictions.margin,
        predictions.entropy,
        (predictions.entropy + 1e-4).log() / 4,
        masked,
        share.expand_as(masked),
        quota.expand_as(masked),
        left.log().expand_as(masked),
    ]
    return torch.stack(columns, -1)


class OrderScorer(HubMixin, PreTrainedModel):  # pyrefly: ignore[inconsistent-inheritance]
    """The order prior p_psi(r_t | x_t). Load one with `from_pretrained`, make one for a denoiser with `for_denoiser`.

    With law "non_empty" the success logits are `ancestral_logit(steps left) + s`: an untrained scorer, whose s is 0,
    decodes exactly as ancestral sampling does, and its bound is the denoiser's own T-step bound. So it is with "count",
    "plackett_luce" and "repulsive". With law "dependent" it visits positions by rising entropy and accepts them while
    their learned dependence stays within a bound. With law "factor" s corrects the logit of the confidence to that of
    the probability that the most likely token is right: an untrained scorer decodes exactly as the factor rule does.
    """

    config: OrderScorerConfig
    config_class = OrderScorerConfig
    main_input_name = "step"
    base_model_prefix = "order_scorer"

    def __init__(self, config: OrderScorerConfig):
        super().__init__(config)
        self.network = OrderNetwork(config, law=config.law)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Modules initialise themselves: the head has to start at zero."""

    @classmethod
    def for_denoiser(cls, denoiser: Denoiser, **kwargs: Any) -> "OrderScorer":
        """A new scorer of the right shape; `kwargs` are fields of `OrderScorerConfig`."""
        return cls(OrderScorerConfig.for_denoiser(denoiser, **kwargs))

    @property
    def is_random(self) -> bool:
        """Whether two draws from its law can differ."""
        return self.config.law not in DETERMINISTIC_LAWS

    def forward(self, step: Step) -> Tensor:
        """What the law is made of: scores; of the dependent law A [batch, canvas, canvas], of the factor law logits."""
        features, predictions = features_of(step), step.predictions
        if self.config.law in DETERMINISTIC_LAWS:
            features = features[..., : FEATURES - BUDGET_FEATURES]
        if self.config.law == "dependent":
            # pyrefly: ignore[bad-argument-type] (`needs_hidden_states` asks for them)
            return self.network.dependence(features, step.hidden_states, predictions.entropy)
        # pyrefly: ignore[bad-argument-type]
        scores = self.network.scores(features, step.hidden_states)
        return scores + confidence_logit(predictions) if self.config.law == "factor" else scores

    def law(self, step: Step, values: Tensor, *, bias: float = 0.0) -> SubsetDistribution:
        """The law of the positions to unmask, from `values`, which `forward` gave. A larger `bias` unmasks more.

        It is added to the scores, times k to the log-weight of a count of k, or to the logarithm of the bound; the
        max-normalised law does not feel it.
        """
        config = self.config
        if config.law not in DETERMINISTIC_LAWS:
            return order_law(config.law, values, step, temperature=config.law_temperature, bias=bias)
        bound = config.bound * math.exp(bias)
        if config.law == "factor":
            return BoundedRisk(values, step.masked, bound=bound)
        entropy = step.predictions.entropy
        return BoundedDependence(values, config.entropy_weight * entropy, -entropy, step.masked, bound=bound)

    def exploring_law(
        self, step: Step, values: Tensor, *, bias: float = 0.0, temperature: float = 0.5, where: Tensor
    ) -> SubsetDistribution:
        """`law`, or in place of the factor law, which has no density, a random one around its set, for training.

        Each position is in with the probability `sigmoid((logit - edge) / temperature)`, given that one is
        (`NonEmptyBernoulli`), `edge` lying between the smallest logit in the law's set and the largest outside it.
        Outside `where`, bool [batch, canvas], it is the law's set itself.
        """
        if self.config.law != "factor":
            return self.law(step, values, bias=bias)
        edge = factor_edge(values.detach(), step.masked, self.config.bound * math.exp(bias))
        own = self.law(step, values.detach(), bias=bias).mean
        return NonEmptyBernoulli(torch.where(where, (values - edge) / temperature, 120.0 * own - 60.0), step.masked)

    def check_fits(self, denoiser: Denoiser) -> None:
        """Raises `ValueError` unless this scorer was made for a denoiser of this shape."""
        mine, config = self.config, denoiser.model.config
        for name, expected, got in (
            ("hidden size", mine.denoiser_hidden_size or denoiser.hidden_size, denoiser.hidden_size),
            ("vocabulary size", mine.vocab_size, config.vocab_size),
            ("mask token id", mine.mask_token_id, denoiser.mask_token_id),
        ):
            if expected != got:
                raise ValueError(
                    f"scorer was made for another denoiser ({mine.base_model_name_or_path or 'unnamed'}): "
                    f"its {name} must be {expected}, but this model's is {got}"
                )
        expected, got = mine.base_model_revision, getattr(config, "_commit_hash", None)
        if expected and got and expected != got:
            warnings.warn(
                f"scorer was trained with revision {expected} of {mine.base_model_name_or_path}, "
                f"but this model is of revision {got}",
                stacklevel=2,
            )


def order_law(law: str, scores: Tensor, step: Step, *, temperature: float, bias: float = 0.0) -> SubsetDistribution:
    """The law named `law` made of these `OrderNetwork.scores`; prior and posterior both come from here.

    Each adds what it starts from: the max-normalised law the entropy rule (equal scores would unmask everything), the
    others the ancestral schedule, for the counted ones in the form of binomial counts. Dividing by tau = 0.1 makes the
    heads learn ten times as fast as the rest: equal scores are a saddle, and at one rate for all the rest can follow
    the noise before the heads have left it.
    """
    if law == "max_normalized":
        return MaxNormalizedBernoulli(scores - step.predictions.entropy, step.masked, temperature=temperature)
    steps_left = torch.full((), float(step.steps_left), device=scores.device)
    logit = ancestral_logit(steps_left) + bias
    if law in COUNTED:
        which, counts = (scores / temperature).unbind(-1)
        return COUNTED[law](log_binomial(step.masked, logit) + counts, which, step.masked)
    if law == "repulsive":
        free, repulsion = (scores / temperature).split((1, scores.shape[-1] - 1), -1)
        return RepulsiveBernoulli(free.squeeze(-1) + logit, repulsion, -step.predictions.entropy, step.masked)
    return NonEmptyBernoulli(scores / temperature + logit, step.masked)


AutoConfig.register(OrderScorerConfig.model_type, OrderScorerConfig)
AutoModel.register(OrderScorerConfig, OrderScorer)
