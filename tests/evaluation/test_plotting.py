"""The pictures are written and hold what they were given."""

from dataclasses import replace
from itertools import pairwise

import pytest
from files import equation_model, scorer_of, write_rows
from matplotlib import pyplot
from matplotlib.colors import to_hex
from PIL import Image

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.order_maps import OrderMap, palette
from hf_learned_order.evaluation.plotting import OTHERS, order_map, order_map_of, trade_off
from hf_learned_order.evaluation.results import Result
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows


def result(sampler: str, nfe: float, accuracy: float) -> Result:
    return Result(
        sampler=sampler, budget=8, accuracy=accuracy, nfe=nfe, nfe_min=1, nfe_max=8, bound=None, count=10, target=nfe
    )


def map_of(label: str, tokens: list[str], order: list[int]) -> OrderMap:
    return OrderMap(label=label, prompt="", tokens=tokens, order=order, confidence=[0.5] * len(order), nfe=3)


def colours_of(path) -> int:
    """How many colours a picture has: a blank one has one."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(maxcolors=10**6))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept from being closed."""
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    pyplot.close("all")


def test_trade_off(tmp_path, figures):
    results = [result("learned_order", 8.0, 0.5), result("iid", 2.0, 0.1), result("learned_order", 2.0, 0.3)]
    trade_off(results, tmp_path / "curve.png", title="Trade-off")
    assert colours_of(tmp_path / "curve.png") > 10
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"learned_order": [[2.0, 30.0], [8.0, 50.0]], "iid": [[2.0, 10.0]]}
    assert axes.get_title() == "Trade-off"


@pytest.mark.parametrize("dark", [False, True])
def test_learned_order_and_the_three_nearest_rules_are_named(tmp_path, figures, dark):
    best = ["factor", "threshold", "klass"]
    rows = [("learned_order", 0.6), *zip(best, (0.5, 0.45, 0.4), strict=True), ("iid", 0.1), ("margin", 0.3)]
    results = [result(name, nfe, accuracy + nfe / 100) for name, accuracy in rows for nfe in (2.0, 8.0)]
    trade_off(results, tmp_path / "curve.png", dark=dark)
    (axes,) = figures[0].axes
    names = [text.get_text() for text in axes.texts]
    assert sorted(names) == sorted(["learned_order", *best, "other rules"])
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert colours["iid"] == colours["margin"] == OTHERS
    assert len({colours[name] for name in ["learned_order", *best, "iid"]}) == 5
    assert len(axes.collections) == 4  # intervals
    heights = sorted(text.xy[1] for text in axes.texts if text.get_text() != "other rules")
    assert min(b - a for a, b in pairwise(heights)) > 2.0  # no name covers another


def test_a_line_that_ends_early_is_named_at_its_end(tmp_path, figures):
    results = [result("learned_order, tuned", 2.0, 0.5), result("factor, tuned", 2.0, 0.4), result("iid", 16.0, 0.3)]
    trade_off(results, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    assert {text.get_text(): text.xy for text in axes.texts if "tuned" in text.get_text()} == {
        "learned_order, tuned": (2.0, 50.0),
        "factor, tuned": (2.0, 40.0),
    }


def test_a_panel_for_each_task(tmp_path, figures):
    results = [replace(result("iid", 2.0, 0.1 * i), task=task) for i, task in enumerate(("equations", "words"))]
    trade_off(results, tmp_path / "curve.png")
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels] == ["equations", "words"]
    assert [axes.lines[0].get_xydata().tolist() for axes in panels] == [[[2.0, 0.0]], [[2.0, 10.0]]]


def test_order_map(tmp_path, figures):
    maps = [map_of("one", ["a", "b"], [1, 2]), map_of("two", ["c", "d", "$e$", "[EOS]", "\n"], [3, 1, 1, 0, 2])]
    order_map(maps, tmp_path / "map.png", title="Orders")
    assert colours_of(tmp_path / "map.png") > 10
    axes, scale = figures[0].axes
    assert axes.get_title() == "Orders"
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c", "d", "$e$", "[EOS]", "↵"]
    assert not any(text.get_parse_math() for text in axes.texts)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one, 3 calls", "two, 3 calls"]
    fills = [to_hex(patch.get_facecolor(), keep_alpha=True) for patch in axes.patches]
    light, middle, dark = (f"{colour}ff" for colour in palette(3))
    assert fills == [light, middle, dark, light, light, "#00000000", middle]
    corners = [(patch.get_x(), patch.get_y()) for patch in axes.patches]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]
    assert corners[0] == (0, 0)
    assert corners[2:] == [(0, 1), *((end, 1) for end in ends[2:-1])]  # side by side
    assert ends[:2] == ends[2:4]  # a place is as wide in every line
    assert axes.get_xlim() == (0, ends[-1])
    assert len(scale.get_yticks()) >= 3


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="maps must hold at least one OrderMap, but it is empty"):
        order_map([], tmp_path / "map.png")


def test_figures_are_closed(tmp_path):
    trade_off([result("iid", 2.0, 0.1)], tmp_path / "curve.png")
    order_map([map_of("one", ["a"], [1])], tmp_path / "map.png")
    assert pyplot.get_fignums() == []


def evaluator_of(folder, count: int) -> Evaluator:
    """On `count` problems."""
    write_rows(folder / "rows.jsonl", 60, 0)
    tokenizer, model = equation_tokenizer(), equation_model()
    dataset = equations(chains_of(read_rows(folder / "rows.jsonl"))[0], tokenizer, canvas_length=24)
    return Evaluator(Denoiser(model), tokenizer, dataset.select(range(count)), canvas_length=24)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("with_scorer", [False, True])
def test_order_map_of(tmp_path, figures, rows, with_scorer):
    evaluator = evaluator_of(tmp_path, rows)
    scorers = [scorer_of(evaluator.denoiser.model)] if with_scorer else []
    order_map_of(evaluator, scorers, tmp_path / "map.png", count=2)
    assert colours_of(tmp_path / "map.png") > 10
    labels = [label.get_text().split(",")[0] for label in figures[0].axes[0].get_yticklabels()]
    count = min(rows, 2)  # as many as there are
    assert labels == ["entropy"] * count + ["learned"] * count * with_scorer


@pytest.mark.parametrize("greedy", [False, True])
def test_order_map_of_a_scorer_with_a_budget(tmp_path, figures, greedy):
    evaluator = evaluator_of(tmp_path, 2)
    scorer = scorer_of(evaluator.denoiser.model, law="count", max_denoising_steps=2)
    order_map_of(evaluator, [scorer], tmp_path / "map.png", greedy=greedy)
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert {label for label in labels if label.startswith("learned")} <= {"learned, 1 calls", "learned, 2 calls"}
