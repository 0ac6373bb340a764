"""transformers' logits processors and warpers, by the setting that asks for each."""

import inspect
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# setting -> (class, the value that means "off"), in the order in which transformers applies them
WARPERS: dict[str, tuple[Any, Any]] = {
    "top_h": (TopHLogitsWarper, None),
    "top_k": (TopKLogitsWarper, 0),
    "top_p": (TopPLogitsWarper, 1.0),
    "min_p": (MinPLogitsWarper, None),
    "typical_p": (TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (EpsilonLogitsWarper, 0.0),
    "eta_cutoff": (EtaLogitsWarper, 0.0),
}
PROCESSORS: dict[str, tuple[Any, Any]] = {
    "sequence_bias": (SequenceBiasLogitsProcessor, None),
    "repetition_penalty": (RepetitionPenaltyLogitsProcessor, 1.0),
    "no_repeat_ngram_size": (NoRepeatNGramLogitsProcessor, 0),
    "bad_words_ids": (NoBadWordsLogitsProcessor, None),
    "min_length": (MinLengthLogitsProcessor, 0),
    "min_new_tokens": (MinNewTokensLengthLogitsProcessor, 0),
    "forced_eos_token_id": (ForcedEOSTokenLogitsProcessor, None),
    "exponential_decay_length_penalty": (ExponentialDecayLengthPenalty, None),
    "suppress_tokens": (SuppressTokensLogitsProcessor, None),
    "begin_suppress_tokens": (SuppressTokensAtBeginLogitsProcessor, None),
}


def processor_of(kind: Any, *arguments: Any, device: torch.device | str) -> Any:
    """A processor; some of them hold ids, which have to be where the scores are."""
    return kind(*arguments, **({"device": str(device)} if "device" in inspect.signature(kind).parameters else {}))
