"""The scripts in `examples/` that no other test runs, at tiny settings."""

import json
import math
import random
import sys
from itertools import product
from pathlib import Path

import bench
import bench_ablation
import bench_curves
import bench_gpu
import bench_long
import bench_training
import demo
import pytest
import seen_prompts
import torch
import train
from files import save_all, write_rows
from test_trainer import brief  # noqa: F401 (a fixture)

from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.evaluation.results import load_results
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.data import equation_tokenizer, resampled_equations
from hf_learned_order.tasks.gsm8k import chains_of, parse_chain, read_rows
from hf_learned_order.tasks.resampler import Resampler
from hf_learned_order.training.objectives.table import OBJECTIVES

EXAMPLES = Path(demo.__file__).parent


def test_demo_without_gsm8k(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SAMPLERS", ["top_prob", "learned_order"])
    files = ["--train_file", str(tmp_path / "no.jsonl"), "--test_file", str(tmp_path / "none.jsonl")]
    small = ["--limit", "2", "--tuning_limit", "2", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["demo.py", *files, *small])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"No GSM8K at {tmp_path / 'none.jsonl'}: ")
    assert "At about 4 calls the learned order gets " in printed
    results = load_results(tmp_path / "results.json")
    assert [result.sampler for result in results] == ["top_prob"] * 3 + ["learned_order"] * 3
    assert [result.runs for result in results] == [1, 1, 1, 3, 3, 3]
    assert {result.count for result in results} == {2}


def test_bench_long(monkeypatch, capsys):
    monkeypatch.setattr(bench_long, "MODELS", {"tiny": (bench.TINY, 1000)})
    monkeypatch.setattr(bench_long, "VOCABULARIES", [(16, 1000)])
    bench_long.main(["--model", "tiny", "--canvas", "2x16"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("16 x 1,000", "calls of", "2 x 16"))


@pytest.mark.slow  # the profiler alone takes ten seconds
def test_bench(monkeypatch, capsys):
    small = {"STEPS": 2, "CANVAS": 8, "BATCHES": [1, 2], "ROUNDS": {1: 1, 2: 1}, "TRAINING": 2, "TEXT": (4, 16)}
    small |= {"MODELS": {"tiny": (bench.TINY, 1000)}}
    small |= {"CACHED": {"max_new_tokens": 8, "block_length": 4, "max_denoising_steps": 4}}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)
    bench.main([])
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in [*SAMPLERS, *bench.LAWS, "none", "exact", "prefix", "dual"])
    with pytest.raises(SystemExit):
        bench.main(["speed"])
    assert "tables must be among memory, caches, time, got speed" in capsys.readouterr().err


def test_bench_of_training(monkeypatch, capsys):
    monkeypatch.setattr(bench_training, "SIZES", {"tiny": bench_training.SIZES["tiny"]})
    monkeypatch.setattr(bench_training, "UPDATES", 2)
    bench_training.main()
    printed = capsys.readouterr().out
    assert all(name.split(",")[0] in printed for name in bench_training.CASES)
    assert printed.count("%") >= len(bench_training.CASES) + 1


def measured(output, *more: str) -> dict:
    bench_gpu.main(["--size", "tiny", "--device", "cpu", "--batches", "2", "--output", str(output), *more])
    return json.loads(output.read_text())


