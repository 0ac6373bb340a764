"""Rows of a comparison: means, intervals, tables, files, and a sweep that goes on."""

import csv
import io
import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from threading import Thread

import pytest
import torch
from huggingface_hub.utils import WeakFileLock
from rich.console import Console
from test_files import together

from hf_learned_order.evaluation.results import (
    Result,
    Sweep,
    lead,
    load_results,
    over_runs,
    over_samples,
    save_results,
)
from hf_learned_order.evaluation.tables import aup_table, order_table, sample_table, table

RESULT = Result(
    sampler="entropy", target=4.0, budget=4, accuracy=0.25, nfe=3.9, nfe_min=2, nfe_max=4, bound=-9.5, count=8
)


def test_over_runs():
    runs = [replace(RESULT, accuracy=a, nfe=n, nfe_min=m, nfe_max=M, bound=b) for a, n, m, M, b in
            [(0.2, 3.0, 2, 4, -8.0), (0.4, 5.0, 1, 6, -10.0), (0.3, 4.0, 2, 5, -9.0)]]  # fmt: skip
    mean = over_runs(runs)
    assert mean.accuracy == pytest.approx(0.3)
    assert mean.spread == pytest.approx(0.1)
    assert (mean.nfe, mean.nfe_min, mean.nfe_max, mean.bound, mean.runs) == (4.0, 1, 6, -9.0, 3)
    assert over_runs([RESULT]) == RESULT
    seeds = [replace(RESULT, scores=[1.0, 0.0, 1.0]), replace(RESULT, scores=[1.0, 0.0, 0.0])]
    assert over_runs(seeds).scores == [1.0, 0.0, 0.5]
    assert over_runs([replace(RESULT, bound=None)] * 2).bound is None


