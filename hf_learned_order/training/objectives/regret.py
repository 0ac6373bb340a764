"""What a step regrets, learned from decodings of the scorer itself and from the denoiser's own answers.

The regret law has two parts, each with a loss of its own; the encoder is shared.

*Doubt.* A denoiser's confidence is made for masks at random. Decoding is elsewhere: it has unmasked what looked surest,
and looks for more of it. So each batch is decoded, by q alone and with a bound and a step budget of its own. At each
state, as long as nothing wrong has been unmasked, every masked position gives one observation:

    y_i = 1 if argmax_v p_theta(v | x_t) at i is x_i,     loss = cross-entropy of y_i under q_i

*Pairs.* At a state x_t some masked positions V take the tokens that a step would give them, v_j = argmax_v p_theta(v |
x_t) at j, and the denoiser is asked again. What position i, had it been in that step, would have lost by not waiting is

    regret_i(V) = max_v log p_theta(v | x_t, v_V) - log p_theta(v_i | x_t, v_V)     nats, 0 or more

It is 0 where i became surer of the same token, small where two tokens were equally good and still are, large where v_i
has been ruled out. The sum of A_ij over V is fitted to it by a Poisson loss, `A - regret log A`, whose minimum is the
mean of what is observed. It needs no labels; with the response's tokens in the place of v_V it would be the mean over
what might stand there, which says less of a greedy step.

Decoding at a temperature tau above 0 draws its tokens. Then v_V is drawn too, and the regret is that of a draw: with
p_tau proportional to p_theta^(1/tau), the law that tokens are drawn from,

    regret_i(V) = sum over v of p_tau(v | x_t) max(0, tau log p_tau(v | x_t) / p_tau(v | x_t, v_V))     nats

which for tau -> 0 is the one above. A token that has been ruled out counts as often as it would have been drawn.

Sources: a filter trained to tell what is final (Learn2PD, arXiv 2509.25188), states of the learner's own decodings
(DAgger, arXiv 1011.0686), dependence predicted from hidden states (DEMASK, arXiv 2604.02560, there total variation).
Symbols: `x` clean, `x_t` canvas, `M_t` masked, `V` positions that are taken, `q`, `A` as in `laws.regret`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_learned_order.common.checks import check_temperature
from hf_learned_order.decoding.canvas import padding_behind
from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Proposal, State
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.calls import predict
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.laws.base import largest
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Batch, Objective
from hf_learned_order.training.objectives.updates import Draws, mean_of

BIASES = (-1.5, 1.0)  # of the decodings: from slow, where little goes wrong, to about as fast as is of use
LARGEST_REGRET = 10.0  # nats; a token that has been ruled out would otherwise outweigh a batch


def doubt_loss(step: Step, logits: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `logits` of q, nats, summed over positions, and how many positions.

    They are the masked positions [batch, canvas] of the rows where nothing wrong has been unmasked: what would be right
    after that, nobody knows.
    """
    on_course = (step.masked | (step.canvas == clean)).all(-1, keepdim=True)
    observed = (step.masked & on_course).float()
    right = (step.predictions.tokens == clean).float()
    return binary_cross_entropy_with_logits(logits, right, weight=observed, reduction="sum"), observed.sum()


def regret(before: Predictions, after: Predictions, temperature: float = 0.0) -> Tensor:
    """[batch, canvas], nats: what the tokens that `before` is decoded to lose `after` more is known.

    Those are the most likely ones at temperature 0, else draws: then it is the mean over them.
    """
    if temperature == 0.0:
        return (after.confidence.log() - after.log_prob(before.tokens)).clamp(0.0, LARGEST_REGRET)
    # of these only logits are asked for
    sooner, later = (replace(each, logits=each.logits.float() / temperature) for each in (before, after))
    return temperature * sooner.kl(later.log_probs, losses_below=LARGEST_REGRET / temperature)


