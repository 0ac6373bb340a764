"""lm-evaluation-harness with a tiny model: through `simple_evaluate`, by name, and request by request."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from files import equation_model, scorer_of
from models import MASK, WORDS, spelling_tokenizer, tiny_model

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from hf_learned_order.decoding.loop import decode  # noqa: E402
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler  # noqa: E402
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler  # noqa: E402
from hf_learned_order.denoisers.denoiser import Denoiser  # noqa: E402
from hf_learned_order.interface.harness import LearnedOrderLM  # noqa: E402
from hf_learned_order.tasks.data import equation_tokenizer  # noqa: E402

ROOT = Path(__file__).parents[2]
PAIRS = [("1+2", "=3 #3"), ("1+2;a*3", "=3"), ("7", "=3 #3"), ("", "4"), ("2*2 ", "=4 #4"), ("9-1", "=8 #8")]
TASKS = {
    "answers": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [" "], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["=3 #3", "=4 #4", "=10 #10"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def model():
    return equation_model()


@pytest.fixture(scope="module")
def lm(model):
    return LearnedOrderLM(model, tokenizer=equation_tokenizer(), batch_size=2, max_gen_toks=10)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of tasks that need no network."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i}+2;a*3", "answer": "x"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options in TASKS.items():
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "target_delimiter": "",
            "doc_to_text": "" if name == "texts" else "{{question}}",
            **options,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def simple_evaluate(model, tasks: Path, **options) -> dict:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **options
    )


# ---- through the harness -----------------------------------------------------------------------------------------


def test_simple_evaluate(lm, tasks, tmp_path):
    """An instance, and the class by name with arguments in one string, give the same."""
    results = simple_evaluate(lm, tasks)
    assert results["results"]["texts"]["byte_perplexity,none"] > 1
    assert 0 <= results["results"]["choices"]["acc,none"] <= 1
    samples = results["samples"]
    assert [len(samples[name]) for name in TASKS] == [4, 4, 4]
    expected = lm.loglikelihood(instances("loglikelihood", [("0+2;a*3", "=4 #4")]))
    assert samples["choices"][0]["filtered_resps"][1] == pytest.approx(expected[0])

    lm.denoiser.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    scorer_of(lm.denoiser.model).save_pretrained(tmp_path / "scorer")
    arguments = f"pretrained={tmp_path},sampler=top_prob,max_gen_toks=10"
    named = simple_evaluate("hf_learned_order", tasks, model_args=arguments, batch_size=2)
    assert named["results"] == results["results"]
    learned = LearnedOrderLM.create_from_arg_string(
        f"pretrained={tmp_path},scorer={tmp_path / 'scorer'},bias=1.5", {"batch_size": "3", "device": "cpu"}
    )
    assert (learned.rule.bias, learned.batch_size) == (1.5, 3)
    assert len(learned.generate_until(instances("generate_until", [("1+2", {"until": [], "max_gen_toks": 4})]))) == 1


@pytest.mark.slow  # processes that import everything
def test_a_yaml_of_ones_own_on_a_csv_in_two_processes(model, tmp_path, monkeypatch):
    """As `docs/evaluation.md` has it; the number of processes changes no response."""
    model.save_pretrained(tmp_path / "denoiser")
    equation_tokenizer().save_pretrained(tmp_path / "denoiser")
    rows = [f"{i}*2;a+{i},x" for i in range(5)]  # for two processes one is filled up
    (tmp_path / "problems.csv").write_text("\n".join(["question,answer", *rows]))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "run_harness.py" in code)
    exec(block, {})
    command = ["--model", "hf_learned_order", "--tasks", "my_task", "--include_path", "tasks"]
    command += ["--model_args", f"pretrained={tmp_path / 'denoiser'},sampler=random,max_gen_toks=8", "--log_samples"]
    launch = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    said = []
    for count in ("2", "1"):
        out = tmp_path / count
        where = ["--output_path", str(out)]
        each = ["--multi_gpu"] if count == "2" else ["--cpu"]  # with --cpu there would be one process
        done = subprocess.run(
            [sys.executable, *launch, *each, "--num_processes", count, "run_harness.py", *command, *where],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = out.rglob("samples_my_task_*.jsonl")
        # what is scored: the row that fills up a process is answered twice
        said.append({row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())})
    assert said[0] == said[1]
    assert sorted(said[0]) == list(range(5))


def test_where_the_model_goes(lm, tmp_path):
    lm.denoiser.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    mapped = LearnedOrderLM(str(tmp_path), device="cuda:0", device_map="cpu", dtype="float32", max_gen_toks=10)
    assert mapped.device == torch.device("cpu")
    assert mapped.denoiser.dtype == torch.float32
    asked = instances("generate_until", [("1+2", {"until": [], "max_gen_toks": 4})])
    assert mapped.generate_until(asked) == lm.generate_until(asked)
    for options in ({"device": "cpu"}, {"pretrained": lm.denoiser.model, "tokenizer": lm.tokenizer}):
        with pytest.raises(ValueError, match="device_map must be None with a device or a model that is loaded already"):
            LearnedOrderLM(**{"pretrained": str(tmp_path), "device_map": "auto", **options})


def test_entry_point():
    """What pyproject.toml says is the class; this is how later versions of the harness find it."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    name, _, value = text.partition('[project.entry-points."lm_eval.models"]\n')[2].partition("\n")[0].partition(" = ")
    assert EntryPoint(name=name, value=value.strip('"'), group="lm_eval.models").load() is LearnedOrderLM
    assert get_model(name) is LearnedOrderLM


