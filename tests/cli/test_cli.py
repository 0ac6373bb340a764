"""`hf-learned-order` from its arguments to what it prints and writes."""

import json
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from files import equation_model, save_all, scorer_of
from models import tiny_model
from PIL import Image
from transformers.utils import logging

from hf_learned_order.cli.main import main
from hf_learned_order.cli.options import words
from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.denoisers.caches import CACHES
from hf_learned_order.evaluation.comparison import knob
from hf_learned_order.evaluation.results import load_results
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.tasks.table import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A denoiser, two scorers, train.jsonl and test.jsonl."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("files")
    save_all(folder)
    yield folder
    logging.enable_progress_bar()


def generate(folder, *more: str) -> int:
    return main(
        ["generate", "--model", str(folder / "denoiser"), "--prompt", "16-3;a*2", "--max_new_tokens", "16", *more]
    )


def evaluation(folder, *more: str, test_file: str = "test.jsonl", output: str = "out") -> list[str]:
    files = ["--train_file", str(folder / "train.jsonl"), "--test_file", str(folder / test_file)]
    small = ["--canvas_length", "32", "--limit", "4", "--tuning_limit", "4", "--nfe", "4", "--seeds", "2"]
    outputs = ["--output_dir", str(folder / output)]
    return ["evaluate", "--model", str(folder / "denoiser"), *files, *small, *outputs, *more]


def evaluate(folder, *more: str, **options: str) -> int:
    return main(evaluation(folder, *more, **options))


def error_of(status: int, capsys) -> str:
    """The one line that was printed; the status says that it is an error."""
    assert status == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-learned-order: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("hf-learned-order: ")


# ---- what works --------------------------------------------------------------------------------------------------


def test_generate(folder, capsys):
    runs = []
    for _ in range(2):
        assert generate(folder, "--scorer", str(folder / "scorer-0"), "--max_denoising_steps", "5", "--seed", "3") == 0
        runs.append(capsys.readouterr())
    assert runs[0].out == runs[1].out
    assert "[" not in runs[0].out  # no special tokens
    calls, _, rest = runs[0].err.partition(" denoiser calls, ")
    assert 1 <= int(calls) <= 5
    assert rest.endswith(" tokens a call\n")


def test_generate_in_blocks(folder, capsys):
    assert generate(folder, "--sampler", "top_prob", "--block_length", "4", "--max_denoising_steps", "4") == 0
    assert 1 <= int(capsys.readouterr().err.partition(" denoiser calls, ")[0]) <= 4  # EOS may come early
    message = error_of(generate(folder, "--sampler", "top_prob", "--block_length", "4", "--kv_cache", "dual"), capsys)
    assert message.startswith("kv_cache must be None with ModernBertForMaskedLM, got 'dual'")


def test_generate_without_a_scorer(folder, capsys):
    assert generate(folder, "--sampler", "top_prob", "--max_denoising_steps", "4") == 0
    assert capsys.readouterr().out.strip()


def test_generate_with_several_samplers(folder, capsys):
    runs = {}
    for names in (["left_to_right"], ["top_prob"], ["left_to_right", "top_prob"]):
        assert generate(folder, "--sampler", *names, "--max_denoising_steps", "4") == 0
        runs[len(names), names[0]] = capsys.readouterr()
    both = runs.pop((2, "left_to_right"))
    assert both.out == "".join(run.out for run in runs.values())
    assert both.err == "".join(f"{name}: {run.err}" for (_, name), run in runs.items())


