"""A row draws the same alone and in a batch, whatever it draws."""

import pytest
import torch
from models import MASK, tiny_model
from test_attach import scorer_for

from hf_learned_order.decoding.draws import RowDraws
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.interface.attach import attach

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
BASE = tiny_model("llama")
SCORER = scorer_for(BASE)
RANDOM = [name for name in SAMPLERS if make_sampler(name, scorer=SCORER).is_random]
OPTIONS = {"max_new_tokens": 8, "max_denoising_steps": 5, "eos_token_id": [], "seed": 3}


@pytest.fixture(scope="module")
def model():
    return attach(BASE, SCORER, mask_token_id=MASK)


def decoded(model, prompts, sampler="top_prob", side="left", **options):
    """[(tokens, order)] of each row."""
    width = max(map(len, prompts))
    pad = [[0] * (width - len(prompt)) for prompt in prompts]
    rows = [p + r if side == "left" else r + p for p, r in zip(pad, prompts, strict=True)]
    mask = [[0] * len(p) + [1] * len(r) for p, r in zip(pad, prompts, strict=True)]
    mask = [row if side == "left" else row[::-1] for row in mask]
    options = {**OPTIONS, **options, "return_dict_in_generate": True}
    out = model.generate(torch.tensor(rows), torch.tensor(mask), sampler=sampler, **options)
    if not options.get("infill"):
        return list(zip(out.sequences[:, width:].tolist(), out.order.tolist(), strict=True))
    real = torch.tensor(mask).bool()
    return [(s[r].tolist(), o[r].tolist()) for s, o, r in zip(out.sequences, out.order, real, strict=True)]


def test_which_rules_draw():
    assert {"iid", "random", "remdm", "learned_order"} <= set(RANDOM)


@pytest.mark.parametrize("sampler", RANDOM)
def test_of_every_random_rule(model, sampler):
    alone = [decoded(model, [prompt], sampler)[0] for prompt in PROMPTS]
    assert decoded(model, PROMPTS, sampler, "right") == alone
    assert decoded(model, PROMPTS[::-1], sampler, block_length=8) == alone[::-1]
    assert decoded(model, PROMPTS, sampler, seed=4) != alone


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2.0}, {"temperature": 0.7, "top_p": 0.9}, {"block_length": 4}, {"sampler": "iid"}],
    ids=str,
)
def test_of_drawn_tokens(model, options):
    alone = [decoded(model, [prompt], do_sample=True, **options)[0] for prompt in PROMPTS]
    assert decoded(model, PROMPTS, do_sample=True, **options) == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == 3


@pytest.mark.parametrize("steps", [3, None])
@pytest.mark.parametrize("sampler", ["random", "iid", "learned_order", "random_sizes", "remdm", "wino"])
def test_within_prompts(model, sampler, steps):
    """Padding lies in the canvas there. By default a row has a step for each of its own masks."""
    prompts = [[5, MASK, MASK, 8, MASK, MASK], [MASK, 9, MASK], [7, MASK, MASK, MASK]]
    options = {"infill": True, "max_new_tokens": None, "eos_token_id": None, "do_sample": True, "temperature": 2.0}
    options["max_denoising_steps"] = steps
    alone = [decoded(model, [prompt], sampler, **options)[0] for prompt in prompts]
    assert decoded(model, prompts, sampler, **options) == alone


def test_rows_of_one_prompt_differ(model):
    rows = decoded(model, [PROMPTS[0]] * 3, "random")
    assert len({tuple(order) for _, order in rows}) == 3
    assert rows[0] == decoded(model, [PROMPTS[0]], "random")[0]
    assert decoded(model, [PROMPTS[0]], "random", num_return_sequences=3) == rows


def test_numbers_of_rows():
    ids, mask = torch.tensor([[0, 5, 6], [5, 6, 0], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]])
    draws, again = (RowDraws(ids, mask, torch.Generator().manual_seed(0)) for _ in range(2))
    every = torch.arange(3)
    first, second = draws.uniform(every, 4, 1, None), draws.uniform(every, 4, 1, None)
    assert first.shape == (3, 5)
    assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 30
    padding = torch.tensor([[True, True, False, False], [False] * 4])
    some = again.uniform(torch.tensor([2, 0]), 4, 1, padding)
    assert some[0].tolist() == [0, 0, *first[2, :3].tolist()]
    assert torch.equal(some[1], first[0])


def test_rows_with_generators_of_their_own():
    ids = torch.tensor([[5, 6], [5, 6]])
    own = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = RowDraws(ids, torch.ones_like(ids), own).uniform(torch.tensor([1, 0]), 3, 0, None)
    expected = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in (4, 3)]
    assert torch.equal(found, torch.stack(expected))
    with pytest.raises(ValueError, match=r"generator must be one, or one for each of the 2 rows, got 1"):
        RowDraws(ids, torch.ones_like(ids), own[:1])


def test_what_draws_nothing_leaves_the_global_generator_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    decoded(model, PROMPTS, "entropy", seed=None)
    assert torch.rand(1) == expected
    torch.manual_seed(0)
    first = decoded(model, PROMPTS, "random", seed=None)
    torch.manual_seed(0)
    assert decoded(model, PROMPTS, LearnedOrderSampler(scorer=SCORER), seed=None) != first
    torch.manual_seed(0)
    assert decoded(model, PROMPTS, "random", seed=None) == first
