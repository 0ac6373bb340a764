"""Lists of words: what is right, and what one step loses, by counting."""

import math
import random
from collections import Counter

import pytest

from hf_learned_order.tasks import lists


@pytest.mark.parametrize("operation", lists.OPERATIONS)
def test_what_is_drawn_is_right_and_little_else_is(operation):
    rng = random.Random(0)
    for _ in range(50):
        prompt, response = lists.draw(operation, 6, rng)
        assert lists.is_right(response, prompt)
        words = response.split()
        wrong = ["", " ".join(words[:-1]), f"{response} ant", " ".join([words[1], *words[1:]])]
        assert not any(lists.is_right(text, prompt) for text in wrong)


def test_by_hand():
    assert lists.is_right("fig owl sun", "copy : fig owl sun")
    assert lists.is_right("sun owl fig", "reverse : fig owl sun")
    assert not lists.is_right("fig owl sun", "reverse : fig owl sun")
    assert lists.is_right("fig owl sun", "sort : owl sun fig")
    assert not lists.is_right("owl sun fig", "sort : owl sun fig")
    assert lists.is_right("owl fig sun", "shuffle : fig owl sun")
    assert not lists.is_right("owl owl sun", "shuffle : fig owl sun")
    assert lists.is_right("fig ant sun", "replace #2 ant : fig owl sun")
    assert not lists.is_right("ant owl sun", "replace #2 ant : fig owl sun")
    assert all(lists.is_right(text, "replace_random ant : fig owl") for text in ("ant owl", "fig ant"))
    assert not any(lists.is_right(text, "replace_random ant : fig owl") for text in ("ant ant", "fig owl", "ant fig"))


def entropy(counts: Counter) -> float:
    total = sum(counts.values())
    return -sum(c / total * math.log(c / total) for c in counts.values())


@pytest.mark.parametrize(
    ("operation", "loss"),
    [
        *((name, 0.0) for name in ("copy", "replace", "reverse", "sort")),
        ("replace_random", 2 * math.log(3 / 2)),
        ("shuffle", 3 * math.log(3) - math.log(6)),
    ],
)
def test_what_one_step_loses(operation, loss, monkeypatch):
    """The total correlation of the responses to one prompt, n = 3: entropies of the positions less the joint one."""
    monkeypatch.setattr(lists, "WORDS", ("ant", "fig", "owl", "sun"))
    rng, responses = random.Random(0), {}
    for _ in range(20_000):
        prompt, response = lists.draw(operation, 3, rng)
        responses.setdefault(prompt, []).append(tuple(response.split()))
    seen = max(responses.values(), key=len)
    total = sum(entropy(Counter(column)) for column in zip(*seen, strict=True)) - entropy(Counter(seen))
    assert total == pytest.approx(loss, abs=0.04)


def test_an_unknown_operation():
    with pytest.raises(ValueError, match=r"operation must be one of copy, replace, .*, got 'double'"):
        lists.draw("double", 3, random.Random(0))


def test_too_many_words():
    with pytest.raises(ValueError, match=r"length must be in \[1, 16\], got 17"):
        lists.draw("copy", 17, random.Random(0))
