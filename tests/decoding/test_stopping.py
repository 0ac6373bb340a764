"""Where responses end: one question for each settled token, in order, as in decoding from left to right."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from models import EOS, PAD
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_learned_order.decoding.canvas import Canvas
from hf_learned_order.decoding.stopping import Stopping

LENGTH, MASK = 6, 9


class AtToken(StoppingCriteria):
    """Fires at a token, and keeps what it was asked: (first token of the row, tokens of the response)."""

    def __init__(self, token: int):
        self.token = token
        self.asked: list[tuple[int, int]] = []

    def __call__(self, input_ids, scores, **kwargs):
        self.asked += [(int(row[0]), len(row) - 1) for row in input_ids]
        assert (input_ids != MASK).all(), "asked about what is not settled"
        return input_ids[:, -1] == self.token


def canvas_of(rows: int) -> Canvas:
    prompt = 100 + torch.arange(rows)[:, None]  # names the row
    return Canvas.behind(prompt, torch.ones_like(prompt), length=LENGTH, mask_token_id=MASK)


def unmask(canvas: Canvas, row: int, position: int, token: int) -> None:
    where = torch.arange(LENGTH)[None] == position
    nothing = torch.zeros_like(where)
    tokens = torch.full((1, LENGTH), token)
    canvas.write(torch.tensor([row]), slice(0, LENGTH), tokens, torch.zeros(1, LENGTH), where, nothing)


@given(
    tokens=st.lists(st.lists(st.integers(2, 6), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    eos=st.sampled_from([None, EOS, [EOS, 3]]),
    criterion=st.booleans(),
)
def test_a_response_ends_where_left_to_right_decoding_would_end_it(tokens, seed, eos, criterion):
    stop = AtToken(5)
    canvas = canvas_of(len(tokens))
    stopping = Stopping(
        canvas, eos_token_id=eos, criteria=StoppingCriteriaList([stop] if criterion else []), pad_token_id=PAD
    )
    ends = set(torch.tensor([] if eos is None else eos).reshape(-1).tolist()) | ({5} if criterion else set())
    expected = [next((i + 1 for i, t in enumerate(row) if t in ends), LENGTH) for row in tokens]
    for index in torch.randperm(LENGTH * len(tokens), generator=torch.Generator().manual_seed(seed)).tolist():
        row, position = divmod(index, LENGTH)
        if canvas.masked[row, position]:
            unmask(canvas, row, position, tokens[row][position])
            stopping.update(canvas)
            for r, length in enumerate(expected):
                settled = (canvas.tokens[r, :length] != MASK).all()
                assert canvas.masked[r].any().item() == (not settled), "a row ends as soon as its response is settled"
    assert not canvas.masked.any()
    assert stopping.length.tolist() == expected
    for row, length in enumerate(expected):
        assert stopping.response(canvas)[row].tolist() == tokens[row][:length] + [PAD] * (LENGTH - length)
        if criterion:
            assert [count for name, count in stop.asked if name == 100 + row] == list(range(1, length + 1))


def test_a_token_that_was_masked_again_is_asked_about_again():
    stop = AtToken(5)
    canvas = canvas_of(1)
    stopping = Stopping(canvas, eos_token_id=None, criteria=StoppingCriteriaList([stop]), pad_token_id=PAD)
    for position in (0, 1):
        unmask(canvas, 0, position, 4)
        stopping.update(canvas)
    here = torch.arange(LENGTH)[None] == 1
    nothing = torch.zeros_like(here)
    canvas.write(torch.tensor([0]), slice(0, LENGTH), canvas.tokens, torch.zeros(1, LENGTH), nothing, here)
    stopping.update(canvas)
    unmask(canvas, 0, 1, 5)
    stopping.update(canvas)
    assert [count for _, count in stop.asked] == [1, 2, 2]
    assert stopping.length.tolist() == [2]


def test_padding_is_eos_by_default():
    canvas = canvas_of(1)
    stopping = Stopping(canvas, eos_token_id=[4, 3], criteria=None, pad_token_id=None)
    unmask(canvas, 0, 0, 3)
    stopping.update(canvas)
    assert stopping.response(canvas).tolist() == [[3, 4, 4, 4, 4, 4]]


def test_a_mask_ends_nothing():
    """Where the mask token is among those that end a response, the first position left to fill is no end."""
    canvas = canvas_of(1)
    stopping = Stopping(canvas, eos_token_id=[EOS, MASK], criteria=None, pad_token_id=PAD)
    unmask(canvas, 0, 0, 4)
    stopping.update(canvas)
    assert stopping.length.tolist() == [LENGTH]
    assert canvas.masked.tolist() == [[False] + [True] * (LENGTH - 1)]
