"""What `bench_verification.py` counts from the slow path is what verification does, and its replica is right."""

import bench_verification as bench
import pytest
import torch
from models import EOS, MASK, PAD, WORDS
from test_loop import denoiser_of, words

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.scheduled import LeftToRightSampler

LENGTH = 9
SOME_EOS = [EOS, *WORDS[::5]]


@pytest.mark.parametrize("k", [1, 2, 4, 12])
@pytest.mark.parametrize("eos", [None, SOME_EOS[-1]])
def test_counted_from_the_path(k, eos):
    prompt, denoiser = words(6, 4), denoiser_of("bert")
    drafters = {"confidence": bench.SLOW, "left": LeftToRightSampler()}
    trace = bench.Traced(drafters, depth=LENGTH)
    options = {"max_new_tokens": LENGTH, "eos_token_id": eos, "pad_token_id": PAD}
    slow = decode(denoiser, prompt, sampler=trace, **options)
    for name, drafter in drafters.items():
        got = decode(denoiser, prompt, sampler=drafter, verify=bench.SLOW, num_assistant_tokens=k, **options)
        for row, steps in enumerate(slow.nfe.tolist()):
            path = bench.path_of(trace, slow, row)
            assert len(path) == steps
            counted = bench.counted(path, trace.drafts[name].get(row, []), LENGTH, bench.branches(k))
            assert counted == (got.nfe[row], got.canvases[row])


@pytest.mark.parametrize("d", [1, 3, 12])
@pytest.mark.parametrize("eos", [None, SOME_EOS[-1]])
def test_the_replica_of_freedave(d, eos):
    denoiser = denoiser_of("bert")
    options = {"max_new_tokens": LENGTH, "eos_token_id": eos, "pad_token_id": PAD}
    for prompt in words(4, 4, seed=3):
        trace = bench.Traced({"confidence": bench.SLOW}, depth=LENGTH)
        slow = decode(denoiser, prompt[None], sampler=trace, **options)
        tokens, calls = bench.freedave(denoiser, prompt, LENGTH, d, eos)
        end = int(slow.length)
        assert tokens[:end] == slow.sequences[0, -LENGTH:][:end].tolist()
        assert MASK not in tokens[:end]
        drafts = trace.drafts["confidence"].get(0, [])
        assert calls == bench.counted(bench.path_of(trace, slow, 0), drafts, LENGTH, bench.chain(d))[0]


def test_a_path_is_known_to_its_end():
    trace = bench.Traced({}, depth=1)
    slow = decode(denoiser_of("bert"), words(1, 4), sampler=trace, max_new_tokens=3)
    assert sorted(position for position, _ in bench.path_of(trace, slow, 0)) == [0, 1, 2]
    tokens = slow.sequences[0, -3:]
    assert all(tokens[position] == token for position, token in bench.path_of(trace, slow, 0))
    assert torch.equal(slow.order[0].sort().values, torch.tensor([1, 2, 3]))