def test_over_samples():
    assert over_samples([RESULT]) == [RESULT]
    texts, scores = ["ab", "ac", "db", "de"], [(1.0, 0.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    runs = [replace(RESULT, scores=list(s), texts=list(t)) for t, s in zip(texts, scores, strict=True)]
    together = over_samples(runs)
    assert [run.scores for run in together] == [run.scores for run in runs]
    assert {(run.samples, run.pass_at_k) for run in together} == {(4, 0.5)}
    assert together[0].diversity == pytest.approx((4 / 6 + 5 / 6) / 2)
    mean = over_runs([together[0], replace(together[0], pass_at_k=1.0)])
    assert (mean.pass_at_k, mean.texts) == (0.75, [])


def test_lead_is_the_interval_of_the_mean_difference():
    generator = torch.Generator().manual_seed(0)
    ours = (torch.rand(400, generator=generator) < 0.5).float()
    theirs = torch.where(torch.rand(400, generator=generator) < 0.2, 1 - ours, ours)  # paired: they mostly agree
    difference = ours - theirs
    low, high = lead(replace(RESULT, scores=ours.tolist()), replace(RESULT, scores=theirs.tolist()))
    error = difference.std().item() / 20
    assert low == pytest.approx(difference.mean().item() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(difference.mean().item() + 1.96 * error, abs=0.2 * error)


@pytest.mark.parametrize("scores", [[], [1.0, 0.0]])
def test_lead_needs_the_same_sequences(scores):
    with pytest.raises(ValueError, match=r"both results must have scores of the same sequences, got [01] and"):
        lead(replace(RESULT, scores=[1.0] if scores else []), replace(RESULT, scores=scores))


# ---- results -----------------------------------------------------------------------------------------------------


def test_results_round_trip(tmp_path):
    results = [RESULT, replace(RESULT, sampler="learned_order", setting="bias=0.5", spread=0.01, bound=None, runs=3)]
    save_results(results, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert load_results(folder / "results.json") == results
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["sampler"] for row in rows] == ["entropy", "learned_order"]
    assert rows[0].keys() == vars(RESULT).keys() - {"scores", "calls", "texts"}
    assert (rows[0]["accuracy"], rows[0]["bound"], rows[1]["bound"]) == ("0.25", "-9.5", "")


@pytest.mark.parametrize("text", ["{", "3", '[{"sampler": "iid"}]', '[{"speed": 1}]', json.dumps(["iid"])])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: must be a results\.json or results\.csv that evaluate wrote"):
        load_results(path)


def test_table():
    results = [
        RESULT,
        replace(RESULT, sampler="iid", accuracy=0.125, spread=0.02, runs=3, bound=None),
        replace(RESULT, sampler="threshold", setting="threshold=0.75", target=8.0, nfe=8.125, nfe_max=11),
        replace(RESULT, sampler="learned_order", accuracy=0.5),
    ]
    file = io.StringIO()
    Console(file=file, width=120, force_terminal=True, color_system="standard").print(table(results))
    lines = [line for line in file.getvalue().splitlines() if any(r.sampler in line for r in results)]
    order = [next(r.sampler for r in results if r.sampler in line) for line in lines]
    assert order == ["learned_order", "entropy", "iid", "threshold"]  # by target, then by accuracy
    assert ["\x1b[1m" in line for line in lines] == [True, False, False, True]
    for text in ("T=4", "3.90", "2-4", "12.5", "2.0 (3)"):
        assert text in lines[2]
    for text in ("threshold=0.75", "8.12", "2-11", "25.0", "-9.50"):
        assert text in lines[3]
    assert "-9.50" not in lines[2]


def test_table_says_how_far_the_learned_order_is_ahead():
    ours, theirs = [1.0, 1.0, 1.0, 0.0] * 100, [1.0, 0.0, 1.0, 0.0] * 100
    results = [
        replace(RESULT, scores=theirs, accuracy=0.5),
        replace(RESULT, sampler="learned_order", scores=ours, accuracy=0.75),
    ]
    file = io.StringIO()
    Console(file=file, width=120).print(table(results))
    low, high = lead(results[1], results[0])
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in file.getvalue()
    assert file.getvalue().count(" to ") == 1


def test_csv_holds_all_but_the_scores(tmp_path):
    results = [
        replace(RESULT, scores=[1.0, 0.0], task="words", tokens_per_forward=1 / 3, kendall_tau=-0.1),
        replace(RESULT, setting="threshold=0.5", bound=None),
    ]
    save_results(results, tmp_path)
    assert load_results(tmp_path / "results.csv") == [replace(result, scores=[]) for result in results]


def test_results_of_earlier_versions(tmp_path):
    row = {name: value for name, value in vars(RESULT).items() if name not in ("task", "tokens_per_forward")}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    assert load_results(tmp_path / "results.json") == [RESULT]


@pytest.mark.parametrize("text", ["sampler\niid\n", "speed\n3\n", "sampler,budget\niid,few\n"])
def test_other_csv_files_are_refused(text, tmp_path):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=r"results\.csv: must be a results\.json or results\.csv that evaluate wrote"):
        load_results(tmp_path / "results.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": 3}, "row 2: sampler must be of type str, got 3"),
        ({"nfe_min": 1.5}, "row 2: nfe_min must be of type int, got 1.5"),
        ({"count": True}, "row 2: count must be of type int, got True"),
        ({"bound": "-9"}, r"row 2: bound must be of type int \| float \| None, got '-9'"),
        ({"nfe": math.nan}, "row 2: nfe must be finite, got nan"),
        ({"scores": [1.0, math.inf]}, r"row 2: scores must be finite, got \[1.0, inf\]"),
        ({"scores": 3}, "row 2: scores must be of type list, got 3"),
        ({"accuracy": 74.2}, r"row 2: accuracy must be in \[0, 1\], got 74.2"),
    ],
)
def test_numbers_without_sense_are_refused(tmp_path, change, message):
    (tmp_path / "results.json").write_text(json.dumps([asdict(RESULT), {**asdict(RESULT), **change}]))
    with pytest.raises(ValueError, match=message):
        load_results(tmp_path / "results.json")


