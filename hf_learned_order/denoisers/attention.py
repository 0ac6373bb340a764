"""Whether a model attends as its family says; a causal one, or one that ignores its mask, says nothing of it."""

import torch

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.hooks import evaluating


@torch.no_grad()
def check_attention(denoiser: Denoiser) -> None:
    """Calls the model twice on a few tokens to see that it attends as its family says.

    Raises:
        ValueError: the last token of the sequence, or of the first block, does not change the first position's
            logits (the model is causal, or ignores the mask it is given); or a token of the second block does, or
            with a causal context a token of the block changes what is before it.
    """
    name, block_size = type(denoiser.model).__name__, denoiser.family.block_size
    with evaluating(denoiser.model):
        if denoiser.family.causal_context:
            return _check_causal_context(denoiser, name)
        if not _first_sees_last(denoiser, block_size or 2):
            raise ValueError(
                f"model must attend in both directions, but in {name} the last token does not change the first "
                f"position: it is causal, or takes another mask than attention={denoiser.family.attention!r}; "
                "attach(model, family=Family(attention=...)) gives another"
            )
        if block_size is not None and _first_sees_last(denoiser, block_size + 1):
            raise ValueError(
                f"model must be block-causal, but in {name} a position sees beyond its block of {block_size}: "
                "its blocks are of another size, or it ignores its mask; "
                "attach(model, family=Family(block_size=...)) gives another"
            )


def _check_causal_context(denoiser: Denoiser, name: str) -> None:
    if not _first_sees_last(denoiser, 4, start=1, position=1):
        raise ValueError(
            f"model must attend in both directions within a block, but in {name} its last token does not change the "
            f"second position: it is causal, or takes another mask than attention={denoiser.family.attention!r}; "
            "attach(model, family=Family(attention=...)) gives another"
        )
    if _first_sees_last(denoiser, 4, start=1, position=0):
        raise ValueError(
            f"model must read what is before a block causally, but in {name} the block's last token changes what is "
            "before it: it ignores its mask; attach(model, family=Family(causal_context=False, ...)) is for a model "
            "that attends in both directions everywhere"
        )


def _first_sees_last(denoiser: Denoiser, length: int, *, start: int | None = None, position: int = 0) -> bool:
    """Whether the first position's logits depend on the last of `length` tokens; or those of one behind `start`."""
    # the first ids are special tokens, which a trained model may take for one another
    others = [token for token in range(min(16, denoiser.vocab_size)) if token != denoiser.mask_token_id]
    ids = torch.full((len(others), length), denoiser.mask_token_id, device=denoiser.device)
    ids[:, -1] = torch.tensor(others, device=denoiser.device)
    # `start` at the shift asks for what the model says at its first place
    start = denoiser.family.shift if start is None else start
    logits = denoiser(ids, torch.ones_like(ids), start)[0][:, position]
    # of kernels that treat rows differently; logits may be of a finer type than what they were computed in
    noise = 8 * max(torch.finfo(dtype).eps for dtype in (logits.dtype, denoiser.model.dtype)) * logits.abs().max()
    return bool((logits - logits[0]).abs().max() > noise)