def test_generate_with_options_of_samplers(folder, capsys):
    def calls(*more: str) -> list[int]:
        assert generate(folder, *more) == 0
        return [int(line.split()[-7]) for line in capsys.readouterr().err.splitlines()]

    learned = ["--sampler", "learned_order", "--scorer", str(folder / "scorer-0")]
    assert calls("--sampler", "threshold", "--sampler_config", '{"threshold": 0}') == [1]
    both = ["--sampler", "threshold", "left_to_right", "threshold", "--sampler_config", '{"threshold": 0}', "{}", "{}"]
    assert calls(*both)[0] == 1 < calls(*both)[2]
    printed = {}
    for seed in range(8):
        for config in ("{}", '{"greedy": true}'):
            assert generate(folder, *learned, "--seed", str(seed), "--sampler_config", config) == 0
            printed.setdefault(config, set()).add("".join(capsys.readouterr()))
    assert len(printed["{}"]) > 1 == len(printed['{"greedy": true}'])


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (["greedy=true"], "--sampler_config must be JSON like '{\"greedy\": true}', got greedy=true"),
        (["[1]"], "--sampler_config must be JSON like '{\"greedy\": true}', got [1]"),
        (["{}", "{}"], "--sampler_config must be given once for each --sampler, got 2 and 1"),
        (['{"greedy": true}'], "sampler_config of 'iid' must have keys among [], got ['greedy']"),
        (['{"sampler": "factor"}'], "sampler must be the one that sampler_config names, got 'iid' and 'factor'"),
    ],
)
def test_options_of_samplers_that_do_not_do(folder, capsys, configs, message):
    status = generate(folder, "--sampler", "iid", "--sampler_config", *configs)
    assert error_of(status, capsys) == message


def test_order_map(folder, capsys):
    two = ["--sampler", "left_to_right", "top_prob", "--max_denoising_steps", "4"]
    assert generate(folder, *two, "--order_map", "-") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "left_to_right, 4 denoiser calls"
    assert re.fullmatch("(1{4}2{4}3{4}4{4}|1+(2+(3+4*)?)?) *", lines[4])  # shorter where an EOS came early
    assert lines[5].startswith("top_prob, ")
    for kind, start in ((".html", b"<!doctype html>"), (".png", b"\x89PNG")):
        path = folder / f"map{kind}"
        assert generate(folder, *two, "--order_map", str(path)) == 0
        assert path.read_bytes().startswith(start)
        assert capsys.readouterr().err.endswith(f"Written to {path}\n")
    text = (folder / "map.html").read_text(encoding="utf-8")
    assert text.index('"label": "left_to_right"') < text.index('"label": "top_prob"')
    assert '"title": "Order map: 16-3;a*2"' in text
    assert '"wrong": null' in text
    assert generate(folder, *two, "--order_map", "-", "--expected", "16-3=13 13*2=26 #26") == 0
    assert re.search(
        r"; top_prob needs [1-4] denoiser calls and (is right|gets \d+ tokens? wrong)", capsys.readouterr().out
    )


