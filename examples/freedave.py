"""FreeDave (arXiv 2510.00294), written from its formula, one row at a time; for `bench_verification.py`."""

import torch
from torch import Tensor

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions


@torch.no_grad()
def freedave(denoiser: Denoiser, prompt: Tensor, length: int, d: int, eos: int | None) -> tuple[list[int], int]:
    """Tokens and calls of FreeDave for one prompt [n] without padding, one token a step.

    With p the last predictions that are known to be on the path, x_t the canvas that follows from them: draft
    x_t, x_{t+1}, ..., x_{t+d-1} by the slow rule on p; one call says where the slow rule leads from each; the longest
    match is taken. (Their algorithm, static schedule of one token a step.)
    """

    def ask(canvases: Tensor) -> Predictions:
        ids = torch.cat([prompt.expand(len(canvases), -1), canvases], 1)
        logits, _ = denoiser(ids, torch.ones_like(ids), len(prompt))
        return Predictions.from_logits(logits, denoiser.mask_token_id)

    def transfer(canvas: Tensor, confidence: Tensor, tokens: Tensor, count: int) -> Tensor:
        masked = canvas == denoiser.mask_token_id
        chosen = confidence.masked_fill(~masked, -torch.inf).argsort(descending=True, stable=True)[:count]
        after = canvas.clone()
        after[chosen] = tokens[chosen]
        return after

    def ended(canvas: Tensor) -> bool:
        masks = (canvas == denoiser.mask_token_id).nonzero().flatten().tolist()
        ends = (canvas == eos).nonzero().flatten().tolist() if eos is not None else []
        return not masks or bool(ends and ends[0] < masks[0])

    canvas, calls = torch.full((length,), denoiser.mask_token_id), 1
    said = ask(canvas[None])
    confidence, tokens = said.confidence[0], said.tokens[0]
    while True:
        left = int((canvas == denoiser.mask_token_id).sum())
        drafts = [transfer(canvas, confidence, tokens, j) for j in range(1, min(d, left) + 1)]
        if ended(drafts[0]):
            return drafts[0].tolist(), calls
        said, calls, match = ask(torch.stack(drafts)), calls + 1, 0
        targets = [transfer(x, said.confidence[j], said.tokens[j], 1) for j, x in enumerate(drafts)]
        while match + 1 < len(drafts) and not ended(targets[match]) and torch.equal(targets[match], drafts[match + 1]):
            match += 1
        canvas, confidence, tokens = drafts[match], said.confidence[match], said.tokens[match]
        if ended(targets[match]):
            return targets[match].tolist(), calls