class RegretObjective(Objective):
    """Fits a scorer with the "regret" law.

    How much doubt and pairs weigh against each other is not learned here: `weighing.choose_weights` does it afterwards.

    Args:
        denoiser: p_theta, never trained by this objective.
        scorer: an `OrderScorer` with law "regret".
        max_denoising_steps: the largest T of the decodings; each update draws its own from `min_denoising_steps` to
            this.
        min_denoising_steps: the smallest T; None: 2.
        eos_token_id: a row is finished when everything before its first EOS is settled, as in generation.
        temperature: of the decodings that the scorer is for, tau; 0: greedy.

    Raises:
        ValueError: the scorer has another law, `max_denoising_steps` or `min_denoising_steps` is below 2 (one step
            leaves nothing to choose), the latter above the former, or the temperature negative or not finite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int = 12,
        min_denoising_steps: int | None = None,
        eos_token_id: int | None = None,
        temperature: float = 0.0,
    ):
        super().__init__(denoiser, scorer, max_denoising_steps=max_denoising_steps, eos_token_id=eos_token_id)
        check_temperature(temperature, finite=True)
        if scorer.config.law != "regret":
            raise ValueError(f'law must be "regret", got {scorer.config.law!r}: use another objective for it')
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
        self.min_denoising_steps = least
        self.temperature = temperature

    def measured(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the sum of `doubt_loss` and `pair_loss` (nats a position), the mean `observed` and `predicted` regret
        (nats), `exact` (share of responses) and `nfe` of the decodings.

        Raises:
            ValueError: `clean` has one position, which leaves nothing to choose.
        """
        length = batch.clean.shape[1]
        if length < 2:
            raise ValueError(f"clean must have 2 or more positions, got {length}: one leaves nothing to choose")
        doubt = self._doubt(batch)
        pairs = self._pairs(batch)
        return {"loss": doubt["doubt_loss"] + pairs["pair_loss"], **doubt, **pairs}

    def _doubt(self, batch: Batch) -> dict[str, Tensor]:
        """From one decoding of each row."""
        clean, draws, block_size = batch.clean, batch.draws, self.denoiser.family.block_size
        steps = draws.integer(self.min_denoising_steps, self.max_denoising_steps)
        if block_size is not None:  # blocks share a budget, and in the last step nothing is chosen
            steps *= 1 + math.ceil((clean.shape[1] - 1) / block_size)
        whole = torch.cat([batch.input_ids, clean], 1)
        sampler = _Observed(scorer=self.scorer, bias=draws.number(*BIASES), clean=whole, seen=[])
        prompt = batch.input_ids, batch.attention_mask
        output = decode(
            self.denoiser,
            **start(*prompt, clean, batch.given, mask_token_id=self.denoiser.mask_token_id),
            sampler=sampler,
            max_denoising_steps=min(steps, clean.shape[1]),
            eos_token_id=self.eos_token_id,
        )
        losses, counts = (torch.stack(parts).sum() for parts in zip(*sampler.seen, strict=True))
        return {
            "doubt_loss": mean_of(losses, counts),
            "exact": (output.sequences[:, -clean.shape[1] :] == clean).all(-1).float().mean(),
            "nfe": output.nfe.float().mean(),
        }

    def _pairs(self, batch: Batch) -> dict[str, Tensor]:
        """From each response at two states: where its decoding starts, and one that is reached from there by unmasking
        a random share of the positions, those of low entropy first.
        """
        place, masked, draws = (batch.prompt, batch.prompt_mask, batch.clean), batch.masked, batch.draws
        step = self._step(*place, masked)
        first = self._observe(*place, step, draws)
        remaining = (draws.uniform(1) * masked.sum(-1, keepdim=True)).long().clamp(min=2)
        kept = largest(_noisy(step.predictions.entropy, draws), masked, remaining)
        second = self._observe(*place, self._step(*place, kept), draws)
        means = ((a + b) / 2 for a, b in zip(first, second, strict=True))
        return dict(zip(("pair_loss", "observed", "predicted"), means, strict=True))

    def _observe(
        self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, step: Step, draws: Draws
    ) -> tuple[Tensor, ...]:
        """The loss on sums of A over one random set a row, and the means of what was observed and predicted.

        A that sees tokens has a loss of its own beside that of the blind one, and `weighing` chooses between them.
        """
        taken = self._taken(step, draws)
        others = step.masked & ~taken
        before = step.predictions
        chosen = before.tokens
        if self.temperature > 0:
            chosen = before.draw(temperature=self.temperature, uniform=draws.uniform(chosen.shape[1]).flatten())
        tokens = torch.where(taken, chosen, clean)
        after, _ = self._predict(prompt, prompt_mask, tokens, others)
        observed = regret(before, after, self.temperature)
        del after  # its logits, before there is a graph
        sums = [(pairs * taken[:, None]).sum(-1).clamp(min=1e-6) for pairs in self.scorer.pairs_by_tokens(step)]
        losses = [predicted - observed * predicted.log() for predicted in sums]
        terms = (torch.stack(losses).sum(0), observed, sums[-1].detach())
        return tuple(mean_of((term * others).sum(), others.sum()) for term in terms)

    def _taken(self, step: Step, draws: Draws) -> Tensor:
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

    def _step(self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, masked: Tensor) -> Step:
        predictions, hidden = self._predict(prompt, prompt_mask, clean, masked)
        if self.temperature == 0:
            predictions = predictions.without_logits()  # or they would live beside those of the next call
        return Step(
            predictions=predictions,
            masked=masked,
            steps_left=1,  # the law knows no budget
            hidden_states=hidden,
            padding=padding_behind(prompt, prompt_mask),
        )

    @torch.no_grad()
    def _predict(
        self, prompt: Tensor, prompt_mask: Tensor, clean: Tensor, masked: Tensor
    ) -> tuple[Predictions, Tensor | None]:
        canvas = clean.masked_fill(masked, self.denoiser.mask_token_id)
        return predict(self.denoiser, prompt, prompt_mask, canvas, hidden_states=self.scorer.config.layers_seen)


def _noisy(entropy: Tensor, draws: Draws) -> Tensor:
    return entropy * (1 + 0.3 * draws.normal(entropy.shape[1]))


@dataclass(frozen=True, kw_only=True)
class _Observed(LearnedOrderSampler):
    """The learned order, and at each of its steps what there is to learn of doubt."""

    clean: Tensor  # prompt and response
    seen: list[tuple[Tensor, Tensor]]  # sums over positions of the loss, and how many positions

    def propose(self, step: Step, state: State) -> Proposal:
        clean = self.clean[step.rows, -step.masked.shape[1] :]
        with torch.enable_grad():  # decoding is without
            values = self.scorer(step)
            self.seen.append(doubt_loss(step, values[..., 0], clean))
        return Proposal(self.scorer.law(step, values.detach(), bias=self.bias).sample())