def test_evaluate_and_plot(folder, capsys):
    scorers = [str(folder / f"scorer-{seed}") for seed in range(2)]
    samplers = ["iid", "top_prob", "entropy_bound", "learned_order"]
    command = ["--scorer", *scorers, "--samplers", *samplers, "--nfe", "6", "3", "--budget_shares", "1.5"]
    assert evaluate(folder, *command) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in samplers)
    assert "bound, nats" in printed
    out = folder / "out"
    results = load_results(out / "results.json")
    names = [[name] if knob(name) is None else [name, f"{name}, tuned"] for name in samplers[:-1]]
    names.append(["learned_order", "learned_order, tuned"])
    assert [(result.sampler, result.target) for result in results] == [
        (name, target) for both in names for target in (3.0, 6.0) for name in both
    ]
    assert [result.runs for result in results] == [2, 2, 1, 1, 1, 1, 1, 1, 4, 4, 4, 4]  # 2 seeds, 2 scorers
    assert all(result.bound < 0 and 0 < result.count <= 4 for result in results)
    assert len((out / "results.csv").read_text().splitlines()) == 13
    for name in ("trade_off.png", "order_map.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG"
            assert image.width > 300
    assert "AUP" in printed
    assert "local AR-ness" in printed
    for name in ("results.json", "results.csv"):
        assert main(["plot", str(out / name), "--output", str(folder / "again.png")]) == 0
        assert capsys.readouterr().out == f"Written to {folder / 'again.png'}\n"
        assert (folder / "again.png").read_bytes() != (out / "trade_off.png").read_bytes()  # it has a title
        assert (folder / "again.png").read_bytes()[:4] == b"\x89PNG"
    # the command that it states is the one that makes these rows
    stated = json.loads((out / "settings.json").read_text())["command"]
    assert stated[:2] == ["hf-learned-order", "evaluate"]
    # the same command, typed or stated, has nothing left to do; another one is refused
    assert main([*stated[1:], "--output_dir", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert evaluate(folder, *command) == 0
    again = capsys.readouterr()
    assert again.out == printed
    assert "out: going on behind the 12 rows that are there\n" in again.err
    message = error_of(evaluate(folder, *command, "--budget_shares", "2"), capsys)
    assert "other settings (budget_shares was [1.5], is [2.0]); give another folder, or delete" in message
    scorers.reverse()
    message = error_of(evaluate(folder, "--scorer", *scorers, *command[3:]), capsys)
    assert "scorer_fingerprints was" in message


def test_tasks(folder, capsys):
    options = ["--tasks", "equations", "words", "--samplers", "top_prob", "--no_bound"]
    assert evaluate(folder, *options, output="tasks") == 0
    assert capsys.readouterr().out.count(" test problems") == 2
    results = load_results(folder / "tasks" / "results.json")
    assert [(result.task, result.sampler) for result in results] == [("equations", "top_prob"), ("words", "top_prob")]
    assert results[0].local_ar_ness != results[1].local_ar_ness
    for name in ("trade_off", "order_map_equations", "order_map_words"):
        assert (folder / "tasks" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_task_that_is_drawn(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    tokenizer = TASKS["sudoku"].tokenizer()
    tokenizer.save_pretrained(tmp_path / "denoiser")
    tiny_model("bert", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "denoiser")
    command = ["evaluate", "--model", str(tmp_path / "denoiser"), "--tasks", "sudoku", "--limit", "3", "--nfe", "5"]
    more = ["--tuning_limit", "2", "--samplers", "top_prob", "--temperature", "1", "--seeds", "2"]
    assert main([*command, *more, "--output_dir", str(tmp_path / "out")]) == 0
    assert "sudoku, 3 test problems" in capsys.readouterr().out
    (result,) = load_results(tmp_path / "out" / "results.json")
    assert (result.nfe, result.count, result.runs) == (5, 3, 2)
    message = error_of(main([*command, "--tasks", "chess"]), capsys)
    assert message.startswith("task must be one of equations, words, sudoku, ")


def test_prompts_that_are_left_out(folder, capsys):
    rows = equations(chains_of(read_rows(folder / "test.jsonl")[:4])[0], equation_tokenizer(), canvas_length=32)
    prompts = equation_tokenizer().batch_decode(rows["prompt_ids"][:], skip_special_tokens=True)
    (folder / "seen.txt").write_text(f"{prompts[0]}\n")
    more = ["--samplers", "top_prob", "--without_prompts", str(folder / "seen.txt")]
    assert evaluate(folder, *more, output="unseen") == 0
    assert f"equations, {len(rows) - prompts.count(prompts[0])} test problems" in capsys.readouterr().out
    assert json.loads((folder / "unseen" / "settings.json").read_text())["without_prompts"] == str(folder / "seen.txt")


def test_a_killed_sweep_goes_on(folder, capsys):
    """Killed behind its second row, it measures the others only, and all are as if nothing had happened."""
    options = ["--samplers", "iid", "top_prob", "margin", "entropy", "--nfe", "3", "5"]
    results = folder / "killed" / "results.json"
    command = [sys.executable, "-m", "hf_learned_order.cli.main", *evaluation(folder, *options, output="killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (results.exists() and len(load_results(results)) >= 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = load_results(results)
    assert 2 <= len(there) < 8
    assert evaluate(folder, *options, output="killed") == 0
    assert f"going on behind the {len(there)} rows that are there" in capsys.readouterr().err
    assert evaluate(folder, *options, output="whole") == 0
    for name in ("results.json", "results.csv", "settings.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_evaluate_on_a_full_disk(folder, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        status = evaluate(folder, "--samplers", "top_prob", "--no_bound", output="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "File too large" in error_of(status, capsys)
    (folder / "file").write_text("")
    assert "file" in error_of(evaluate(folder, "--samplers", "top_prob", output="file"), capsys)


def test_evaluate_takes_every_sampler_by_default(folder, capsys):
    small = ["--limit", "2", "--tuning_limit", "2", "--seeds", "1", "--budget_shares", "1.5"]
    assert evaluate(folder, *small, output="all") == 0
    names = [result.sampler for result in load_results(folder / "all" / "results.json")]
    assert [name for name in names if "tuned" not in name] == [name for name in SAMPLERS if name != "learned_order"]
    assert [name for name in names if "tuned" in name] == [f"{name}, tuned" for name in SAMPLERS if knob(name)]


# ---- what is refused, in one line --------------------------------------------------------------------------------


def test_unknown_sampler(folder, capsys):
    message = error_of(generate(folder, "--sampler", "fast"), capsys)
    assert message.startswith("sampler must be one of iid, random, ")
    assert message.endswith("got 'fast'")
    message = error_of(evaluate(folder, "--samplers", "iid", "fast"), capsys)
    assert message.startswith("--samplers must be among iid, random, ")
    assert message.endswith("got fast")


def test_learned_order_without_a_scorer(folder, capsys):
    message = error_of(generate(folder, "--sampler", "learned_order"), capsys)
    assert message == 'sampler "learned_order" needs --scorer'
    message = error_of(evaluate(folder, "--samplers", "learned_order"), capsys)
    assert message == 'sampler "learned_order" needs --scorer'


def test_scorer_for_another_denoiser(folder, capsys):
    scorer = scorer_of(equation_model())
    scorer.config.vocab_size += 1
    scorer.save_pretrained(folder / "other")
    expected = "its vocabulary size must be 39, but this model's is 38"
    assert expected in error_of(generate(folder, "--scorer", str(folder / "other")), capsys)
    assert expected in error_of(evaluate(folder, "--scorer", str(folder / "other")), capsys)


def test_missing_files(folder, capsys):
    assert "nowhere.jsonl" in error_of(evaluate(folder, test_file="nowhere.jsonl"), capsys)
    assert "nowhere.json" in error_of(main(["plot", str(folder / "nowhere.json")]), capsys)
    (folder / "empty").mkdir()
    assert error_of(main(["generate", "--model", str(folder / "empty"), "--prompt", "1+1"]), capsys)


def test_broken_line(folder, capsys):
    lines = (folder / "test.jsonl").read_text().splitlines()
    (folder / "broken.jsonl").write_text("\n".join([*lines[:2], lines[2][:-5], *lines[3:]]))
    message = error_of(evaluate(folder, test_file="broken.jsonl"), capsys)
    assert "broken.jsonl, line 3: not a JSON object" in message


@pytest.mark.parametrize("missing", ["matplotlib", pytest.param("datasets", marks=pytest.mark.slow)])
def test_an_extra_that_is_not_installed(folder, missing):
    """In a process of its own, where nothing has imported it before."""
    arguments = ["evaluate", "--model", str(folder / "denoiser"), "--train_file", str(folder / "train.jsonl")]
    program = f"import sys; sys.modules[{missing!r}] = None; from hf_learned_order.cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", program + f"sys.exit(main({[*arguments, '--samplers', 'iid']!r}))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    message = f"evaluate needs {missing}: pip install 'hf_learned_order[plot,eval]'"
    assert done.stderr.strip().splitlines()[-1] == f"hf-learned-order: {message}"


def test_words_of_a_command():
    given = {"model": "a b", "scorer": [], "limit": 0, "no_bound": True, "dtype": None, "budget_shares": []}
    assert words(given) == ["--model", "a b", "--limit", "0", "--no_bound", "--budget_shares"]


def test_files_that_do_not_do(folder, capsys):
    model = ["evaluate", "--model", str(folder / "denoiser")]
    assert "dataset_name or train_file/test_file must be given" in error_of(main(model), capsys)
    status = main([*model, "--train_file", str(folder / "train.jsonl")])
    assert error_of(status, capsys) == "dataset_name or the file of the test split must be given"
    assert "at least one row that fits the canvas" in error_of(evaluate(folder, "--canvas_length", "2"), capsys)


def test_numbers_out_of_range(folder, capsys):
    message = error_of(generate(folder, "--sampler", "iid", "--max_denoising_steps", "0"), capsys)
    assert message == "max_denoising_steps must be a positive integer, got 0"
    message = error_of(generate(folder, "--sampler", "iid", "--max_new_tokens", "-1"), capsys)
    assert message == "max_new_tokens must be a positive integer, got -1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be a positive integer, got 0"),
        (["--batch_size", "0"], "--batch_size must be a positive integer, got 0"),
        (["--limit", "0"], "--limit must be a positive integer, got 0"),
        (["--limit", "-1"], "--limit must be a positive integer, got -1"),
        (["--tuning_limit", "0"], "--tuning_limit must be a positive integer, got 0"),
        (["--canvas_length", "-2"], "--canvas_length must be a positive integer, got -2"),
        (["--nfe", "4", "-3"], "--nfe must be a number in [1.0, 1000000.0], got -3.0"),
        (["--nfe", "nan"], "--nfe must be a number in [1.0, 1000000.0], got nan"),
        (["--nfe", "inf"], "--nfe must be a number in [1.0, 1000000.0], got inf"),
        (["--temperature", "nan"], "--temperature must be a number in [0.0, inf], got nan"),
        (["--budget_shares", "1", "0.5"], "--budget_shares must be a number in [1.0, 1000000.0], got 0.5"),
        (["--dtype", "foo"], "--dtype must be auto or a floating-point type of torch, e.g. bfloat16, got foo"),
        (["--dtype", "int8"], "--dtype must be auto or a floating-point type of torch, e.g. bfloat16, got int8"),
    ],
)
def test_numbers_of_an_evaluation(capsys, arguments, message):
    """Before anything is loaded."""
    status = main(["evaluate", "--model", "nowhere/at_all", "--train_file", "x", "--test_file", "y", *arguments])
    assert error_of(status, capsys) == message


def test_a_model_or_a_scorer_that_is_not_there(folder, capsys, monkeypatch):
    """The Hub's own errors do not always name it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    missing = str(folder / "nope")
    for command in (generate, evaluate):
        message = error_of(command(folder, "--model", "examples/nope", "--scorer", "x"), capsys)
        assert message.startswith("--model examples/nope (no folder here): ")
        message = error_of(command(folder, "--scorer", missing), capsys)
        assert message.startswith(f"--scorer {missing} (no folder here): ")
        message = error_of(command(folder, "--scorer", str(folder)), capsys)
        assert message.startswith(f"--scorer {folder}: ")


@pytest.mark.parametrize("name", ["map.gif", "map", ""])
def test_order_map_of_another_kind(folder, capsys, name):
    message = error_of(generate(folder, "--sampler", "iid", "--order_map", name), capsys)
    assert message == f"--order_map must be - or end in .html or .png, got {name}".rstrip()


def test_order_map_that_cannot_be_written(folder, capsys):
    """Before anything is decoded."""
    path = folder / "nowhere" / "map.html"
    message = error_of(generate(folder, "--model", "nowhere", "--order_map", str(path)), capsys)
    assert message == f"--order_map must be in a folder that there is, got {path}"


def test_plot_of_another_file(folder, capsys):
    (folder / "other.json").write_text('{"a": 1}')
    message = error_of(main(["plot", str(folder / "other.json")]), capsys)
    assert "must be a results.json or results.csv that evaluate wrote" in message


@pytest.mark.parametrize("arguments", [[], ["decode"], ["plot"], ["generate", "--model", "x"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: hf-learned-order" in capsys.readouterr().err


def test_caches(capsys):
    """The parser repeats them: to import them takes seconds."""
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert f"--kv_cache {{{','.join(CACHES)}}}" in capsys.readouterr().out


# ---- light -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["hf_learned_order", "hf_learned_order.cli.main"])
def test_import_is_light(module):
    heavy = ("torch", "transformers", "datasets", "peft", "matplotlib", "accelerate", "numpy")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names():
    import hf_learned_order

    for name in hf_learned_order.__all__:
        assert getattr(hf_learned_order, name) is not None
    assert dir(hf_learned_order) == sorted(hf_learned_order.__all__)
    with pytest.raises(AttributeError, match="module 'hf_learned_order' has no attribute 'nothing'"):
        hf_learned_order.nothing  # noqa: B018