def test_interrupted_save_leaves_the_old_results(tmp_path):
    save_results([RESULT], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("results.*")}
    with pytest.raises(TypeError):
        save_results([RESULT, replace(RESULT, setting=object())], tmp_path)  # no JSON
    assert {path.name: path.read_bytes() for path in tmp_path.glob("results.*")} == before


@pytest.fixture
def full_disk():
    """Room for 3,000 bytes a file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_full_disk(tmp_path, full_disk):
    sweep = Sweep(tmp_path, {})
    sweep.add(RESULT)
    with pytest.raises(OSError, match="File too large"):
        sweep.add(replace(RESULT, sampler="iid", scores=[1.0] * 1000))
    assert sweep.results == load_results(tmp_path / "results.json") == [RESULT]
    assert not list(tmp_path.glob(".saving-*"))


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (lambda folder: Sweep(folder, {}), lambda folder: save_results([RESULT], folder)):
        with pytest.raises(OSError, match="file"):
            use(tmp_path / "file")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "mine").mkdir(mode=0o555)
        with pytest.raises(PermissionError, match="mine"):
            Sweep(tmp_path / "mine", {})


# ---- a sweep -----------------------------------------------------------------------------------------------------


def test_sweep_goes_on(tmp_path):
    settings = {"seeds": 3, "nfe": (2.0, 4.0)}
    sweep = Sweep(tmp_path / "new", settings)
    assert sweep.results == []
    sweep.add(RESULT)
    sweep.add(RESULT)
    other = replace(RESULT, sampler="iid", accuracy=1 / 3, scores=[1 / 3, 0.1])
    sweep.add(other)
    assert Sweep(tmp_path / "new", settings).results == load_results(tmp_path / "new" / "results.json")
    assert Sweep(tmp_path / "new", settings).results == [RESULT, other]


def test_sweep_of_other_settings_is_refused(tmp_path):
    Sweep(tmp_path, {"seeds": 3, "limit": 1}).add(RESULT)
    with pytest.raises(ValueError, match=r"measured with other settings \(cap was None, is 2; limit was 1, is None\)"):
        Sweep(tmp_path, {"seeds": 3, "limit": None, "cap": 2})
    with pytest.raises(ValueError, match=r"other settings \(limit was 1, is None; seeds was 3, is None\)"):
        Sweep(tmp_path, {})
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings\.json: must hold a dict, got list"):
        Sweep(tmp_path, {})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has a results\.json, but no settings\.json that says how it was measured"):
        Sweep(tmp_path, {})


def test_settings_without_rows_bind_nobody(tmp_path):
    sweep = Sweep(tmp_path, {"seeds": 3})  # as of a command that failed before its first row
    (tmp_path / "settings.json").write_text('{"seeds": 5}')
    sweep.add(RESULT)
    assert Sweep(tmp_path, {"seeds": 3}).results == [RESULT]


def test_two_sweeps_in_one_folder(tmp_path):
    one, two = Sweep(tmp_path, {"seeds": 3}), Sweep(tmp_path, {"seeds": 3, "command": ["another", "name"]})
    other = Sweep(tmp_path, {"seeds": 5})  # nothing is there yet that says otherwise
    iid, margin = replace(RESULT, sampler="iid"), replace(RESULT, sampler="margin")
    one.add(RESULT)
    two.add(iid)
    with pytest.raises(ValueError, match=r"measured with other settings \(seeds was 3, is 5\); give another folder"):
        other.add(replace(RESULT, accuracy=1.0))
    one.add(replace(iid, accuracy=1.0))  # measured by the other one first
    one.add(margin)
    assert load_results(tmp_path / "results.json") == one.results == [RESULT, iid, margin]
    (tmp_path / "results.json").unlink()
    one.add(replace(RESULT, target=8.0))
    assert load_results(tmp_path / "results.json") == [RESULT, iid, margin, replace(RESULT, target=8.0)]


def test_a_sweep_waits_while_another_adds(tmp_path):
    sweep = Sweep(tmp_path, {})
    with WeakFileLock(tmp_path / ".sweep.lock"):
        adding = Thread(target=sweep.add, args=(RESULT,))
        adding.start()
        adding.join(0.3)
        assert adding.is_alive()
        assert not (tmp_path / "results.json").exists()
    adding.join(60)
    assert load_results(tmp_path / "results.json") == [RESULT]


PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
SWEEP = """
import sys
from dataclasses import replace
from hf_learned_order.evaluation.results import Result, Sweep
seeds, folder, tag = int(sys.argv[1]), sys.argv[2], sys.argv[3]
shape = {"budget": 4, "accuracy": seeds / 10, "nfe": 3.9, "nfe_min": 2, "nfe_max": 4, "bound": None, "count": 8}
sweep = Sweep(folder, {"seeds": seeds})
print("started", flush=True)
sys.stdin.readline()
for number in range(25):
    sweep.add(Result(sampler=f"{tag}{number}", scores=[0.5] * 2000, **shape))
