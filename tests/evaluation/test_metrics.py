"""Metrics of orders and of trade-offs against the formulas in plain Python, and by hand."""

import itertools
import math
import subprocess
import sys

import oracles
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hf_learned_order.evaluation.metrics import (
    AccuracyUnderParallelism,
    AnswerAccuracy,
    OrderMetrics,
    SampleMetrics,
    aup,
    diversity,
    finalization_parallelism,
    global_ar_ness,
    kendall_tau,
    local_ar_ness,
    pass_at_k,
)

orders = st.lists(st.integers(0, 5), min_size=1, max_size=9)
batches = st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(st.integers(0, n), min_size=n, max_size=n), min_size=1))
curves = st.lists(
    st.tuples(st.floats(0.1, 20), st.floats(0, 100)), min_size=1, max_size=6, unique_by=lambda point: point[0]
)


# ---- orders ------------------------------------------------------------------------------------------------------


@given(batch=batches, k=st.integers(1, 4))
@example(batch=[[0, 0], [1, 2]], k=1)  # a row that nothing was unmasked in
def test_orders(batch, k):
    order = torch.tensor(batch)
    assert kendall_tau(order).tolist() == pytest.approx([oracles.kendall_tau(row) for row in batch], nan_ok=True)
    for ours, reference in (
        (local_ar_ness(order, k), oracles.local_ar_ness),
        (global_ar_ness(order, k), oracles.global_ar_ness),
    ):
        assert ours.tolist() == pytest.approx([reference(row, k) for row in batch], nan_ok=True)


@given(order=st.lists(st.integers(1, 5), min_size=2, max_size=9))
def test_kendall_tau_is_scipys(order):
    stats = pytest.importorskip("scipy.stats")  # comes with lm-eval
    expected = math.nan if len(set(order)) == 1 else stats.kendalltau(range(len(order)), order).statistic
    assert kendall_tau(torch.tensor([order])).item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_from_left_to_right_is_one(k):
    order = torch.tensor([[1, 2, 3, 4, 5, 0], [1, 1, 2, 2, 2, 3]])
    assert kendall_tau(order)[0] == 1
    assert local_ar_ness(order, k).tolist() == global_ar_ness(order, k).tolist() == [1, 1]


def test_by_hand():
    order = torch.tensor([[1, 4, 2, 3]])  # positions 0, 2, 3, 1
    assert local_ar_ness(order, 1).tolist() == [0.5]  # 0 behind the prompt, 3 behind 2
    assert local_ar_ness(order, 2).tolist() == [0.25]
    assert global_ar_ness(order, 1).tolist() == [0.5]  # 0 and, when nothing else is left, 1
    assert global_ar_ness(order, 2).tolist() == [1]
    assert kendall_tau(order).item() == pytest.approx((4 - 2) / 6)


def test_finalization_parallelism():
    order = torch.tensor([[1, 1, 4, 1, 0], [3, 2, 1, 0, 0], [0, 0, 0, 0, 0]])
    assert finalization_parallelism(order).tolist() == pytest.approx([4 / 2, 1, math.nan], nan_ok=True)


def test_order_metrics():
    values = OrderMetrics(keep_in_memory=True).compute(predictions=[[1, 2, 3], [3, 2, 1, 0], [1, 1]])
    assert values == {
        "finalization_parallelism": pytest.approx(4 / 3),
        "kendall_tau": 0.0,
        "local_ar_ness": pytest.approx(2 / 3),
        "global_ar_ness": pytest.approx(7 / 9),
    }
    values = OrderMetrics(keep_in_memory=True).compute(predictions=[[1, 4, 2, 3]], k=2)
    assert (values["local_ar_ness"], values["global_ar_ness"]) == (0.25, 1.0)
    assert OrderMetrics(keep_in_memory=True).compute(predictions=[[1, 1]])["kendall_tau"] is None


@pytest.mark.parametrize("measure", [local_ar_ness, global_ar_ness])
@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_checked(measure, k):
    with pytest.raises(ValueError, match=f"k must be a positive integer, got {k}"):
        measure(torch.tensor([[1, 2]]), k)


# ---- several responses -------------------------------------------------------------------------------------------


@given(flags=st.lists(st.booleans(), min_size=1, max_size=7), data=st.data())
def test_pass_at_k_goes_through_all_choices(flags, data):
    k = data.draw(st.integers(1, len(flags)))
    chosen = [any(choice) for choice in itertools.combinations(flags, k)]
    assert pass_at_k(sum(flags), len(flags), k) == pytest.approx(sum(chosen) / len(chosen))


