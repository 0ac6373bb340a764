"""Chains with other numbers: valid, repeatable, like those that they were drawn from."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gsm8k import FILES, check_texts, needs_files, solution_of

from hf_learned_order.tasks.gsm8k import chains_of, parse_chain, read_rows
from hf_learned_order.tasks.resampler import Resampler

TEMPLATES = [
    parse_chain(solution_of(*texts))
    for texts in (
        ["16-3-4", "9*2"],
        ["20/100*60", "60-12", "48/2+5"],
        ["1.5*4", "6+0.25"],
        ["(7+5)*3", "36/4", "9-9"],
        ["700*3", "2100/100"],
        ["7/4"],
    )
]


@given(seed=st.integers(0, 2**32))
def test_resampled_chains_are_valid(seed):
    chain = Resampler(TEMPLATES).draw(random.Random(seed))
    shapes = {tuple(e.tokens for e in template.expressions): template for template in TEMPLATES}
    template = shapes[tuple(e.tokens for e in chain.expressions)]
    for result, original in zip(check_texts(chain), template.results(), strict=True):
        assert 0 <= result < 10**7
        assert 1000 % result.denominator == 0
        assert result.denominator == 1 or not isinstance(original, int)
    for new, old in zip(chain.expressions, template.expressions, strict=True):
        references = [[o if isinstance(o, tuple) else None for o in e.operands] for e in (new, old)]
        assert references[0] == references[1]


def test_resampling_changes_the_numbers_and_is_repeatable():
    def draw(seed):
        rng = random.Random(seed)
        return [resampler.draw(rng).texts() for _ in range(60)]

    resampler = Resampler(TEMPLATES)
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len({text for text in draw(1)} - {template.texts() for template in TEMPLATES}) > 20


def test_numbers_come_from_the_same_role():
    """Where only 100 stands behind `/` and before `*`, four draws of five keep it and the others change its digits."""
    resampler, rng = Resampler(TEMPLATES[1:2]), random.Random(0)
    denominators = Counter(resampler.draw(rng).expressions[0].operands[1] for _ in range(200))
    assert denominators.most_common(1)[0][0] == 100
    assert all(100 <= d <= 900 and d % 100 == 0 for d in denominators)


PRODUCT = parse_chain(solution_of("12*34"))


@pytest.mark.parametrize("growth", [0, 1])
def test_results_grow_by_so_many_digits(growth):
    resampler, rng = Resampler([PRODUCT], growth=growth), random.Random(0)
    assert max(len(str(resampler.draw(rng).results()[0])) for _ in range(200)) == len("408") + growth


def test_keep_is_the_share_of_expressions_left_alone():
    rng = random.Random(0)
    for keep, low, high in ((0.0, 0.58, 0.7), (0.5, 0.76, 0.88), (1.0, 1.0, 1.0)):
        resampler = Resampler([PRODUCT], keep=keep)
        # a number is redrawn as itself four times of five here, so both are in 64 % of the redrawn expressions
        assert low <= sum(resampler.draw(rng) == PRODUCT for _ in range(400)) / 400 <= high


def test_expressions_that_cannot_be_met_keep_their_numbers():
    """No draw of other numbers: with `tries=0` a chain comes back as it was."""
    resampler, rng = Resampler(TEMPLATES, tries=0), random.Random(0)
    assert all(resampler.draw(rng) in TEMPLATES for _ in range(20))


def test_resampler_without_chains():
    with pytest.raises(ValueError, match="chains must hold at least one chain, but it is empty"):
        Resampler([])


@needs_files
def test_resampled_published_problems():
    chains, _ = chains_of(read_rows(FILES / "train.jsonl"))
    resampler, rng = Resampler(chains), random.Random(0)
    for _ in range(500):
        assert all(result >= 0 for result in check_texts(resampler.draw(rng)))
