"""What decoding returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


# every field is always there, `order` unless it is not wanted; ModelOutput asks for the default None
@dataclass
class LearnedOrderOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns.

    Attributes:
        sequences: [batch, prompt + canvas], the prompt as it was given and the response; padding after its end. With
            `infill`, `input_ids` with the masks filled.
        order: int [batch, canvas], the step, from 1, at which a position was (last) unmasked; 0 where an early end made
            it unnecessary. With `infill` one number for each token of `input_ids`, 0 where there was no mask.
        length: int [batch], tokens of the response, what ended it included; the canvas where nothing did. With `infill`
            the tokens that were filled in.
        nfe: int [batch], denoiser calls made while the sequence still had a masked position. With guidance a step
            takes two.
        tokens_per_forward: float [batch], `length` a denoiser call.
        log_likelihood: float [batch], nats: log p_theta of each token when it was (last) unmasked, summed. With a rule
            that remasks it bounds nothing.
        token_log_probs: float, shape of `order`, nats: its terms; 0 where `order` is 0.
    """

    sequences: Tensor = None  # pyrefly: ignore[bad-assignment]
    order: Tensor = None  # pyrefly: ignore[bad-assignment]
    length: Tensor = None  # pyrefly: ignore[bad-assignment]
    nfe: Tensor = None  # pyrefly: ignore[bad-assignment]
    tokens_per_forward: Tensor = None  # pyrefly: ignore[bad-assignment]
    log_likelihood: Tensor = None  # pyrefly: ignore[bad-assignment]
    token_log_probs: Tensor = None  # pyrefly: ignore[bad-assignment]
