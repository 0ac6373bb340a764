"""The scoreboard: when a cell is ahead, what a rule does between two settings, and a small board from its command."""

import json
from dataclasses import replace
from types import SimpleNamespace

import bench_scoreboard
import curves
import numpy as np
import pytest
from files import save_all
from hypothesis import given
from hypothesis import strategies as st

from hf_learned_order.denoisers.loading import load_tokenizer

LINE = bench_scoreboard.Line(task="equations", model="none", nfe=(4.0,))
PROBLEMS = 60
OLD = {
    "line": "before",
    "nfe": 2,
    "state": "level",
    "lead": [-0.1, 0.1],
    "learned": 0.5,
    "spread": 0.0,
    "scorers": 1,
    "rule": "iid",
    "rules": {"iid": 0.5},
    "problems": 7,
}


class Measured:
    """Points of rules that take as many calls for each problem."""

    def __init__(self, *points: tuple[str, int, float]):
        self.settings = {"prompts": [[i] for i in range(PROBLEMS)]}
        self.rows = [
            {
                "rule": rule,
                "scorer": None,
                "scores": [float(i < right) for i in range(PROBLEMS)],
                "calls": [nfe] * PROBLEMS,
            }
            for rule, right, nfe in points
        ]


@pytest.mark.parametrize(("right", "state"), [(30, "ahead"), (20, "level"), (21, "level"), (5, "behind")])
def test_a_cell_is_what_its_interval_says(right, state, monkeypatch):
    points = Measured(("learned_order", right, 4.0), ("factor", 20, 4.0), ("top_prob", 3, 4.0))
    monkeypatch.setattr(bench_scoreboard, "wanted_of", lambda line: [None])
    (cell,) = bench_scoreboard.cells("line", LINE, points)
    assert (cell["state"], cell["rule"], len(cell["rules"])) == (state, "factor", 2)


def test_between_two_settings_is_their_mixture():
    fast, slow = np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0])
    points = [(6.0, slow), (2.0, fast)]
    assert curves.mixed(points, 3.0).tolist() == [0.25, 1.0, 0.0]
    assert curves.mixed(points, 2.0).tolist() == fast.tolist()
    assert curves.mixed(points, 8.0).tolist() == slow.tolist()  # with fewer calls than it might take
    assert curves.mixed(points, 1.9) is None


def test_settings_are_where_the_calls_change():
    asked = []

    def nfe_of(x):
        asked.append(x)
        return 1.0 if x > 0.25 else 100.0 - 300 * x  # 100 at 0, 25 at 0.25

    found = curves.spread_settings(nfe_of, 6, low=30, high=90)
    assert len(found) == len(asked) == 6
    assert asked[:4] == [0.0, 1.0, 0.5, 0.25]
    assert all(x < 0.25 for x in asked[4:])
    assert curves.spread_settings(lambda x: 1.0, 6) == {0.0: 1.0, 1.0: 1.0}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_the_frontier_is_what_no_faster_setting_equals(points):
    chosen = [points[i] for i in curves.frontier(points)]
    expected = {
        (x, value) for x, value in points if not any(a <= x and b >= value for a, b in {*points} - {(x, value)})
    }
    assert chosen == sorted(expected)


def test_step_budgets_are_tried_near_the_calls_of_a_setting():
    class HeldOut:
        def quick(self, sampler):
            return SimpleNamespace(nfe=1.0 + 9 * sampler.threshold)

    line = replace(LINE, nfe=(4.0, 8.0))
    found = list(bench_scoreboard.candidates("threshold", None, line, HeldOut(), 3))
    budgets = {}
    for words, sampler, budget in found:
        budgets.setdefault(sampler.threshold, []).append(budget)
        assert words == f"x={1 - sampler.threshold:g}" + (f", T={budget}" if budget else "")
    # 10, 5.5 and 1 calls; the budgets are 1, 1.25 and 1.5 times 4 and 8
    assert budgets == {1.0: [None, 8, 10, 12], 0.5: [None, 4, 5, 6, 8], 0.0: [None]}
    found = list(bench_scoreboard.candidates("iid", None, replace(LINE, nfe=(2.5, 4)), HeldOut(), 3))
    assert [(words, budget) for words, _, budget in found] == [("T=2", 2), ("T=3", 3), ("T=4", 4)]


def test_a_small_board(tmp_path, monkeypatch, capsys):
    save_all(tmp_path)
    seen = tmp_path / "seen.txt"
    seen.write_text("1+1\n")
    line = replace(bench_scoreboard.EQUATIONS, model=str(tmp_path / "denoiser"), nfe=(3, 70))
    lines = {
        "equations": line,
        "others": replace(line, of="equations", without=str(seen)),
        "elsewhere": replace(line, model=str(tmp_path / "none")),
        "before": replace(line, model=str(tmp_path / "none")),
    }
    monkeypatch.setattr(bench_scoreboard, "LINES", lines)
    page, rows = tmp_path / "page.md", tmp_path / "rows" / "equations.jsonl"
    page.write_text("# Board\n<!-- generated: scoreboard -->\n<!-- end of scoreboard -->\n")
    command = [f"--{split}_file={tmp_path / split}.jsonl" for split in ("train", "test")]
    command += ["--limit", "4", "--settings", "3", "--rules", "threshold", "iid", "--seeds", "2"]
    command += ["--output_dir", str(rows.parent), "--page", str(page), "--tasks", *lines]
    command += ["--data", str(tmp_path / "data.json")]
    (tmp_path / "data.json").write_text(json.dumps([OLD, {**OLD, "line": "equations"}]))
    command += ["--scorer", f"equations={tmp_path / 'scorer-0'},{tmp_path / 'scorer-1'}"]
    bench_scoreboard.main(command)
    settings, *points = map(json.loads, rows.read_text().splitlines())
    assert settings["seeds"] == 2
    assert {point["rule"] for point in points} == {"iid", "threshold", "learned_order"}
    assert all(point["setting"].startswith("T=") for point in points if point["rule"] == "iid")
    assert len({point["scorer"] for point in points if point["rule"] == "learned_order"}) == 2
    prompts = len(settings["prompts"])
    assert all(len(point["scores"]) == len(point["calls"]) == prompts for point in points)
    capsys.readouterr()
    whole = rows.read_text()
    rows.write_text(whole + '{"rule": "thresh')  # a kill in the middle of a row
    bench_scoreboard.main(command)  # what is there is not measured again
    assert rows.read_text() == whole
    seen.write_text(load_tokenizer(line.model).decode(settings["prompts"][0], skip_special_tokens=True) + "\n")
    bench_scoreboard.main([*command, "--limit", "0"])
    assert "equations: " not in capsys.readouterr().out
    assert "Not measured here: elsewhere." in page.read_text()
    assert "| before | 0 | 1 | 0 | 7 | 1 | 1 | no |" in page.read_text()
    *found, kept = json.loads((tmp_path / "data.json").read_text())
    assert kept == OLD  # a line without points keeps its cells, others get new ones
    assert {(cell["line"], cell["nfe"]) for cell in found} >= {("equations", 70), ("others", 70)}
    counts = {cell["line"]: cell["problems"] for cell in found}
    assert counts["equations"] == prompts
    assert counts["others"] == prompts - settings["prompts"].count(settings["prompts"][0]) < prompts
    assert {cell["scorers"] for cell in found} == {2}
    assert {*found[0]["rules"]} == {"threshold", "iid"}
    with pytest.raises(ValueError, match=r"equations\.jsonl: was measured with another seeds; give another"):
        bench_scoreboard.main([*command, "--seeds", "1"])
