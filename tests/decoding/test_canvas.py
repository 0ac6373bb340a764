import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_learned_order.decoding.canvas import left_padded, settled

bits = st.lists(st.booleans(), min_size=4, max_size=4)
batches = st.lists(bits, min_size=1, max_size=4)


@given(mask=batches)
def test_left_padded_keeps_the_tokens_in_their_order(mask):
    attention_mask = torch.tensor(mask).long()
    input_ids = torch.arange(10, 10 + attention_mask.numel()).reshape(attention_mask.shape)
    ids, new_mask = left_padded(input_ids, attention_mask)
    for row in range(len(mask)):
        tokens = [int(t) for t, kept in zip(input_ids[row], mask[row], strict=True) if kept]
        padding = 4 - len(tokens)
        assert new_mask[row].tolist() == [0] * padding + [1] * len(tokens)
        assert ids[row, padding:].tolist() == tokens


def test_left_padded_takes_a_bool_mask():
    ids, mask = left_padded(torch.tensor([[7, 8, 0]]), torch.tensor([[True, True, False]]))
    assert (ids.tolist(), mask.tolist()) == ([[0, 7, 8]], [[0, 1, 1]])


@given(rows=st.lists(st.tuples(bits, bits), min_size=1, max_size=4))
def test_settled(rows):
    eos, masked = (torch.tensor(column) for column in zip(*rows, strict=True))
    expected = []
    for row_eos, row_masked in rows:
        # what an unmasked EOS says while it is still masked does not count
        first = next((i for i in range(4) if row_eos[i] and not row_masked[i]), None)
        expected.append(first is not None and not any(row_masked[:first]))
    assert settled(eos, masked).tolist() == expected