# ---- request by request ------------------------------------------------------------------------------------------


def score(model, context: list[int], continuation: list[int], **options) -> tuple[float, bool]:
    """One row, without padding."""
    denoiser, ids, clean = Denoiser(model), torch.tensor([context]), torch.tensor([continuation])
    options = {"sampler": TopProbSampler(), **options, "max_new_tokens": len(continuation)}
    drawn = decode(denoiser, ids, **options).sequences[:, -len(continuation) :]
    return decode(denoiser, ids, **options, clean=clean).log_likelihood.item(), drawn.tolist() == clean.tolist()


def test_loglikelihood_is_the_bound_of_each_pair(lm, model):
    tokenizer = lm.tokenizer
    results = lm.loglikelihood(instances("loglikelihood", PAIRS))
    for (context, continuation), (bound, greedy) in zip(PAIRS, results, strict=True):
        stripped, spaces = context.rstrip(), context[len(context.rstrip()) :]
        prompt = tokenizer(stripped)["input_ids"] if stripped else [tokenizer.eos_token_id]
        ids = tokenizer(spaces + continuation, add_special_tokens=False)["input_ids"]
        expected = score(model, prompt, ids)
        assert (bound, greedy) == (pytest.approx(expected[0], rel=1e-5), expected[1])
        assert bound < 0


def test_loglikelihood_of_what_the_model_says_is_greedy(lm, model):
    prompt = torch.tensor([lm.tokenizer("1+2")["input_ids"]])
    said = decode(Denoiser(model), prompt, sampler=TopProbSampler(), max_new_tokens=6).sequences[0, -6:]
    text = lm.tokenizer.decode(said)
    assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == said.tolist()
    ((bound, greedy),) = lm.loglikelihood(instances("loglikelihood", [("1+2", text)]))
    assert greedy
    assert bound == pytest.approx(score(model, prompt[0].tolist(), said.tolist())[0], rel=1e-5)


def test_loglikelihood_rolling_scores_every_token_once(model):
    """In windows where the text is longer than the model."""
    lm = LearnedOrderLM(model, tokenizer=equation_tokenizer())
    eos, limit = lm.tokenizer.eos_token_id, lm.denoiser.max_length
    assert limit == 128
    texts = ["1+2=3", "12*3;" * 40]
    first, second = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]))
    short, long = (lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    assert first == pytest.approx(score(model, [eos], short)[0], rel=1e-5)
    windows = [([eos], long[:127]), (long[72:127], long[127:])]  # 55 + 73 = 128
    assert second == pytest.approx(sum(score(model, *window)[0] for window in windows), rel=1e-5)
    assert lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("",)])) == [0]


def test_generate_until(lm, model):
    """Each as alone, whatever else is asked; cut at the first stop string."""
    contexts = ["12/4;a+1;b*2", "1+2", "16-3-4;a*2", "7*7"]  # by length, the third comes before the first
    alone = []
    for context in contexts:
        prompt = torch.tensor([lm.tokenizer(context)["input_ids"]])
        eos, pad = lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id
        options = {"sampler": TopProbSampler(), "max_new_tokens": 10, "eos_token_id": eos, "pad_token_id": pad}
        output = decode(Denoiser(model), prompt, **options)
        alone.append(lm.tokenizer.decode(output.sequences[0, -10:], skip_special_tokens=True))
    asked = [(context, {"until": []}) for context in contexts]
    assert lm.generate_until(instances("generate_until", asked)) == alone
    stop = alone[2][4]
    mixed = [(contexts[0], {"until": alone[0][2:4]}), asked[1], (contexts[2], {"until": [stop, "?"]}), asked[3]]
    texts = lm.generate_until(instances("generate_until", mixed))
    assert texts == [alone[0].partition(alone[0][2:4])[0], alone[1], alone[2].partition(stop)[0], alone[3]]


