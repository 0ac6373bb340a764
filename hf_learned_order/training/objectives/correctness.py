"""Whether the denoiser's most likely token at a position is the right one, learned where decoding goes.

The confidence of a denoiser is an estimate of it, made for masks at random. Decoding is elsewhere: it has unmasked what
looked surest, and looks for more of it. So the scorer is trained on its own decodings: at each state that one passes,
as long as nothing wrong has been unmasked, every masked position gives one observation,

    y^i = 1 if argmax_v p_theta(v | x_t) at i is x^i,     loss = cross-entropy of y^i under sigmoid(logit c^i + s^i).

Each update decodes with a bound and a step budget of its own, so that one scorer serves all of them. Sources: a
filter trained to tell what is final (Learn2PD, arXiv 2509.25188, there on a slow decoding's tokens), and the states of
the learner's own policy (DAgger, arXiv 1011.0686).

Symbols: `x` clean, `x_t` canvas, `c` confidence, `s` scores, `T` max_denoising_steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Proposal, State
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.scorer import OrderScorer, confidence_logit
from hf_learned_order.training.updates import Draws, mean_of

BIASES = (-1.5, 1.0)  # from slow, where little goes wrong, to about as fast as is of use


def losses(step: Step, logits: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of `logits` and of the confidence, nats, summed over positions, and how many positions.

    All are of the masked positions [batch, canvas] of the rows where nothing wrong has been unmasked: what would be
    right after that, nobody knows.
    """
    on_course = (step.masked | (step.canvas == clean)).all(-1, keepdim=True)
    observed = (step.masked & on_course).float()
    right = (step.predictions.tokens == clean).float()
    loss, confidence_loss = (
        binary_cross_entropy_with_logits(each, right, weight=observed, reduction="sum")
        for each in (logits, confidence_logit(step.predictions))
    )
    return loss, confidence_loss, observed.sum()


class CorrectnessObjective(nn.Module):
    """Fits a scorer with the "factor" law. Batch in, loss and measurements out, as `OrderELBO`.

    Args:
        denoiser: p_theta, never trained by this objective.
        scorer: an `OrderScorer` with law "factor".
        max_denoising_steps: the largest T; each update draws its own from `min_denoising_steps` to this.
        min_denoising_steps: the smallest T; None: 2.
        eos_token_id: a row is finished when everything before its first EOS is settled, as in generation.

    Raises:
        ValueError: the scorer has another law, `max_denoising_steps` or `min_denoising_steps` is below 2 (one step
            leaves nothing to choose), or the latter above the former.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int,
        min_denoising_steps: int | None = None,
        eos_token_id: int | None = None,
    ):
        super().__init__()
        if scorer.config.law != "factor":
            raise ValueError(f'law must be "factor", got {scorer.config.law!r}: use another objective for it')
        if max_denoising_steps < 2:
            raise ValueError(
                f"max_denoising_steps must be 2 or more, got {max_denoising_steps}: one step leaves nothing to choose"
            )
        least = 2 if min_denoising_steps is None else min_denoising_steps
        if not 2 <= least <= max_denoising_steps:
            raise ValueError(
                "min_denoising_steps must be 2 or more and at most max_denoising_steps, "
                f"got {least} and {max_denoising_steps}"
            )
        self.denoiser = denoiser
        self.scorer = scorer
        self.max_denoising_steps = max_denoising_steps
        self.min_denoising_steps = least
        self.eos_token_id = eos_token_id

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` (nats a position), `confidence_loss` (the same with s = 0), `exact` (share of responses) and `nfe`.

        `seeds` are those of `updates.Draws`; `given` bool [batch, canvas] are positions of `clean` that are known from
        the start.

        Raises:
            ValueError: `clean` has one position, which leaves nothing to choose.
        """
        if clean.shape[1] < 2:
            raise ValueError(f"clean must have 2 or more positions, got {clean.shape[1]}: one leaves nothing to choose")
        draws = Draws(seeds, rows=len(clean), device=clean.device)
        steps = draws.integer(self.min_denoising_steps, self.max_denoising_steps)
        sampler = _Observed(
            scorer=self.scorer,
            bias=draws.number(*BIASES),
            clean=torch.cat([input_ids, clean], 1),
            seen=[],
        )
        output = decode(
            self.denoiser,
            **start(input_ids, attention_mask, clean, given, mask_token_id=self.denoiser.mask_token_id),
            sampler=sampler,
            max_denoising_steps=min(steps, clean.shape[1]),
            eos_token_id=self.eos_token_id,
        )
        losses, confidence_losses, counts = (torch.stack(parts).sum() for parts in zip(*sampler.seen, strict=True))
        response = output.sequences[:, -clean.shape[1] :]
        return {
            "loss": mean_of(losses, counts),
            "confidence_loss": mean_of(confidence_losses, counts),
            "exact": (response == clean).all(-1).float().mean(),
            "nfe": output.nfe.float().mean(),
        }


@dataclass(frozen=True, kw_only=True)
class _Observed(LearnedOrderSampler):
    """The learned order, and at each of its steps what there is to learn."""

    clean: Tensor  # prompt and response
    seen: list[tuple[Tensor, Tensor, Tensor]]  # sums over positions of both losses, and how many positions

    def propose(self, step: Step, state: State) -> Proposal:
        clean = self.clean[step.rows, -step.masked.shape[1] :]
        with torch.enable_grad():  # decoding is without
            logits = self.scorer(step)
            self.seen.append(losses(step, logits, clean))
        return Proposal(self.scorer.law(step, logits.detach(), bias=self.bias).sample())
