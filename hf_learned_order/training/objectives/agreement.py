"""Agreement of the denoiser with itself: what it gives, token by token, to what it drew in parallel. No labels.

    reward_t = sum_{i in r_t} log p_theta(x^i | what stood there before, and the members of r_t left of i)
                            - log p_theta(x^i | x_t)

x is drawn from the denoiser. The second term is what the parallel draw claimed for its tokens, so the mean of reward_t
given x_t and r_t is minus the KL from the law that the tokens were drawn from, a product over positions, to the law
that the denoiser follows when it unmasks the same positions one after another. It is 0 for a single position, and
negative where positions depend on one another. The budget T is what keeps the order from unmasking one position a step.

Each draw is followed by the rewards from its own step on, less their mean over the other decodings of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.training.rollouts import RolloutObjective, Rollouts

LARGEST_LOSS = 10.0  # nats a token; what the denoiser had ruled out would otherwise outweigh a batch


class AgreementObjective(RolloutObjective):
    """Maximises the expected agreement of parallel draws. Batch in, loss and measurements out, as `OrderELBO`.

    Of the clean responses it takes the length of the canvas only. A response costs its decoding, and one call more for
    each of its tokens.
    """

    temperature = 1.0  # the most likely tokens would be rewarded for being more likely together than they claimed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        seeds: Tensor | None = None,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` (a surrogate, nats a position, to be minimised), and the means of `agreement` (nats) and `nfe`.

        Raises:
            ValueError: parts of the responses are `given`.
        """
        if given is not None:
            raise ValueError("given must be None: agreement is of whole responses; train on this task by another one")
        rollouts = self.rollouts(input_ids, attention_mask, clean.shape[1], seeds)
        gains = self.gains(input_ids, attention_mask, rollouts)
        steps = torch.arange(1, len(rollouts.log_q) + 1, device=gains.device)[:, None, None, None]
        returns = (gains * (rollouts.order >= steps)).sum(-1)
        return {
            "loss": -rollouts.surrogate(returns) / clean.shape[1],
            "agreement": gains.sum(-1).mean(),
            "nfe": rollouts.nfe.float().mean(),
        }

    def gains(self, input_ids: Tensor, attention_mask: Tensor, rollouts: Rollouts) -> Tensor:
        """[B, K, canvas], nats: log-likelihood in turn, less what was claimed; 0 behind the first EOS."""
        shape = rollouts.order.shape
        order, tokens = rollouts.order.flatten(0, 1), rollouts.tokens.flatten(0, 1)
        # ties from the left: what stands behind the first EOS tells nothing to what stands before it
        turn = torch.where(order > 0, order, shape[-1] + 1).argsort(dim=-1, stable=True).argsort(-1)
        # what no step unmasked goes with the last one: it costs no call and no gain is read there
        turn = turn.minimum((order > 0).sum(-1, keepdim=True) - 1)
        output = decode(
            self.denoiser,
            input_ids.repeat_interleave(shape[1], 0),
            attention_mask.repeat_interleave(shape[1], 0),
            sampler=_InTurn(turn=turn),
            max_new_tokens=shape[-1],
            clean=tokens,
        )
        gains = (output.token_log_probs.view(shape) - rollouts.token_log_probs).clamp(min=-LARGEST_LOSS)
        return gains.masked_fill((rollouts.order == 0) | ~self.response(rollouts.tokens), 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _InTurn(Sampler):
    """At each step the positions whose turn [rows, canvas] is the earliest."""

    turn: Tensor

    def propose(self, step: Step, state: State) -> Proposal:
        turn = self.turn[step.rows].masked_fill(~step.masked, step.masked.shape[1])
        return Proposal(turn == turn.amin(-1, keepdim=True))
