"""Doubt against pairs: what curves are worth, and that the best weights are what the scorer ends with."""

import math

import pytest
import torch

from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training import weighing
from hf_learned_order.training.weighing import choose_weights, heights, rows_to_weigh_on, set_weights


def scorer(**options) -> OrderScorer:
    config = {**options, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "denoiser_hidden_size": 0}
    return OrderScorer(OrderScorerConfig(law="regret", **config))


def test_heights_by_hand():
    # from 2 to 8 calls, evenly in their logarithm: the first rises from 0.2 to 0.4 up to 4 calls and stays there;
    # the second comes up from 0 at one call, and has 0.2 at 4 and 0.6 at 8
    flat, steep = heights([[(2.0, 0.2), (4.0, 0.4)], [(8.0, 0.6), (4.0, 0.2)]])
    assert flat == pytest.approx((0.3 + 0.4) / 2, abs=1e-2)
    assert steep == pytest.approx((0.15 + 0.4) / 2, abs=1e-2)


def test_a_curve_that_is_only_slow_is_worth_less():
    slow, fast = heights([[(8.0, 0.9)], [(2.0, 0.8), (8.0, 0.9)]])
    assert fast > slow


@pytest.mark.parametrize("best", weighing.WEIGHTS)
def test_the_best_weights_are_set(best):
    of = scorer()

    def measure(bias: float) -> tuple[float, float]:
        doubt = math.exp(of.network.head.bias[1].item())
        mine = (doubt if doubt > 1e-4 else 0.0, of.config.pair_weight)
        return 4 - bias, 0.9 if mine == pytest.approx(best) else 0.5

    found = choose_weights(of, measure)
    assert max(found, key=lambda name: found[name]) == "right_by_weights_{:g}_{:g}".format(*best)
    assert of.config.pair_weight == best[1]
    assert of.network.head.bias[1].item() == pytest.approx(math.log(max(best[0], math.exp(-12))))


@pytest.mark.parametrize("seeing", [True, False])
def test_pairs_see_tokens_where_that_is_better(seeing):
    of, asked = scorer(token_pairs=True), []

    def measure(bias: float) -> tuple[float, float]:
        asked.append((of.config.pair_weight, of.config.sees_tokens))
        return 4 - bias, 0.9 if of.config.sees_tokens == seeing else 0.5

    choose_weights(of, measure)
    assert of.config.sees_tokens == seeing
    speeds = len(weighing.BIASES)
    assert asked[: 2 * speeds] == [(1.0, True)] * speeds + [(1.0, False)] * speeds
    assert {sees for _, sees in asked[2 * speeds :]} == {seeing}
    assert len(asked) == (len(weighing.WEIGHTS) + len(weighing.SHARES)) * speeds


@pytest.mark.parametrize("best", weighing.SHARES)
def test_the_correction_counts_as_much_as_is_good(best):
    of = scorer()
    torch.nn.init.normal_(of.network.head.weight)
    torch.nn.init.normal_(of.network.head.bias)
    learned = [parameter.detach().clone() for parameter in (of.network.head.weight, of.network.head.bias)]

    def measure(bias: float) -> tuple[float, float]:
        return 4 - bias, 0.9 if torch.equal(of.network.head.bias[0], best * learned[1][0]) else 0.5

    choose_weights(of, measure)
    torch.testing.assert_close(of.network.head.weight[0], best * learned[0][0])
    torch.testing.assert_close(of.network.head.bias[0], best * learned[1][0])


def test_where_nothing_is_right_it_says_so(caplog):
    choose_weights(scorer(), lambda bias: (4 - bias, 0.0))
    assert "no held-out response was right" in caplog.text
    caplog.clear()
    choose_weights(scorer(), lambda bias: (4 - bias, 0.1))
    assert not caplog.text


def test_of_equals_the_first():
    of = scorer()
    choose_weights(of, lambda bias: (4 - bias, 0.5))
    assert of.config.pair_weight == 0.1
    assert of.network.head.bias[1] == 0.0


def test_weights_are_the_same_everywhere():
    of = scorer()
    torch.nn.init.normal_(of.network.head.weight)
    set_weights(of, 0.3, 1.0)
    assert (of.network.head.weight[1] == 0).all()
    assert (of.network.head.weight[0] != 0).all()


def test_weighing_costs_a_share_of_the_training():
    assert [rows_to_weigh_on(trained) for trained in (1, 799, 850, 12_800, 10**6)] == [16, 16, 17, 256, 256]
