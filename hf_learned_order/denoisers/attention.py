"""Whether a model attends as its family says; a causal one, or one that ignores its mask, says nothing of it."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.inside.hooks import evaluating
from hf_learned_order.denoisers.sharding import is_split

# of each model that was asked, called as of a family: whether it ignores what its attention mask rules out
_HEEDS: WeakKeyDictionary[nn.Module, dict[Family, bool]] = WeakKeyDictionary()


@torch.no_grad()
def check_attention(denoiser: Denoiser) -> None:
    """Calls the model on a few tokens to see that it attends as its family says.

    That it does not heed its padding is only kept in mind: prompts of one length can do without (`check_padding`).

    Raises:
        ValueError: the last token of the sequence, or of the first block, does not change the first position's
            logits (the model is causal, or ignores the mask it is given); or a token of the second block does, or
            with a causal context a token of the block changes what is before it.
    """
    name, block_size = type(denoiser.model).__name__, denoiser.family.block_size
    heeds_padding(denoiser)
    with evaluating(denoiser.model):
        if denoiser.family.causal_context:
            return _check_causal_context(denoiser, name)
        if not _first_sees_last(denoiser, block_size or 2):
            raise ValueError(
                f"model must attend in both directions, but in {name} the last token does not change the first "
                f"position: it is causal, or takes another mask than attention={denoiser.family.attention!r}; "
                "attach(model, family=Family(attention=...)) gives another"
                f"{denoiser.hint}"
            )
        if block_size is not None and _first_sees_last(denoiser, block_size + 1):
            raise ValueError(
                f"model must be block-causal, but in {name} a position sees beyond its block of {block_size}: "
                "its blocks are of another size, or it ignores its mask; "
                "attach(model, family=Family(block_size=...)) gives another"
            )


def check_padding(denoiser: Denoiser, attention_mask: Tensor) -> None:
    """Asks a model, once, whether it heeds its attention mask, where one [batch, length] has padding.

    Raises:
        ValueError: it does not: the padding of a batch would change its tokens.
    """
    if attention_mask.all():
        return
    # where the weights are split, processes would have to call alike: `attach` has asked there
    if is_split(denoiser) and denoiser.family not in _HEEDS.get(denoiser.model, {}):
        return
    if not heeds_padding(denoiser):
        raise ValueError(
            f"attention_mask must be 1 everywhere with {type(denoiser.model).__name__}, which does not ignore what its "
            f"mask rules out: the prompts of one batch must have the same length{denoiser.hint}"
        )


@torch.no_grad()
def heeds_padding(denoiser: Denoiser) -> bool:
    """Whether a token where the attention mask is 0 changes no logits; asked of the model once."""
    if denoiser.family.attention == "none":  # which refuses padding by itself
        return True
    known = _HEEDS.setdefault(denoiser.model, {})
    if denoiser.family not in known:
        others = _others(denoiser)
        ids = torch.full((len(others), 5), denoiser.mask_token_id, device=denoiser.device)
        ids[:, 0] = torch.tensor(others, device=denoiser.device)
        seen = torch.ones_like(ids)
        hidden = seen.clone()
        hidden[:, 0] = 0
        start = 1 + denoiser.family.tokens_before
        with evaluating(denoiser.model):
            try:
                hidden_changes, seen_changes = (
                    _spread(_finite(denoiser(ids, mask, start)[0])) for mask in (hidden, seen)
                )
                # rounding, in any dtype, is a small part of what a token changes that is seen
                known[denoiser.family] = not bool(hidden_changes > 0.1 * seen_changes)
            except (RuntimeError, TypeError, ValueError):  # it takes no such mask at all
                known[denoiser.family] = False
    return known[denoiser.family]


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
    others = _others(denoiser)
    ids = torch.full((len(others), length), denoiser.mask_token_id, device=denoiser.device)
    ids[:, -1] = torch.tensor(others, device=denoiser.device)
    # `start` at the shift asks for what the model says at its first place
    start = denoiser.family.shift if start is None else start
    logits = _finite(denoiser(ids, torch.ones_like(ids), start)[0][:, position])
    # of kernels that treat rows differently; logits may be of a finer type than what they were computed in
    noise = 8 * max(torch.finfo(dtype).eps for dtype in (logits.dtype, denoiser.dtype)) * logits.abs().max()
    return bool(_spread(logits) > noise)


def _others(denoiser: Denoiser) -> list[int]:
    """Some tokens that are not the mask. The first ids are special ones, which a trained model may take for another."""
    return [token for token in range(min(16, denoiser.vocab_size)) if token != denoiser.mask_token_id]


def _spread(logits: Tensor) -> Tensor:
    """How far rows are from the first one."""
    return (logits - logits[0]).abs().max()


def _finite(logits: Tensor) -> Tensor:
    """Without the infinite ones of a model that rules tokens out: they are no sign of what it sees."""
    return logits.masked_fill(logits.isinf(), 0.0)
