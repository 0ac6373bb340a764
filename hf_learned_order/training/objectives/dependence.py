"""How much one masked position says about another, learned from the denoiser itself, without labels.

    I_ij(x_t) = E_{x^j} KL(p_theta(x^i | x_t, x^j) || p_theta(x^i | x_t)),     the mutual information of x^i and x^j

What a step loses by unmasking positions in parallel is their total correlation; what the law adds up for it can be
observed. At a state x_t some masked positions V are revealed with their true tokens, which stand in for a draw from
the denoiser, and a second call gives the KL of every other position i: one sample of I(x^i; x^V), which the law takes
for the sum of A_ij over V. The Poisson loss `A - KL log A` has its minimum at the mean of the samples. For V of one
position that mean is the mutual information of the pair; larger V teach the sum what several positions say together.

Symbols: `x` clean, `x_t` canvas, `M_t` masked, `V` revealed, `A` dependence, `H` entropy.
"""

import torch
from torch import Tensor, nn

from hf_learned_order.decoding.canvas import left_padded, padding_behind
from hf_learned_order.denoisers.denoiser import Denoiser, predict
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import largest
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.updates import Draws, mean_of

LARGEST_KL = 10.0  # nats; a position that the denoiser had ruled out would otherwise outweigh a batch


class DependenceObjective(nn.Module):
    """Fits a scorer with the "dependent" law. Batch in, loss and measurements out, as `OrderELBO`.

    Each response is seen at two states: the fully masked canvas, where every decoding starts, and one that is reached
    from it by unmasking a random share of the positions, those of low entropy first.

    Args:
        denoiser: p_theta, never trained by this objective.
        scorer: an `OrderScorer` with law "dependent".

    Raises:
        ValueError: the scorer has another law.
    """

    def __init__(self, denoiser: Denoiser, scorer: OrderScorer):
        super().__init__()
        if scorer.config.law != "dependent":
            raise ValueError(f'law must be "dependent", got {scorer.config.law!r}: use another objective for it')
        self.denoiser = denoiser
        self.scorer = scorer

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` (to be minimised) and the mean `observed` and `predicted` dependence of a pair, nats.

        `seeds` are those of `updates.Draws`; `given` bool [batch, canvas] are positions of `clean` that are known from
        the start.
        """
        draws = Draws(seeds, rows=len(clean), device=clean.device)
        prompt, prompt_mask = left_padded(input_ids, attention_mask)
        masked = torch.ones_like(clean, dtype=torch.bool) if given is None else ~given
        step = self._step(prompt, prompt_mask, clean, masked)
        first = self._observe(prompt, prompt_mask, clean, step, draws)
        entropy = step.predictions.entropy
        share = draws.uniform(1)
        remaining = (share * masked.sum(-1, keepdim=True)).long().clamp(min=2)
        step = self._step(prompt, prompt_mask, clean, largest(_noisy(entropy, draws), masked, remaining))
        second = self._observe(prompt, prompt_mask, clean, step, draws)
        loss, observed, predicted = ((a + b) / 2 for a, b in zip(first, second, strict=True))
        return {"loss": loss, "observed": observed, "predicted": predicted}

    def _observe(
        self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, step: Step, draws: Draws
    ) -> tuple[Tensor, ...]:
        """The loss on sums of A over one random set a row, and the means of what was observed and predicted."""
        revealed = self._revealed(step, draws)
        others = step.masked & ~revealed
        after = self._step(prompt, prompt_mask, clean, others).predictions
        observed = after.kl(step.predictions.log_probs).clamp(0.0, LARGEST_KL)
        predicted = (self.scorer(step) * revealed[:, None]).sum(-1).clamp(min=1e-6)
        terms = (predicted - observed * predicted.log(), observed, predicted.detach())
        return tuple(mean_of((term * others).sum(), others.sum()) for term in terms)

    def _revealed(self, step: Step, draws: Draws) -> Tensor:
        """V: one position in a third of the rows, else n^u of the n masked ones, u uniform; at least one is left.

        Half of the sets are uniform, half are of low entropy, as those are that decoding unmasks together.
        """
        entropy, masked = step.predictions.entropy, step.masked
        single, low, exponent = draws.uniform(3, 1).unbind(1)
        count = masked.sum(-1, keepdim=True)
        size = torch.where(single < 1 / 3, 1, count**exponent).long().clamp(min=1)
        size = torch.minimum(size, (count - 1).clamp(min=1))
        chance = draws.uniform(masked.shape[1])
        return largest(torch.where(low < 0.5, chance, chance * 1e-3 - _noisy(entropy, draws)), masked, size)

    @torch.no_grad()
    def _step(self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, masked: Tensor) -> Step:
        canvas = clean.masked_fill(masked, self.denoiser.mask_token_id)
        layers = self.scorer.config.layers_seen
        predictions, hidden = predict(self.denoiser, prompt, prompt_mask, canvas, hidden_states=layers)
        padding = padding_behind(prompt, prompt_mask)
        # no budget here
        return Step(predictions=predictions, masked=masked, steps_left=1, hidden_states=hidden, padding=padding)


def _noisy(entropy: Tensor, draws: Draws) -> Tensor:
    return entropy * (1 + 0.3 * draws.normal(entropy.shape[1]))
