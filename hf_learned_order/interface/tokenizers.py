"""What a tokenizer gives away: that it is another model's, or that prompts end with a token that it puts there."""

import warnings
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_learned_order.denoisers.denoiser import Denoiser

# tables of embeddings are made a little larger than the vocabulary, in round numbers
LEAST_USED = 0.9


class Ending(NamedTuple):
    """A token that ends a text and that a tokenizer appends by itself, as BERT's does with [SEP]."""

    token_id: int
    token: str


def ending_of(tokenizer: PreTrainedTokenizerBase | None) -> Ending | None:
    """What the tokenizer appends to a text by itself, where that is EOS, or [SEP] of one that has no EOS; else None.

    With an EOS beside it, [SEP] may well be what a prompt ends with and a response follows.
    """
    if tokenizer is None:
        return None
    ids = tokenizer("")["input_ids"]
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if not ids or ids[-1] != end:
        return None
    return Ending(ids[-1], str(tokenizer.convert_ids_to_tokens(ids[-1])))


def warn_of_ending(ending: Ending | None, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Warns where a prompt [batch, prompt] ends with it: a canvas behind the end of a text is no place to go on."""
    if ending is None or not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.shape[1] == 0:
        return
    ends = input_ids == ending.token_id
    if attention_mask is not None and attention_mask.shape == ends.shape:
        ends &= attention_mask.bool() & (attention_mask.flip(-1).cumsum(-1).flip(-1) == 1)
    else:
        ends[:, :-1] = False
    if ends.any():
        warnings.warn(
            f"input_ids end with {ending.token}, which the tokenizer appends by itself, so the response stands behind "
            "the end of its prompt: use tokenizer(..., add_special_tokens=False), or leave the last token out",
            stacklevel=2,
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, denoiser: Denoiser) -> None:
    """Warns of a tokenizer that is not the model's: another mask token, or a vocabulary of another size."""
    own = tokenizer.mask_token_id
    known = getattr(denoiser.model.config, "mask_token_id", None)
    known = denoiser.family.mask_token_id if known is None else known
    if None not in (known, own) and own != known:
        warnings.warn(
            f"tokenizer must be the model's, but its mask token is {own} and the model's is {known}", stacklevel=2
        )
    if not LEAST_USED * denoiser.vocab_size <= len(tokenizer) <= denoiser.vocab_size:
        warnings.warn(
            f"tokenizer must be the model's, but it has {len(tokenizer)} tokens and the model {denoiser.vocab_size}",
            stacklevel=2,
        )
