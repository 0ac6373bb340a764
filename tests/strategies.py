"""Hypothesis strategies for what decoding sees, and the conversions between tensors and the rows of `oracles`."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from hf_learned_order.denoisers.predictions import Predictions, Step

VOCAB = 5
MASK = 3


def rows(min_value: float = -4.0, max_value: float = 4.0) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """(scores float64, masked), both [batch, canvas]; some rows finished, some with one position, some with all.

    Scores are multiples of 1/8, which float32 holds exactly, so ties occur.
    """

    def build(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(shape, generator=generator, dtype=torch.float64) * (max_value - min_value) + min_value
        scores = (scores * 8).round() / 8
        masked = torch.rand(shape, generator=generator) < torch.rand(shape[0], 1, generator=generator) * 1.6 - 0.3
        return scores, masked

    return st.builds(build, st.tuples(st.integers(1, 4), st.integers(1, 6)), st.integers(0, 2**32))


@st.composite
def steps(draw) -> Step:
    """A step of decoding on a ragged batch, sharp and flat predictions in it; a third of the time with many ties."""
    batch, length = draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(batch, length, VOCAB, generator=generator)
    if draw(st.integers(0, 2)) == 0:
        logits = logits.round()
    logits = logits * 6 * torch.rand(batch, length, 1, generator=generator).round(decimals=1)
    masked = torch.rand(batch, length, generator=generator) < torch.rand(batch, 1, generator=generator) * 1.6 - 0.3
    return step_of(logits, masked, steps_left=draw(st.integers(1, length + 2)))


def step_of(logits: Tensor, masked: Tensor, *, steps_left: int = 4, seed: int = 0) -> Step:
    """Everything that is not masked was unmasked by an earlier step, to the token that was then and is now the first
    of the vocabulary, with a probability that depends on its position only.
    """
    length = masked.shape[-1]
    return Step(
        predictions=Predictions.from_logits(logits, MASK),
        masked=masked,
        steps_left=steps_left,
        unmasked=~masked,
        canvas=torch.where(masked, MASK, 0),
        token_log_probs=-torch.arange(1.0, length + 1).expand(masked.shape).masked_fill(masked, 0.0) / length,
        hidden_states=torch.zeros(*masked.shape, 4),
        attentions=attentions_of(length).expand(len(masked), -1, -1),
        generator=torch.Generator().manual_seed(seed),
    )


def attentions_of(length: int) -> Tensor:
    """Attention [length, length] that depends on the two positions only, in eighths: some join, some do not."""
    shares = torch.rand(length, length, generator=torch.Generator().manual_seed(length))
    return (shares * 8).round() / 8


def positions(unmask: Tensor) -> frozenset:
    """The set of positions in a bool [canvas] row."""
    return frozenset(unmask.nonzero().flatten().tolist())


def as_row(subset: frozenset, length: int) -> Tensor:
    """The bool [canvas] row of a set of positions."""
    return torch.tensor([i in subset for i in range(length)])


def counts(sample: Tensor) -> dict[frozenset, int]:
    """How often each set occurs in bool [n, canvas]."""
    found, times = sample.unique(dim=0, return_counts=True)
    return {positions(row): int(n) for row, n in zip(found, times, strict=True)}