"""


@pytest.mark.slow  # the two before it, with real processes
def test_sweeps_of_several_processes(tmp_path):
    """Two with the same settings leave the rows of both; one with others is refused, or refuses them."""
    runs = [("3", "a"), ("3", "b"), ("5", "c")]
    processes = [
        subprocess.Popen([sys.executable, "-c", SWEEP, seeds, tmp_path, tag], text=True, **PIPES) for seeds, tag in runs
    ]
    together(processes)
    errors = [process.communicate()[1] for process in processes]
    rows = load_results(tmp_path / "results.json")
    (seeds,) = {round(10 * row.accuracy) for row in rows}
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seeds": seeds}
    winners = {tag for run, tag in runs if int(run) == seeds}
    assert sorted(row.sampler for row in rows) == sorted(f"{tag}{n}" for tag in winners for n in range(25))
    for (_, tag), process, error in zip(runs, processes, errors, strict=True):
        assert (process.returncode == 0) == (tag in winners), error
        assert tag in winners or "measured with other settings" in error


def test_tables_of_orders_and_aup():
    results = [
        replace(
            RESULT,
            accuracy=0.8,
            tokens_per_forward=1.0,
            finalization_parallelism=1.5,
            kendall_tau=0.25,
            local_ar_ness=0.5,
            global_ar_ness=0.75,
        ),
        replace(RESULT, accuracy=0.8, tokens_per_forward=4.0, target=2.0, setting="gamma=1"),
        replace(RESULT, sampler="iid", accuracy=0.76, tokens_per_forward=1.0),
        RESULT,  # of an earlier version, without tokens a call
    ]
    file = io.StringIO()
    Console(file=file, width=120).print(order_table(results), aup_table(results), sep="\n")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in file.getvalue().splitlines() if "│" in line]
    assert cells == [
        ["2", "entropy", "gamma=1", "4.00", "", "", "", ""],
        ["4", "entropy", "T=4", "1.00", "1.50", "0.25", "0.50", "0.75"],
        ["4", "iid", "T=4", "1.00", "", "", "", ""],
        ["4", "entropy", "T=4", "", "", "", "", ""],
        ["entropy", "320.0", "2"],
        ["iid", "76.0", "1"],
    ]
    assert "final together: tokens of the response that one step unmasked" in " ".join(file.getvalue().split())


def test_table_of_samples():
    assert sample_table([RESULT]) is None
    file, row = io.StringIO(), replace(RESULT, samples=8, pass_at_k=0.5, diversity=0.875)
    Console(file=file, width=120).print(sample_table([row, RESULT]))
    lines = [line for line in file.getvalue().splitlines() if "│" in line]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines] == [
        ["4", "entropy", "T=4", "3.90", "25.0", "8", "50.0", "0.88"]
    ]
    assert "pass@k: share of prompts" in file.getvalue()
