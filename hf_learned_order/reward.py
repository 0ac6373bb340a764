"""Task reward: right, and fast.

    reward = [the response is right] * (1 - (NFE - 1) / canvas)^alpha

The product matters: a sum is largest for unmasking everything at once, whatever it says. K decodings of a prompt are
compared with one another: the weight of each draw is what its decoding earned, less the mean of the others.
Group-relative policies divide by the standard deviation of the group as well, which weights prompts by how even they
are and makes the gradient that of no fixed objective; that is left out.

Source: Jazbec et al., Learning Unmasking Policies for Diffusion Language Models, arXiv 2512.09106 (group-relative
policy gradient with a product of correctness and speed; this speed factor is ours).
"""

from torch import Tensor

from hf_learned_order.denoisers import Denoiser
from hf_learned_order.rollouts import RolloutObjective
from hf_learned_order.scorer import OrderScorer


class RewardObjective(RolloutObjective):
    """Maximises the expected reward of decoding with the scorer's own draws. Batch in, loss out, as `OrderELBO`.

    Args:
        denoiser, scorer, max_denoising_steps, num_chains, eos_token_id, noise: as in `RolloutObjective`.
        speed_exponent: alpha, how much speed counts; 0: not at all.

    Raises:
        ValueError: `speed_exponent` is negative, or as `RolloutObjective`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int = 8,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        noise: float = 0.5,
        speed_exponent: float = 1.0,
    ):
        super().__init__(
            denoiser,
            scorer,
            max_denoising_steps=max_denoising_steps,
            num_chains=num_chains,
            eos_token_id=eos_token_id,
            noise=noise,
        )
        if not speed_exponent >= 0:
            raise ValueError(f"speed_exponent must be 0 or more, got {speed_exponent}")
        self.speed_exponent = speed_exponent

    def forward(self, input_ids: Tensor, attention_mask: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """`loss` (a surrogate, to be minimised), and the means of `reward`, `exact` (share that is right) and `nfe`."""
        length = clean.shape[1]
        rollouts = self.rollouts(input_ids, attention_mask, length)
        counts = self.response(clean)[:, None]  # what follows the first EOS is no part of the response
        right = ((rollouts.tokens == clean[:, None]) | ~counts).all(-1).float()
        nfe = rollouts.nfe.float()
        reward = right * (1 - (nfe - 1) / length) ** self.speed_exponent
        return {
            "loss": -rollouts.surrogate(reward),
            "reward": reward.mean(),
            "exact": right.mean(),
            "nfe": nfe.mean(),
        }
