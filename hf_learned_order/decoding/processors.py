"""transformers' logits processors on a canvas: what each reads, and what it is therefore given.

They are written for decoding from left to right, where `input_ids` is all that stands before the next token. Here any
position may come next, so a processor is given, at each position,

- the prompt and canvas as they are, if it reads no more than which tokens occur, or nothing;
- as many columns as stand before the position, if it reads how many there are (`LENGTH`);
- what stands around the position, if it forbids or favours sequences (`AROUND`): a token may complete one from either
  side. That has to be known when the position goes: one a step, in any order. transformers' class never looks behind a
  position, so what it does is written here;
- what stands before the position, if it reads that (`PREFIX`): from left to right, one position a step.

Others are refused (`REFUSED`), because what they read is not there.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hf_learned_order.decoding.canvas import Canvas, Part, first
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.scheduled import LeftToRightSampler, RandomSampler, Ranked
from hf_learned_order.denoisers.predictions import pieces

LENGTH = (
    transformers.MinLengthLogitsProcessor,
    transformers.MinNewTokensLengthLogitsProcessor,
    transformers.ForcedBOSTokenLogitsProcessor,
    transformers.ForcedEOSTokenLogitsProcessor,
    transformers.ExponentialDecayLengthPenalty,
    transformers.SuppressTokensAtBeginLogitsProcessor,
)
AROUND = transformers.SequenceBiasLogitsProcessor  # NoBadWordsLogitsProcessor is one
PREFIX = (
    transformers.NoRepeatNGramLogitsProcessor,
    transformers.PrefixConstrainedLogitsProcessor,
    transformers.WatermarkLogitsProcessor,
)
ONE_BY_ONE = (Ranked, RandomSampler)  # with a step for each position they take one a step
_ENCODER = "there is no encoder"
_OWN = "it belongs to one model's own decoding"
REFUSED = {
    "EncoderRepetitionPenaltyLogitsProcessor": _ENCODER,
    "EncoderNoRepeatNGramLogitsProcessor": _ENCODER,
    "ClassifierFreeGuidanceLogitsProcessor": "guidance_scale is guidance here",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale is guidance here",
    "SynthIDTextWatermarkLogitsProcessor": "it keeps a state from token to token",
    "AlternatingCodebooksLogitsProcessor": _OWN,
    "BarkEosPrioritizerLogitsProcessor": _OWN,
    "DiaClassifierFreeGuidanceLogitsProcessor": _OWN,
    "DiaEOSChannelFilterLogitsProcessor": _OWN,
    "DiaEOSDelayPatternLogitsProcessor": _OWN,
    "WhisperTimeStampLogitsProcessor": _OWN,
    "WhisperNoSpeechDetection": _OWN,
}
# libraries whose processors follow a grammar from token to token
GRAMMARS = ("guidance", "llguidance", "lmformatenforcer", "outlines", "outlines_core", "xgrammar")


class Processing:
    """Applies logits processors, in their order, to the logits of chosen positions of a canvas.

    Args:
        processors: transformers' or one's own; what is none of transformers' classes is given prompt and canvas as
            they are.
        canvas: the batch.
        sampler, plan: the rule, and the parts in which it decodes.
        infill: the canvas lies within prompts.
        verified: several canvases of a row are tried in one call.

    Raises:
        ValueError: a processor reads what is not there.
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessor],
        canvas: Canvas,
        *,
        sampler: Sampler,
        plan: Sequence[Part],
        infill: bool,
        verified: bool = False,
    ):
        self.processors, self.whole = processors, canvas
        one_by_one = (
            not verified
            and isinstance(sampler, ONE_BY_ONE)
            and all(int(canvas.masked[part.rows, part.window].sum(-1).max()) <= part.steps for part in plan)
        )
        got = f"got {type(sampler).__name__}" + (" with verify" if verified else "")
        for processor in processors:
            name = type(processor).__name__
            reason = refusal(processor)
            if reason is None and infill and isinstance(processor, LENGTH):
                reason = "infill=True has no response that could be short or long"
            if reason is None and reads_around(processor) and not one_by_one:
                reason = (
                    "two positions of one step could complete a sequence together, each without the other: a rule that "
                    f"takes one position a step (top_prob, margin, entropy, ...) with a step for each, {got}"
                )
            from_left = one_by_one and isinstance(sampler, LeftToRightSampler)
            if reason is None and isinstance(processor, PREFIX) and not from_left:
                reason = (
                    'it reads the tokens before a position, so these must be known: sampler="left_to_right" with a '
                    f"step for each position, {got}"
                )
            if reason is not None:
                raise ValueError(f"logits_processor must not hold {name}: {reason}")

    def __call__(self, seen: Canvas, rows: Tensor, window: slice, at: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        """Logits [n, vocab], float32, changed in place, of n positions.

        Args:
            seen: what stands in the rows that are decoded now, or is tried there.
            rows: int [batch], which rows of the whole these are.
            window: columns of the canvas, counted from its start.
            at: int [n] twice, the row among `rows` and the position in the window.
            logits: of these.
        """
        ids, heads = seen.visible, first(seen.masked)
        for piece in pieces(len(logits), logits):
            row, position = at[0][piece], window.start + at[1][piece]
            for processor in self.processors:
                scores, one = logits[piece], LogitsProcessorList([processor])
                if isinstance(processor, LENGTH):
                    for place in position.unique().tolist():
                        here = position == place
                        before = ids[row[here], : seen.start + place]
                        scores[here] = one(before, scores[here])  # pyrefly: ignore[bad-argument-type]
                elif reads_around(processor):  # single tokens are left to the class, which adds all at once
                    add_biases(processor.sequence_bias, ids[row], seen.start + position, scores)
                elif isinstance(processor, PREFIX):
                    # the first masked positions are the only ones whose prefix is known, and go next
                    for place in position[heads[row] == position].unique().tolist():
                        here = (heads[row] == position) & (position == place)
                        scores[here] = self._behind(one, seen.start + place, rows[row[here]], scores[here])
                else:
                    # pyrefly: ignore[bad-argument-type] (a Tensor is what it takes)
                    logits[piece] = one(ids[row], scores)
        return logits

    def _behind(self, processor: LogitsProcessorList, length: int, rows: Tensor, scores: Tensor) -> Tensor:
        """Scores [n, vocab] behind so many columns of n rows of the whole; of all, because a processor numbers them."""
        every = scores.new_zeros(len(self.whole.ids), scores.shape[-1])
        every[rows] = scores
        return processor(self.whole.visible[:, :length], every)[rows]  # pyrefly: ignore[bad-argument-type]


def refusal(processor: LogitsProcessor) -> str | None:
    """Why a processor can do nothing on a canvas; None where it can."""
    kinds = type(processor).__mro__
    if any(kind.__module__.partition(".")[0] in GRAMMARS for kind in kinds):
        return (
            "a grammar is followed from token to token, all rows together, and a canvas has no such order; "
            'prefix_allowed_tokens_fn with sampler="left_to_right" asks it for one position at a time'
        )
    return next((REFUSED[kind.__name__] for kind in kinds if kind.__name__ in REFUSED), None)


def reads_around(processor: LogitsProcessor) -> TypeGuard[transformers.SequenceBiasLogitsProcessor]:
    """Whether it forbids or favours tokens that stand side by side."""
    return isinstance(processor, AROUND) and any(len(sequence) > 1 for sequence in processor.sequence_bias)


def add_biases(sequences: dict[tuple[int, ...], float], ids: Tensor, columns: Tensor, scores: Tensor) -> None:
    """Add the bias of each sequence to `scores` [n, vocab] of the tokens that would complete it, whichever is missing.

    `ids` int [n, length] are the rows of the n positions, the mask token where nothing is known, `columns` int [n]
    where the positions stand in them.
    """
    for sequence, bias in sequences.items():
        for place, token in enumerate(sequence):
            others = _window(ids, columns - place, len(sequence))
            fits = others == others.new_tensor(sequence)
            fits[:, place] = True
            scores[:, token] += torch.where(fits.all(-1), bias, 0.0)


def _window(ids: Tensor, begin: Tensor, size: int) -> Tensor:
    """int [n, size]: columns from `begin` [n] on of each row of `ids` [n, length]; -1 where there are none."""
    columns = begin[:, None] + torch.arange(size, device=ids.device)
    inside = (columns >= 0) & (columns < ids.shape[1])
    return ids.gather(1, columns.clamp(0, ids.shape[1] - 1)).masked_fill(~inside, -1)
