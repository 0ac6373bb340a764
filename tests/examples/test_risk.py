"""The bench of risks: what is counted over the splits, and that it runs."""

import json

import bench_risk
import pytest
import torch

from hf_learned_order.evaluation.guarantees import kept


def test_halves_are_random_and_whole():
    splits = bench_risk.halves(7, 3, seed=0)
    assert [sorted(torch.cat(pair).tolist()) for pair in splits] == [list(range(7))] * 3
    assert [len(first) for first, _ in splits] == [3] * 3
    assert splits[0][0].tolist() != splits[1][0].tolist()


@pytest.mark.parametrize("confidence", [0.9, None])
def test_what_the_splits_say(confidence):
    bad = torch.zeros(3, 200, dtype=torch.bool)
    bad[1, :12] = True  # 6 % of all
    bad[2, ::2] = True
    calls = torch.tensor([8.0, 4.0, 1.0])[:, None] + torch.arange(200) % 2
    splits = bench_risk.halves(200, 40, seed=0)
    said = bench_risk.kept_on(bad, calls, torch.full((200,), 20.0), splits, risk=0.1, confidence=confidence)
    chosen = [kept(bad[:, first], 0.1, confidence) for first, _ in splits]
    assert set(chosen) == {1, 2}  # the last setting never, the middle one by chance
    assert (said["none"], said["broken"]) == (0, 0)
    rest = [bad[number - 1, last].float().mean() for number, (_, last) in zip(chosen, splits, strict=True)]
    assert said["rest"] == pytest.approx(float(sum(rest)) / 40)
    taken = [calls[number - 1, last].mean() for number, (_, last) in zip(chosen, splits, strict=True)]
    assert said["calls"] == pytest.approx(float(sum(taken)) / 40)
    # 6 % of all are bad where 5 are allowed: each split that chooses it has broken the promise
    tight = bench_risk.kept_on(bad, calls, torch.full((200,), 20.0), splits, risk=0.05, confidence=confidence)
    assert tight["broken"] == sum(kept(bad[:, first], 0.05, confidence) == 2 for first, _ in splits) / 40


def test_nothing_chosen_is_the_slow_rule():
    bad, calls = torch.ones(1, 60, dtype=torch.bool), torch.ones(1, 60)
    splits = bench_risk.halves(60, 2, seed=0)
    said = bench_risk.kept_on(bad, calls, torch.full((60,), 20.0), splits, risk=0.1, confidence=0.9)
    assert said == {"none": 1, "broken": 0, "rest": 0, "calls": 20}


def test_the_bench_runs(tmp_path, monkeypatch):
    page, data = tmp_path / "risk.md", tmp_path / "risk.json"
    page.write_text("<!-- generated: risk -->\n<!-- end of risk -->\n")
    small = ["--limit", "4", "--points", "2", "--splits", "3", "--risks", "0.9", "--rules", "learned_order", "factor"]
    bench_risk.main(["--task", "sudoku", *small, "--data", str(data), "--page", str(page)])
    rows = json.loads(data.read_text())
    assert [(row["rule"], row["method"]) for row in rows] == [
        (rule, method) for rule in ("learned_order", "factor") for method in bench_risk.METHODS
    ]
    assert all(0 < row["calls"] <= 30 == row["slow_calls"] for row in rows)
    assert "| learned_order | " in page.read_text()
