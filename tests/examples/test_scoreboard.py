"""The scoreboard: which row counts, when a cell is ahead, and a small board from its command."""

import json
from dataclasses import replace

import bench_scoreboard
import pytest
from files import save_all

from hf_learned_order.evaluation.results import Result, load_results


def row(sampler, right, *, target=4.0, nfe=None, held_out=None, problems=60) -> Result:
    """Right on the first so many of the problems."""
    return Result(
        sampler=sampler,
        target=target,
        budget=9,
        accuracy=right / problems,
        nfe=target if nfe is None else nfe,
        nfe_min=1,
        nfe_max=9,
        bound=None,
        count=problems,
        scores=[float(i < right) for i in range(problems)],
        held_out=held_out,
    )


@pytest.mark.parametrize(("right", "state"), [(30, "ahead"), (20, "level"), (21, "level"), (5, "behind")])
def test_a_cell_is_what_its_interval_says(right, state):
    (cell,) = bench_scoreboard.cells("task", [row("learned_order", right), row("factor", 20), row("top_prob", 3)])
    assert (cell["state"], cell["rule"]["sampler"], cell["rules"]) == (state, "factor", 2)


def test_the_learned_row_is_chosen_on_held_out_problems_and_the_rule_on_test_problems():
    rows = [row("learned_order", 30, held_out=0.3), row("learned_order, tuned", 10, held_out=0.4)]
    rows += [row("factor", 12, held_out=0.9), row("factor, tuned", 25, held_out=0.1)]
    (cell,) = bench_scoreboard.cells("task", rows)
    assert cell["learned"]["sampler"] == "learned_order, tuned"
    assert cell["rule"]["sampler"] == "factor, tuned"
    assert cell["state"] == "behind"


def test_rows_that_take_more_calls_do_not_count():
    rows = [row("learned_order", 30), row("klass", 50, nfe=7.5), row("factor", 10)]
    assert [cell["rule"]["sampler"] for cell in bench_scoreboard.cells("task", rows)] == ["factor"]
    assert list(bench_scoreboard.cells("task", rows[:2])) == []
    assert list(bench_scoreboard.cells("task", rows[1:])) == []


def test_a_small_board(tmp_path, monkeypatch, capsys):
    save_all(tmp_path)
    seen = tmp_path / "seen.txt"
    seen.write_text("1+1\n")
    line = replace(bench_scoreboard.EQUATIONS, model=str(tmp_path / "denoiser"), nfe=(3,), without=str(seen))
    lines = {"equations": line, "elsewhere": replace(line, model=str(tmp_path / "none"))}
    monkeypatch.setattr(bench_scoreboard, "LINES", lines)
    monkeypatch.setattr(bench_scoreboard, "TOLERANCE", 30.0)  # a random model ends where it ends
    page = tmp_path / "page.md"
    page.write_text("# Board\n<!-- generated: scoreboard -->\n<!-- end of scoreboard -->\n")
    files = [f"--{split}_file={tmp_path / split}.jsonl" for split in ("train", "test")]
    small = ["--limit", "3", "--tuning_limit", "3", "--budget_shares", "1.5", "--seeds", "1"]
    command = [*files, *small, "--rules", "threshold", "--output_dir", str(tmp_path / "rows"), "--page", str(page)]
    command += ["--tasks", *lines, "--data", str(tmp_path / "data.json")]
    command += ["--scorer", f"equations={tmp_path / 'scorer-0'},{tmp_path / 'scorer-1'}"]
    bench_scoreboard.main(command)
    learned = load_results(tmp_path / "rows" / "equations" / "learned" / "results.json")
    assert [(row.sampler, row.runs) for row in learned] == [("learned_order", 2), ("learned_order, tuned", 2)]
    rules = load_results(tmp_path / "rows" / "equations" / "rules" / "results.json")
    assert [row.sampler for row in rules] == ["threshold", "threshold, tuned"]
    assert all(0 <= row.held_out <= 1 for row in [*learned, *rules])
    capsys.readouterr()
    bench_scoreboard.main([*command, "--limit", "0"])  # of what is there, without measuring
    assert " at 3: " not in capsys.readouterr().out
    text = page.read_text()
    assert "Not measured here: elsewhere." in text
    (cell,) = json.loads((tmp_path / "data.json").read_text())
    assert (cell["line"], cell["nfe"], cell["learned"]["runs"]) == ("equations", 3, 2)
    assert f"| **{cell['state']}** |" in text or "| level |" in text
