"""Generations from several threads on one model and one sampler give what they give alone."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import FAMILIES, MASK, PLAIN, WORDS, tiny_model
from torch import Tensor

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.inside.hooks import Seen
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.scorer import OrderScorer

THREADS, CALLS = 4, 12


@contextlib.contextmanager
def many_switches() -> Iterator[None]:
    """Python changes threads a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def together(call: Callable[[int], Tensor]) -> list[Tensor]:
    """The calls from several threads that start at once."""
    barrier = threading.Barrier(THREADS)

    def work(thread: int) -> list[Tensor]:
        barrier.wait()
        return [call(number) for number in range(thread, CALLS, THREADS)]

    with many_switches(), ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(THREADS)))
    return [results[number % THREADS][number // THREADS] for number in range(CALLS)]


def prompt(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(WORDS.start, WORDS.stop, (1 + number % 3, 2 + number % 4), generator=generator)


def attached(family: str, *, facts: Family | None = None, hidden_layers: list[int] | None = None):
    model = tiny_model(family)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 2, "hidden_layers": hidden_layers}
    scorer = OrderScorer.for_denoiser(Denoiser(model, mask_token_id=MASK), **shape)
    torch.nn.init.normal_(scorer.network.head.weight, std=0.05)
    return attach(model, scorer, mask_token_id=MASK, family=facts)


def check(model, sampler: str) -> None:
    def call(number: int) -> Tensor:
        output = model.generate(
            prompt(number),
            sampler=sampler,
            max_new_tokens=6 + number % 3,
            max_denoising_steps=4,
            do_sample=True,
            seed=number,
            return_dict_in_generate=True,
        )
        return torch.cat([output.sequences, output.order, output.nfe[:, None]], 1)

    alone = [call(number) for number in range(CALLS)]
    for got, expected in zip(together(call), alone, strict=True):
        assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("sampler", PLAIN)
def test_every_sampler(sampler):
    check(attached("bert"), sampler)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_training_mode(family):
    """The first call to end must not bring back the dropout while others go on."""
    model = attached(family).train()
    model.order_scorer.eval()
    check(model, "learned_order")
    assert all(module.training for module in model.modules())


def test_hidden_states_from_the_head():
    """A model that returns none: each call sees what its own forward put into the head."""
    check(attached("qwen2", facts=Family(shift=1, attention="4d", head_input=True)), "learned_order")


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_from_the_layers(family):
    """Each call sees what its own forward put into them."""
    check(attached(family, hidden_layers=[0, 1, -1]), "learned_order")


def test_a_hook_that_another_thread_takes_off_in_the_middle_of_a_call():
    layer, shape = torch.nn.Identity(), torch.Size((1, 2))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: Seen(shape=shape, place=None)).result()
    mine = Seen(shape=shape, place=None)
    layer.register_forward_pre_hook(mine.before_layer(0), with_kwargs=True)
    layer.register_forward_pre_hook(lambda *_: its.remove())
    its = layer.register_forward_pre_hook(other.before_layer(0), with_kwargs=True)
    layer(torch.zeros(1, 2, 3))
    assert len(mine.layers[0]) == 1
    assert len(other.layers[0]) == 0