def test_generate_until_takes_settings_of_generate(lm):
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0, "top_k": 20}
    requests = instances("generate_until", [("1+2", options)])
    again = LearnedOrderLM(lm.denoiser.model, tokenizer=lm.tokenizer, seed=1)
    assert lm.generate_until(requests) == lm.generate_until(requests) != again.generate_until(requests)
    with pytest.raises(ValueError, match=r"generate must set only .*; got speed"):
        lm.generate_until(instances("generate_until", [("1+2", {"until": [], "speed": 2})]))


def test_a_scorer_keeps_to_the_budget_that_it_was_trained_for(model):
    scorer = scorer_of(model, max_denoising_steps=2)
    asked = instances("loglikelihood", PAIRS), instances("generate_until", [("1+2", {"until": []})])
    rows = []
    for steps in (None, 2, 20):
        lm = LearnedOrderLM(
            model, tokenizer=equation_tokenizer(), scorer=scorer, max_denoising_steps=steps, max_gen_toks=20
        )
        rows.append((lm.loglikelihood(asked[0]), lm.generate_until(asked[1])))
    assert rows[0] == rows[1]
    assert all(one != other for one, other in zip(rows[0], rows[2], strict=True))


def test_long_contexts_lose_their_beginning(lm, caplog):
    options = {"until": [], "max_gen_toks": 8}
    long = "".join(f"{i}+1;" for i in range(50))
    kept = lm.tokenizer.decode(lm.tokenizer(long)["input_ids"][-120:-1])
    cut, same = lm.generate_until(instances("generate_until", [(long, options), (kept, options)]))
    assert cut == same
    assert "tokens was cut on the left to 120" in caplog.text
    assert caplog.text.count("was cut") == 1
    with pytest.raises(ValueError, match="a canvas must leave room in the model's 128 positions, got one of 128"):
        lm.generate_until(instances("generate_until", [("1+1", {"until": [], "max_gen_toks": 128})]))


def test_words_and_chat_templates():
    """A tokenizer of words, without special tokens of its own; a decoder that predicts from the token before."""
    tokenizer = spelling_tokenizer(bos_token="[BOS]")
    tokenizer.chat_template = "{% for m in messages %}[BOS] {{ m.content }}{% endfor %} w9"
    lm = LearnedOrderLM(tiny_model("qwen2"), tokenizer=tokenizer, sampler=ThresholdSampler(threshold=0.5))
    assert lm.apply_chat_template([{"role": "user", "content": "w5"}]) == "[BOS] w5 w9"
    assert lm.chat_template(True) == tokenizer.chat_template
    assert lm.tok_encode("[BOS] w5") == [0, 5]
    (one,) = lm.loglikelihood(instances("loglikelihood", [("", "w5 w6")]))
    expected = score_qwen2(lm, [0], [5, 6])
    assert one[0] == pytest.approx(expected, rel=1e-5)
    (text,) = lm.generate_until(instances("generate_until", [("w5 w6", {"until": ["\n"], "max_gen_toks": 5})]))
    assert all(int(word[1:]) in WORDS for word in text.split())


def score_qwen2(lm: LearnedOrderLM, context: list[int], continuation: list[int]) -> float:
    denoiser, clean = Denoiser(lm.denoiser.model, mask_token_id=MASK), torch.tensor([continuation])
    options = {"sampler": lm.rule, "max_new_tokens": clean.shape[1], "clean": clean}
    return decode(denoiser, torch.tensor([context]), **options).log_likelihood.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "batch_size must be a positive integer, got 'auto'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"max_gen_toks": -1}, "max_gen_toks must be a positive integer, got -1"),
        ({"sampler": "fast"}, "sampler must be one of iid, .*, got 'fast'"),
        ({"sampler": "learned_order"}, "needs a scorer"),
        ({"speed": 3}, r"sampler_config of 'top_prob' must have keys among \[\], got \['speed'\]"),
        ({"tokenizer": None}, "tokenizer must be given with a pretrained model that is loaded already, got None"),
    ],
)
def test_arguments_are_checked(model, options, message):
    with pytest.raises(ValueError, match=message):
        LearnedOrderLM(model, **{"tokenizer": equation_tokenizer(), **options})


def test_scorer_of_another_model(model):
    scorer = scorer_of(model)
    scorer.config.vocab_size += 1
    with pytest.raises(ValueError, match="its vocabulary size must be 39"):
        LearnedOrderLM(model, tokenizer=equation_tokenizer(), scorer=scorer)
