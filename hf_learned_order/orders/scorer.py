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
from hf_learned_order.orders.configuration import DETERMINISTIC_LAWS, OrderScorerConfig
from hf_learned_order.orders.features import features_of
from hf_learned_order.orders.laws.base import SubsetDistribution, ancestral_logit
from hf_learned_order.orders.laws.bounded import BoundedDependence, BoundedRisk, matching_edge
from hf_learned_order.orders.laws.counted import log_binomial
from hf_learned_order.orders.laws.max_normalized import MaxNormalizedBernoulli
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli
from hf_learned_order.orders.laws.regret import BoundedRegret, RandomRegret, packed
from hf_learned_order.orders.laws.repulsive import RepulsiveBernoulli
from hf_learned_order.orders.network import COUNTED, OrderNetwork
from hf_learned_order.orders.saving import HubMixin
from hf_learned_order.orders.warm_starts import WarmStart, warm_start

LARGEST = 12.0  # of the logarithm of a weight


def confidence_logit(predictions: Predictions) -> Tensor:
    """What the scores of "regret" and "factor" correct, [batch, canvas]."""
    return predictions.confidence.logit(eps=1e-6)


class OrderScorer(HubMixin, PreTrainedModel):  # pyrefly: ignore[inconsistent-inheritance]
    """The order prior p_psi(r_t | x_t). Load one with `from_pretrained`, make one for a denoiser with `for_denoiser`.

    With law "non_empty" the success logits are `ancestral_logit(steps left) + s`: an untrained scorer, whose s is 0,
    decodes exactly as ancestral sampling does, and its bound is the denoiser's own T-step bound. So it is with "count",
    "plackett_luce" and "repulsive". With a `warm_start` an untrained scorer decodes nearly as that rule does instead.
    With law "regret" it visits positions by a learned probability that their most likely tokens stay right, and accepts
    them while doubt and what they would regret of one another stay within a bound: an untrained scorer decodes exactly
    as the factor rule does. With law "dependent" it visits positions by rising entropy and accepts them while their
    learned dependence stays within a bound. With law "factor" s corrects the logit of the confidence to that of the
    probability that the most
    likely token is right: an untrained scorer decodes exactly as the factor rule does.
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
        return self.config.law not in DETERMINISTIC_LAWS

    def forward(self, step: Step) -> Tensor:
        """What the law is made of: scores; of the dependent law A [batch, canvas, canvas], of the factor law logits, of
        the regret law all that `laws.regret.packed` packs.
        """
        if self.config.law == "regret":
            logits, log_weights, pairs = self.costs(step)
            return packed(logits, log_weights.clamp(-LARGEST, LARGEST).exp(), self.config.pair_weight * pairs)
        features, predictions = features_of(step, self.config.seen), step.predictions
        if self.config.law == "dependent":
            # pyrefly: ignore[bad-argument-type] (`layers_seen` asks for them)
            return self.network.dependence(features, step.hidden_states, predictions.entropy, step.padding)
        # pyrefly: ignore[bad-argument-type]
        scores = self.network.scores(features, step.hidden_states, step.padding)
        return scores + confidence_logit(predictions) if self.config.law == "factor" else scores

    def costs(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Of the regret law: logit of q and log of w [batch, canvas]; A [batch, canvas, canvas] without its weight."""
        predictions = step.predictions
        correction, log_weights, pairs = self.network.costs(
            features_of(step, self.config.seen),
            step.hidden_states,  # pyrefly: ignore[bad-argument-type] (`layers_seen` asks for them)
            predictions.entropy,
            step.padding,
        )
        return confidence_logit(predictions) + correction, log_weights, pairs

    def law(self, step: Step, values: Tensor, *, bias: float = 0.0) -> SubsetDistribution:
        """The law of the positions to unmask, from `values`, which `forward` gave. A larger `bias` unmasks more.

        It is added to the scores, times k to the log-weight of a count of k, or to the logarithm of the bound; the
        max-normalised law does not feel it.
        """
        config = self.config
        if config.law not in DETERMINISTIC_LAWS:
            start = start_of(config, step)
            whole = bias + config.law_bias + (0.0 if self.tilt is None else self.tilt)
            return order_law(config.law, values, step, temperature=config.law_temperature, bias=whole, start=start)
        bound = config.bound * math.exp(bias)
        if config.law == "regret":
            return BoundedRegret(values, step.masked, bound=bound)
        if config.law == "factor":
            return BoundedRisk(values, step.masked, bound=bound)
        entropy = step.predictions.entropy
        return BoundedDependence(values, config.entropy_weight * entropy, -entropy, step.masked, bound=bound)

    def exploring_law(
        self, step: Step, values: Tensor, *, bias: float = 0.0, temperature: float = 0.5, where: Tensor
    ) -> SubsetDistribution:
        """`law`, or in place of one that draws nothing a random one, for training. Outside `where`, bool [batch,
        canvas], that is the law's set itself.

        Of the regret law it is its random form, `RandomRegret`, with the configuration's temperature. Of the factor law
        it is one around its set, with `temperature`. Each position is in with the probability `sigmoid((logit - edge) /
        temperature)`, given that one is (`NonEmptyBernoulli`). The `edge` is where these sum to the number of positions
        in the law's set (`matching_edge`): among equal logits as well as many are in as in the law, and where
        everything is in the law's set something may still stay out, or nothing would be learned there any more.
        """
        if self.config.law not in ("regret", "factor"):
            return self.law(step, values, bias=bias)
        tilt = 0.0 if self.tilt is None else self.tilt
        if self.config.law == "regret":
            return RandomRegret(
                values,
                step.masked,
                bound=self.config.bound * torch.as_tensor(bias + tilt).exp(),
                temperature=self.config.law_temperature,
                where=where,
                otherwise=self.law(step, values.detach(), bias=bias).mean > 0,
            )
        own = self.law(step, values.detach(), bias=bias).mean
        count = (own * where).sum(-1, keepdim=True)
        edge = matching_edge(values.detach(), step.masked & where, count, temperature)
        around = (values - edge + tilt) / temperature
        return NonEmptyBernoulli(torch.where(where, around, 120.0 * own - 60.0), step.masked)

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
        if mine.hidden_layers is not None:
            denoiser.layer_numbers(mine.hidden_layers)
        expected, got = mine.base_model_revision, getattr(config, "_commit_hash", None)
        if expected and got and expected != got:
            warnings.warn(
                f"scorer was trained with revision {expected} of {mine.base_model_name_or_path}, "
                f"but this model is of revision {got}",
                stacklevel=2,
            )


