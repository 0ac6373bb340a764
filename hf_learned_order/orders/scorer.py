"""The learned order: `OrderScorer`, the prior p_psi(r_t | x_t), which generation uses and the Hub holds.

It sees what generation sees and nothing else: the denoiser's predictions and hidden states on the partly masked
canvas, and how many steps of the budget are left.

Symbols: `s` scores, `H` entropy, `T - t` steps left.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.features import features_of
from hf_learned_order.orders.laws.base import OneSet, SubsetDistribution, ancestral_logit
from hf_learned_order.orders.laws.counted import CountedBernoulli, log_binomial
from hf_learned_order.orders.laws.max_normalized import MaxNormalizedBernoulli
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli
from hf_learned_order.orders.laws.regret import BoundedRegret, RandomRegret, acceptable, packed
from hf_learned_order.orders.network import OrderNetwork
from hf_learned_order.orders.saving import HubMixin

LARGEST = 12.0  # of the logarithm of a weight


def confidence_logit(predictions: Predictions) -> Tensor:
    """What the regret law corrects, [batch, canvas]."""
    return predictions.confidence.logit(eps=1e-6)


class OrderScorer(HubMixin, PreTrainedModel):  # pyrefly: ignore[inconsistent-inheritance]
    """The order prior p_psi(r_t | x_t). Load one with `from_pretrained`, make one for a denoiser with `for_denoiser`.

    With law "regret" it visits positions by a learned probability that their most likely tokens stay right, and accepts
    them while doubt and what they would regret of one another stay within a bound: an untrained scorer decodes exactly
    as the factor rule does. With law "non_empty" the success logits are `ancestral_logit(steps left) + s`: an untrained
    scorer, whose s is 0, decodes exactly as ancestral sampling does, and its bound is the denoiser's own T-step bound.
    So it is with "count".
    """

    config: OrderScorerConfig
    config_class = OrderScorerConfig
    main_input_name = "step"
    base_model_prefix = "order_scorer"
    guarantees: dict[str, dict[str, Any]]  # name -> a setting and what was promised of it (`evaluation.guarantees`)

    def __init__(self, config: OrderScorerConfig):
        super().__init__(config)
        self.network = OrderNetwork(config, law=config.law)
        self.guarantees = {}
        self.tilt: Tensor | None = None  # of training: a 0 in the bias, to differentiate by
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Modules initialise themselves: the head has to start at zero."""

    @classmethod
    def for_denoiser(cls, denoiser: Denoiser, **kwargs: Any) -> "OrderScorer":
        """A new scorer of the right shape; `kwargs` are fields of `OrderScorerConfig`.

        Raises:
            TypeError, ValueError: as `OrderScorerConfig.for_denoiser`.
        """
        return cls(OrderScorerConfig.for_denoiser(denoiser, **kwargs))

    @property
    def is_random(self) -> bool:
        """Whether two draws from its law can differ."""
        return self.config.law != "regret"

    def forward(self, step: Step) -> Tensor:
        """What the law is made of: scores, of the regret law all that `laws.regret.packed` packs."""
        if self.config.law == "regret":
            logits, log_weights, pairs = self.costs(step)
            return packed(logits, log_weights.clamp(-LARGEST, LARGEST).exp(), self.config.pair_weight * pairs)
        features = features_of(step, self.config.seen)
        # pyrefly: ignore[bad-argument-type] (`layers_seen` asks for them)
        return self.network.scores(features, step.hidden_states, step.padding)

    def costs(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Of the regret law: logit of q and log of w [batch, canvas]; A [batch, canvas, canvas] without its weight."""
        encoded, logits, log_weights = self._doubts(step)
        predictions = step.predictions
        return logits, log_weights, self._pairs(encoded, predictions.entropy, _places(encoded), predictions.tokens)

    def pairs_by_tokens(self, step: Step) -> tuple[Tensor, ...]:
        """A [batch, canvas, canvas] without its weight as it is fitted: blind to tokens, and where it can see them, as
        it sees them too, which gives no gradient to what the blind one is made of but for the encoder.
        """
        encoded, _, _ = self._doubts(step)
        network, predictions = self.network, step.predictions
        affinity = network.affinity(encoded, _places(encoded))
        blind = network.pairs(affinity, predictions.entropy)
        if network.tokens is None:
            return (blind,)
        seeing = affinity.detach() + network.tokens(encoded, predictions.tokens)
        return blind, network.pairs(seeing, predictions.entropy)

    def _pairs(self, encoded: Tensor, entropy: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        affinity = self.network.affinity(encoded, places)
        if self.network.tokens is not None and self.config.sees_tokens:
            affinity = affinity + self.network.tokens(encoded, tokens)
        return self.network.pairs(affinity, entropy)

    def _doubts(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """`OrderNetwork.doubts`, with the logit of q in the place of its correction."""
        encoded, correction, log_weights = self.network.doubts(
            features_of(step, self.config.seen),
            step.hidden_states,  # pyrefly: ignore[bad-argument-type] (`layers_seen` asks for them)
            step.padding,
        )
        return encoded, confidence_logit(step.predictions) + correction, log_weights

    def law_of(self, step: Step, *, bias: float = 0.0) -> SubsetDistribution:
        """`law` of what `forward` gives. Where no gradient is wanted the regret law gets pairs only of the positions
        that can be accepted: the same set, without A [batch, canvas, canvas].
        """
        if self.config.law != "regret" or torch.is_grad_enabled():
            return self.law(step, self(step), bias=bias)
        bound, predictions = self.config.bound * math.exp(bias), step.predictions
        encoded, logits, log_weights = self._doubts(step)
        weights = log_weights.clamp(-LARGEST, LARGEST).exp()
        able = acceptable(logits, weights, step.masked, bound=bound)
        most = max(1, int(able.sum(-1).max()))
        places = able.byte().argsort(dim=-1, descending=True, stable=True)[:, :most]  # from left to right
        encoded = encoded.gather(1, places[..., None].expand(-1, -1, encoded.shape[-1]))
        logits, weights, entropy, tokens, able = (
            part.gather(-1, places) for part in (logits, weights, predictions.entropy, predictions.tokens, able)
        )
        pairs = self.config.pair_weight * self._pairs(encoded, entropy, places, tokens)
        few = BoundedRegret(packed(logits, weights, pairs), able, bound=bound)
        law = OneSet(predictions.confidence, step.masked)
        law.accepted = torch.zeros_like(step.masked).scatter(-1, places, few.accepted)
        return law

    def law(self, step: Step, values: Tensor, *, bias: float = 0.0) -> SubsetDistribution:
        """The law of the positions to unmask, from `values`, which `forward` gave. A larger `bias` unmasks more.

        It is added to the scores, times k to the log-weight of a count of k, or to the logarithm of the bound; the
        max-normalised law does not feel it.
        """
        config = self.config
        if config.law == "regret":
            return BoundedRegret(values, step.masked, bound=config.bound * math.exp(bias))
        whole = bias + config.law_bias + (0.0 if self.tilt is None else self.tilt)
        return order_law(config.law, values, step, temperature=config.law_temperature, bias=whole)

    def exploring_law(self, step: Step, values: Tensor, *, bias: float = 0.0, where: Tensor) -> SubsetDistribution:
        """`law`, or in place of the regret law, which draws nothing, its random form, for training.

        Outside `where`, bool [batch, canvas], that takes what the law itself takes.
        """
        if self.config.law != "regret":
            return self.law(step, values, bias=bias)
        return RandomRegret(
            values,
            step.masked,
            bound=self.config.bound * torch.as_tensor(bias + (0.0 if self.tilt is None else self.tilt)).exp(),
            temperature=self.config.law_temperature,
            where=where,
            otherwise=self.law(step, values.detach(), bias=bias).mean > 0,
        )

    def check_fits(self, denoiser: Denoiser) -> None:
        """Raises `ValueError` unless this scorer was made for a denoiser of this shape and with these layers."""
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
        if mine.family is not None and mine.family != denoiser.family:
            raise ValueError(
                f"scorer was trained with a denoiser that was called in another way: its family must be {mine.family}, "
                f"but this model's is {denoiser.family}; attach(model, scorer) and load_model take the scorer's"
            )
        if mine.hidden_layers is not None:
            denoiser.layer_numbers(mine.hidden_layers)
        expected, got = mine.base_model_revision, getattr(config, "_commit_hash", None)
        if expected and got and expected != got:
            warnings.warn(
                f"scorer was trained with revision {expected} of {mine.base_model_name_or_path}, "
                f"but this model is of revision {got}",
                stacklevel=2,
            )


def order_law(
    law: str, scores: Tensor, step: Step, *, temperature: float, bias: float | Tensor = 0.0
) -> SubsetDistribution:
    """The law named `law` made of these `OrderNetwork.scores`; prior and posterior both come from here.

    Each adds what it starts from: the max-normalised law the entropy rule (equal scores would unmask everything), the
    others the ancestral schedule, the counted one in the form of binomial counts. Dividing by tau = 0.1 makes the heads
    learn ten times as fast as the rest: equal scores are a saddle, and at one rate for all the rest can follow the
    noise before the heads have left it.
    """
    if law == "max_normalized":
        return MaxNormalizedBernoulli(scores - step.predictions.entropy, step.masked, temperature=temperature)
    # differentiable in the bias, see `OrderScorer.tilt`
    logit = bias + ancestral_logit(torch.ones((), device=scores.device) * step.steps_left)
    if law == "count":
        which, counts = scores.unbind(-1)
        counts = log_binomial(step.masked, logit) + counts / temperature
        return CountedBernoulli(counts, which / temperature, step.masked)
    return NonEmptyBernoulli(scores / temperature + logit, step.masked)


def _places(encoded: Tensor) -> Tensor:
    return torch.arange(encoded.shape[1], device=encoded.device)[None]


AutoConfig.register(OrderScorerConfig.model_type, OrderScorerConfig)
AutoModel.register(OrderScorerConfig, OrderScorer)
