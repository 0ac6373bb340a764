"""What a denoiser says to a few fixed tokens: by this one model is told from another of the same shape."""

import base64

import numpy as np
import torch

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.hooks import evaluating

PROMPT, CANVAS, TOKENS = 8, 8, 4


@torch.no_grad()
def probe(denoiser: Denoiser) -> str | None:
    """Log-probabilities of 4 tokens at each of 8 masked positions behind 8 tokens, float32 in base64.

    None where the model takes no sequence of 16 tokens.
    """
    if denoiser.max_length is not None and denoiser.max_length < PROMPT + CANVAS:
        return None
    tokens = torch.arange(denoiser.vocab_size, device=denoiser.device)
    tokens = tokens[tokens != denoiser.mask_token_id]
    spread = tokens[torch.linspace(0, len(tokens) - 1, PROMPT, device=denoiser.device).long()]
    ids = torch.cat([spread, torch.full_like(spread, denoiser.mask_token_id)])[None]
    with evaluating(denoiser.model):
        logits, _ = denoiser(ids, torch.ones_like(ids), PROMPT)
    logits = logits[0].float().index_fill(-1, ids[0, -1:], -torch.inf)
    said = logits.log_softmax(-1)[:, spread[:: PROMPT // TOKENS]]
    return base64.b64encode(said.clamp(min=-1e4).cpu().numpy().astype("<f4").tobytes()).decode()


def check_probe(name: str, given: str | None) -> None:
    """Raises `ValueError` for what is no probe; None is none that is known."""
    try:
        np.frombuffer(base64.b64decode(given or "", validate=True), dtype="<f4")
    except ValueError as error:
        raise ValueError(f"{name} must be what `denoisers.probe` gives, got {given!r}") from error


def distance(one: str, other: str) -> float:
    """Mean absolute difference of two probes, nats; infinite where they are not of one form."""
    first, second = (np.frombuffer(base64.b64decode(each), dtype="<f4") for each in (one, other))
    return float(np.abs(first - second).mean()) if first.shape == second.shape else float("inf")