def start_of(config: OrderScorerConfig, step: Step) -> WarmStart | None:
    """What the laws of a scorer, and of its posterior, start from at a state."""
    return None if config.warm_start is None else warm_start(config.warm_start, step, bound=config.bound)


def order_law(
    law: str,
    scores: Tensor,
    step: Step,
    *,
    temperature: float,
    bias: float | Tensor = 0.0,
    start: WarmStart | None = None,
) -> SubsetDistribution:
    """The law named `law` made of these `OrderNetwork.scores`; prior and posterior both come from here.

    Each adds what it starts from. Without a `start` that is for the max-normalised law the entropy rule (equal scores
    would unmask everything), for the others the ancestral schedule, for the counted ones in the form of binomial
    counts. Dividing by tau = 0.1 makes the heads learn ten times as fast as the rest: equal scores are a saddle, and at
    one rate for all the rest can follow the noise before the heads have left it.
    """
    if law == "max_normalized":
        offset = -step.predictions.entropy if start is None else start.offset.clamp(max=0.0)
        return MaxNormalizedBernoulli(scores + offset, step.masked, temperature=temperature)
    offset = torch.zeros((), device=scores.device)
    logit = offset + bias  # differentiable, see `OrderScorer.tilt`
    if start is None:
        logit = logit + ancestral_logit(torch.full((), float(step.steps_left), device=scores.device))
    else:
        offset = start.offset
    if law in COUNTED:
        which, counts = scores.unbind(-1)
        if start is None:
            counts = log_binomial(step.masked, logit) + counts / temperature
        else:
            size = torch.arange(1.0, counts.shape[-1] + 1, device=counts.device)
            counts = size * logit + (counts + start.of_count(size)) / temperature
        return COUNTED[law](counts, (which + offset) / temperature, step.masked)
    if law == "repulsive":
        free, repulsion = scores.split((1, scores.shape[-1] - 1), -1)
        free = (free.squeeze(-1) + offset) / temperature + logit
        return RepulsiveBernoulli(free, repulsion / temperature, -step.predictions.entropy, step.masked)
    return NonEmptyBernoulli((scores + offset) / temperature + logit, step.masked)


AutoConfig.register(OrderScorerConfig.model_type, OrderScorerConfig)
AutoModel.register(OrderScorerConfig, OrderScorer)