@given(responses=st.lists(st.sampled_from("abc"), min_size=2, max_size=7))
def test_diversity_goes_through_all_pairs(responses):
    pairs = [a != b for a, b in itertools.combinations(responses, 2)]
    assert diversity(responses) == pytest.approx(sum(pairs) / len(pairs))


def test_sample_metrics():
    texts, metric = [["#1", "#2", "#2"], ["#5", "#5", "#5"]], SampleMetrics(keep_in_memory=True)
    values = metric.compute(predictions=texts, references=["2", "4"], k=2)
    assert values == {"pass_at_k": 0.5, "diversity": pytest.approx(1 / 3)}
    values = metric.compute(predictions=[["#1"], ["#4"]], references=["2", "4"])
    assert values == {"pass_at_k": 0.5, "diversity": None}
    values = metric.compute(predictions=[["a"]], references=["2"], is_right=lambda text, answer: text + answer == "a2")
    assert values["pass_at_k"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(3, 2, 1), r"right must be in \[0, 2\], got 3"),
        (lambda: pass_at_k(1, 2, 3), r"k must be in \[1, 2\], the number of responses to a prompt, got 3"),
        (lambda: diversity(["a"]), "responses must be two or more to differ, got 1"),
    ],
)
def test_samples_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- answers and trade-offs --------------------------------------------------------------------------------------


def test_answer_accuracy():
    texts = ["1+1=2 #2", "no answer", "#### 1,000", "2+2=4 #5"]
    values = AnswerAccuracy(keep_in_memory=True).compute(predictions=texts, references=["2", "3", "1000", "4"])
    assert values == {"accuracy": 0.5, "right": [True, False, True, False]}


@pytest.mark.parametrize(("metric", "more"), [(AnswerAccuracy, {"references": []}), (OrderMetrics, {})])
def test_nothing_to_measure(metric, more):
    with pytest.raises(ValueError, match="predictions must hold at least one, got none"):
        metric(keep_in_memory=True).compute(predictions=[], **more)


@given(points=curves, above=st.floats(0, 50), alpha=st.floats(0, 5))
def test_aup(points, above, alpha):
    rising = sorted(points)
    best = max(y for _, y in points) + above
    expected = oracles.aup(rising, best, alpha) if best else 0.0
    options = {"best": best, "alpha": alpha}
    assert aup(*zip(*points, strict=True), **options) == pytest.approx(expected)
    metric = AccuracyUnderParallelism(keep_in_memory=True)
    rhos, accuracies = map(list, zip(*points, strict=True))
    assert metric.compute(predictions=rhos, references=accuracies, **options) == {"aup": pytest.approx(expected)}


def test_aup_by_hand():
    assert aup([2.0], [70.0]) == 140.0
    # nothing is lost: the area under the curve
    assert aup([4.0, 1.0], [80.0, 80.0]) == pytest.approx(4 * 80)
    # more than 5 points are lost: that point is out
    assert aup([1.0, 4.0], [80.0, 74.9]) == 80.0
    # 4 of 80 points are lost: weighted by exp(-3 * 0.05)
    assert aup([1.0, 4.0], [80.0, 76.0]) == pytest.approx(80 + 1.5 * (80 + 76 * math.exp(-0.15)))
    # the best of one parallelism counts
    assert aup([1.0, 4.0, 4.0], [80.0, 10.0, 80.0]) == pytest.approx(4 * 80)
    assert aup([1.0, 2.0], [0.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (([], []), {}, "the same number of points, at least one, got 0 and 0"),
        (([1.0], [1.0, 2.0]), {}, "the same number of points, at least one, got 1 and 2"),
        (([0.0], [1.0]), {}, r"parallelism must be positive, got \[0\.0\]"),
        (([math.nan], [1.0]), {}, r"parallelism must be positive, got \[nan\]"),
        (([1.0], [101.0]), {}, r"accuracy must be in \[0, 100\], got \[101\.0\]"),
        (([1.0], [50.0]), {"best": 40.0}, r"best must be at least the highest accuracy 50\.0, got 40\.0"),
    ],
)
def test_aup_checks(points, options, message):
    with pytest.raises(ValueError, match=message):
        aup(*points, **options)


def test_evaluate_is_imported_only_to_measure():
    code = "import sys, hf_learned_order.evaluation.plotting; print('evaluate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