def test_bench_of_a_gpu(tmp_path, capsys):
    found = measured(tmp_path / "gpu.json", "--backend", "none")
    same = found["equality with the CPU in float32"]
    assert {row["rule"] for row in same} >= {"top_prob", "threshold", "learned_order"}
    assert {(row["same_tokens"], row["same_order"], row["largest_difference"]) for row in same} == {(1.0, 1.0, 0.0)}
    rows = found["decoding"]
    assert {(row["rule"], row["cache"]) for row in rows} == set(product(bench_gpu.RULES, bench_gpu.CACHES))
    assert all(row["call_ms"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert [row["calls"] for row in rows if row["rule"] == "top_prob"] == [4] * 3
    assert [row["objective"] for row in found["training"]] == list(OBJECTIVES)
    assert all(0 < row["denoiser"] < 1 for row in found["training"])
    assert found["left_out"] == []
    printed = capsys.readouterr().out
    assert "| rule | batch | cache | compiled | seconds |" in printed
    assert "| elbo | " in printed


def test_bench_of_a_gpu_ends_in_time_and_names_what_fails():
    def failing():
        raise torch.OutOfMemoryError("no memory is left on this card")

    bench = bench_gpu.Bench(minutes=1)
    bench.case("training", failing, objective="elbo")
    bench.case("training", lambda: {"seconds": 1.0}, objective="regret")
    assert bench.results["training"] == [
        {"objective": "elbo", "error": "OutOfMemoryError: no memory is left on this card"},
        {"objective": "regret", "seconds": 1.0},
    ]
    late = bench_gpu.Bench(minutes=-1)
    late.case("training", failing, objective="elbo", batch=2)
    assert late.results == {}
    assert late.left_out == ["training objective=elbo batch=2"]


def test_bench_of_a_gpu_without_one(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "device must be one that is here, got cuda: PyTorch sees no GPU" in capsys.readouterr().err


@pytest.mark.slow  # the compiler alone takes seconds
def test_bench_of_a_gpu_compiles(tmp_path):
    rows = measured(tmp_path / "gpu.json", "--backend", "aot_eager")["decoding"]
    assert [row["rule"] for row in rows if row["compiled"]] == list(bench_gpu.RULES)
    assert not any("error" in row for row in rows)


def test_bench_of_choices(monkeypatch, capsys):
    choices = ["default", "posterior clean, law count", "K 2"]
    small = ["--seeds", "2", "--updates", "2", "--rows", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_ablation.py", "--choices", *choices, *small])
    bench_ablation.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in choices]


@pytest.mark.parametrize(
    ("seen", "options", "logged"),
    [
        (("--hidden_layers", "1", "-1"), (), "observed"),
        (("--predictions_only",), ("--objective", "reward", "--reward", "task"), "right"),
    ],
)
def test_train(seen, options, logged, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_learned_order.training.weighing.FEWEST", 2)
    save_all(tmp_path)
    write_rows(tmp_path / "train.jsonl", 404, 0)
    command = [
        *("train.py", "--model_name_or_path", tmp_path / "denoiser", "--dataloader_pin_memory", "false"),
        *("--train_file", tmp_path / "train.jsonl", "--output_dir", tmp_path / "out", "--law", "regret", *options),
        *("--num_problems", "8", "--scorer_size", "16", "--scorer_layers", "1", "--max_steps", "1"),
        *("--per_device_train_batch_size", "2", "--logging_steps", "1", *seen),
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    train.main()
    printed = capsys.readouterr().out
    assert f"'{logged}': " in printed
    assert ("'right_by_weights_1_1': " in printed) == (logged == "observed")
    scorer = OrderScorer.from_pretrained(tmp_path / "out")
    assert (scorer.config.law, scorer.config.hidden_size) == ("regret", 16)
    assert scorer.config.layers_seen == (() if "--predictions_only" in seen else (1, -1))


def test_train_judges_with_some_objectives_only(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    # puzzles fill their canvas: it is the task's own where none is given
    options = ["--model_name_or_path", str(EXAMPLES / "sudoku-denoiser"), "--task", "sudoku", "--num_problems", "20"]
    options += ["--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", "--objective", "elbo", "--reward", "task", "--use_cpu", *options])
    with pytest.raises(ValueError, match="is_right must be None with objective 'elbo': only regret and reward judge"):
        train.main()


def test_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    models = ["--model", str(EXAMPLES / "sudoku-denoiser"), "--scorer", str(EXAMPLES / "sudoku-scorer")]
    small = ["--limit", "6", "--samplers", "top_prob", "learned_order", "--nfe", "3", "--bound", "--bounds", "0.2"]
    small += ["--budgets", "2", "4"]
    monkeypatch.setattr(sys, "argv", ["bench_curves.py", *models, *small, "--output", str(tmp_path / "curves.jsonl")])
    bench_curves.main()
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [row["sampler"] for row in rows] == ["top_prob", "top_prob", "learned_order"]
    assert [row["nfe"] for row in rows[:2]] == [2, 4]
    assert 3 < rows[2]["nfe"] < 8
    assert rows[2]["right"] >= 0.5  # about 80 % of 400 test puzzles
    assert "bound, nats" in capsys.readouterr().out
    more = ["--figure", str(tmp_path / "curves.png"), "--max_denoising_steps", "3"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
    bench_curves.main()  # what is there is not measured again
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [row["sampler"] for row in rows[3:]] == ["learned_order"]
    assert rows[3]["nfe"] == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_prompts_never_seen(tmp_path, monkeypatch):
    save_all(tmp_path)
    rows = read_rows(tmp_path / "test.jsonl")
    (tmp_path / "seen.txt").write_text(f"{chains_of(rows)[0][0].texts()[0]}\n")
    files = {"model": "denoiser", "test_file": "test.jsonl", "without_prompts": "seen.txt", "output": "curves.jsonl"}
    given = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    small = ["--task", "equations", "--samplers", "top_prob", "--budgets", "2", "--nfe", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_curves.py", *given, *small])
    bench_curves.main()
    (row,) = map(json.loads, (tmp_path / "curves.jsonl").read_text().splitlines())
    assert row["split"] == f"test without {tmp_path / 'seen.txt'}"
    assert row["nfe"] == 2


def test_seen_prompts_are_those_of_the_draws(tmp_path, monkeypatch, capsys):
    """The script draws what `train_denoiser.py` drew with that seed and these options."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    options = {"keep": 0.4, "growth": 1, "pieces": 0.3, "drills": 0.3}
    write_rows(tmp_path / "train.jsonl", 420, 0)
    chains = chains_of(read_rows(tmp_path / "train.jsonl")[:20])[0]
    tokenizer = equation_tokenizer()
    rows = resampled_equations(chains, tokenizer, canvas_length=64, count=30, seed=3, **options)
    drawn = tokenizer.batch_decode(rows["prompt_ids"][:], skip_special_tokens=True)
    assert list(seen_prompts.drawn(chains, seed=3, count=30, **options)) == drawn

    # of the test prompts, one that was drawn, one that is published and one that is neither
    new = Resampler(chains, **options).draw(random.Random(3))
    other = parse_chain("<<1+2*3=7>> #### 7")
    monkeypatch.setattr(seen_prompts, "PARTS", [(3, 30, options)])
    assert seen_prompts.seen(chains, [new, other, chains[0]]) == sorted([new.texts()[0], chains[0].texts()[0]])
    monkeypatch.setattr(seen_prompts, "PARTS", [])
    assert seen_prompts.seen(chains, [new, other, chains[0]]) == [chains[0].texts()[0]]


def test_curves_have_a_setting_for_every_law(tmp_path):
    """A law that draws has budgets up to its own, the regret law bounds."""
    shape = {"vocab_size": 9, "denoiser_hidden_size": 8, "hidden_size": 8, "num_attention_heads": 2}
    for law, budget in (("count", 6), ("regret", None)):
        OrderScorer(OrderScorerConfig(law=law, max_denoising_steps=budget, **shape)).save_pretrained(tmp_path / law)
    drawn = list(bench_curves.points("learned_order", [str(tmp_path / "count")], [], [2, 6, 7]))
    assert [budget for _, _, budget in drawn] == [2, 6]
    drawn = list(bench_curves.points("learned_order", [str(tmp_path / "count")], []))
    assert [budget for _, _, budget in drawn] == [1, 2, 3, 4, 5, 6]
    greedy = list(bench_curves.points("learned_order", [str(tmp_path / "count")], [], greedy=True))
    assert [(label.endswith(f",greedy T={budget}"), sampler.greedy) for label, sampler, budget in greedy] == [
        (True, True)
    ] * 6
    bounded = list(bench_curves.points("learned_order", [str(tmp_path / "regret")], [2, 0.5]))
    assert {budget for *_, budget in bounded} == {None}
    bounds = [sampler.scorer.config.bound * math.exp(sampler.bias) for _, sampler, _ in bounded]
    assert bounds == pytest.approx([2, 0.5])
