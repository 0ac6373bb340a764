"""What surrounds the objectives in training: ways to run an update, evaluation, early stopping, trackers, the bar."""

import math
from collections import deque
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import concatenate_datasets
from test_trainer import CANVAS, CASES, PROBLEMS, brief, changed, quiet, trainer_of, weights_of  # noqa: F401 (a fixture)
from transformers import EarlyStoppingCallback, EvalPrediction

from hf_learned_order.denoisers.predictions import Predictions
from hf_learned_order.tasks.answers import AnswerMetrics, decoded, encoded
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import answered, chains_of, read_rows
from hf_learned_order.training.objectives.base import Batch
from hf_learned_order.training.objectives.updates import Draws, mean_of, seeds_of
from hf_learned_order.training.progress import OrderProgress, trend

EXAMPLES = Path(__file__).parents[2] / "examples"
SGD = {"optim": "sgd", "learning_rate": 0.3}


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=CANVAS).select(range(12))


def trained(folder, tokenizer, dataset, **options):
    trainer = trainer_of(folder, tokenizer, dataset, **{**SGD, "per_device_train_batch_size": 4, **options})
    trainer.train()
    return trainer


def assert_close(trainer, other, **tolerance) -> None:
    mine, its = weights_of(trainer.model), weights_of(other.model)
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, its[name], **tolerance)


# ---- ways to run an update ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["clean", "train_denoiser", "count"])
def test_accumulated_batches_are_the_whole(case, tmp_path, tokenizer, dataset):
    options = {**CASES[case], "baseline": "leave_one_out"}  # the value's loss is a mean over steps of each batch
    whole = trained(tmp_path, tokenizer, dataset, **options)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_close(whole, trained(tmp_path, tokenizer, dataset, **{**options, **parts}), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("case", ["lora", "train_denoiser"])
def test_checkpointed_activations_change_nothing(case, tmp_path, tokenizer, dataset):
    options = {**CASES[case], "hidden_layers": [1, -1]}
    whole = trained(tmp_path, tokenizer, dataset, **options)
    options = {**options, "activation_checkpointing": True}
    checkpointed = trained(tmp_path, tokenizer, dataset, **options)
    assert checkpointed.denoiser.model.is_gradient_checkpointing
    assert_close(whole, checkpointed, rtol=1e-4, atol=2e-6)


@pytest.mark.slow  # the compiler alone takes half a minute
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of dynamo's, while tracing
@pytest.mark.parametrize("case", ["clean", "lora", "regret"])
def test_compiled_layers_change_nothing(case, tmp_path, tokenizer, dataset, monkeypatch):
    for name in ("BACKEND", "USE_REGIONAL_COMPILATION"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")  # what the arguments set is undone
    layers = {"hidden_layers": [1, -1]} if case != "lora" else {}
    whole = trained(tmp_path, tokenizer, dataset, **CASES[case], **layers, max_steps=2)
    options = {**CASES[case], **layers, "max_steps": 2, "torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = trained(tmp_path, tokenizer, dataset, **options)
    assert any("OptimizedModule" in type(module).__name__ for module in compiled.model_wrapped.modules())
    assert_close(whole, compiled, rtol=1e-3, atol=1e-5)
    compiled.save_model()  # under the names that they have without


@pytest.mark.parametrize("case", ["clean", "train_denoiser", "regret"])
def test_bf16_is_close(case, tmp_path, tokenizer, dataset):
    whole = trained(tmp_path, tokenizer, dataset, **CASES[case])
    half = trained(tmp_path, tokenizer, dataset, **CASES[case], bf16=True)
    name = "doubt_loss" if case == "regret" else "bound"
    values = [[logs[name] for logs in t.state.log_history if "loss" in logs] for t in (whole, half)]
    assert values[1] == pytest.approx(values[0], rel=0.15)
    assert changed(weights_of(whole.model), weights_of(half.model))  # it was in use
    assert all(parameter.dtype == torch.float32 for parameter in half.scorer.parameters())


# ---- draws and means that do not hang on the split ---------------------------------------------------------------


def test_a_row_draws_the_same_in_whatever_batch():
    device = torch.device("cpu")
    whole = Draws(seeds_of(3, 7, first=0, rows=6), rows=6, device=device)
    parts = [Draws(seeds_of(3, 7, first=first, rows=2), rows=2, device=device) for first in (0, 2, 4)]
    for draw in (lambda d: d.uniform(2, 3), lambda d: d.normal(4)):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))
    assert {whole.integer(1, 1000), *(part.integer(1, 1000) for part in parts)} == {whole_first(3, 7)}
    assert len({whole.number(0.0, 1.0), *(part.number(0.0, 1.0) for part in parts)}) == 1


def whole_first(seed: int, update: int) -> int:
    return Draws(seeds_of(seed, update, first=9, rows=1), rows=1, device=torch.device("cpu")).integer(1, 1000)


def test_rows_updates_and_seeds_draw_apart():
    seeds = torch.cat([seeds_of(seed, update, first=0, rows=4) for seed in range(3) for update in range(3)])
    assert len(seeds[:, 0].unique()) == 36
    assert len(seeds[:, 1].unique()) == 9
    numbers = Draws(seeds, rows=36, device=torch.device("cpu")).uniform(500)
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01)
    assert numbers.corrcoef().fill_diagonal_(0).abs().max() < 0.25  # five standard errors


def test_without_seeds_draws_are_torchs():
    torch.manual_seed(5)
    expected = torch.rand(3, 2)
    torch.manual_seed(5)
    assert torch.equal(Draws(None, rows=3, device=torch.device("cpu")).uniform(2), expected)


def test_mean_of_one_process():
    assert mean_of(torch.tensor(6.0), torch.tensor(4)) == 1.5
    assert mean_of(torch.tensor(0.0), torch.tensor(0)) == 0


def test_repeated_predictions_are_those_of_repeated_rows():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]]).repeat_interleave(3, 0)
    once, often = Predictions.from_logits(logits, 0), Predictions.from_logits(logits.repeat_interleave(3, 0), 0)
    for name in ("confidence", "margin", "entropy", "tokens", "index", "log_peak", "log_probs"):
        assert torch.equal(getattr(once.repeated(3), name), getattr(often, name)), name
    assert torch.equal(once.repeated(3).log_prob(tokens), often.log_prob(tokens))


# ---- budgets, calls ----------------------------------------------------------------------------------------------


def test_budgets_are_drawn_from_the_range(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset, min_denoising_steps=2, max_denoising_steps=4)
    batch = trainer.data_collator(list(dataset.select(range(2))))
    with torch.no_grad():
        active = [trainer.model.chains(Batch(**batch, seeds=seeds_of(0, n, first=0, rows=2))).active for n in range(40)]
    steps = (4 - torch.cat(active, 1).int().argmax(0)).tolist()  # the first call of a chain says how many are left
    assert all(len(set(chains)) == 1 for chains in steps)
    steps = [chains[0] for chains in steps]
    assert set(steps) == {2, 3, 4}
    assert all(30 < 3 * steps.count(n) < 130 for n in (2, 3, 4))
    assert any(first != second for first, second in zip(steps[::2], steps[1::2], strict=True))
    assert trainer.scorer.config.max_denoising_steps == 4
    fixed = trainer_of(tmp_path, tokenizer, dataset, max_denoising_steps=4)
    assert len(fixed.model.chains(Batch(**batch)).step_terms) == 4


@pytest.mark.parametrize("case", ["clean", "prior", "count"])
def test_calls_are_counted_and_none_is_wasted(case, tmp_path, tokenizer, dataset):
    """Chains that have finished are not asked about, and before the first draw those of a response are one."""
    trainer = trainer_of(tmp_path, tokenizer, dataset, **CASES[case], num_chains=3, max_denoising_steps=20)
    trainer.train()
    for logs in (logs for logs in trainer.state.log_history if "loss" in logs):
        assert logs["nfe"] < 20
        assert logs["denoiser_calls"] == pytest.approx(1 + 3 * (logs["nfe"] - 1), abs=2e-3)


# ---- evaluation --------------------------------------------------------------------------------------------------


def test_an_evaluation_decodes_for_its_metrics(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset, law="regret", per_device_eval_batch_size=5)
    assert "eval_generated_nfe" not in trainer.evaluate()  # nobody asked
    seen = []
    metrics = AnswerMetrics(tokenizer)
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or metrics(prediction)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert {"eval_same", "eval_accuracy", "eval_generated_nfe", "eval_exact", "eval_loss"} <= first.keys()
    for name in ("eval_loss", "eval_exact", "eval_nfe", "eval_same", "eval_generated_nfe"):
        assert first[name] == second[name]  # each evaluation draws the same
    batch = trainer.data_collator(list(dataset))
    answers = batch.pop("answer")
    responses, nfe = trainer.model.generate(
        trainer._decode, **batch, given=None, seeds=seeds_of(0, 0, first=0, rows=len(dataset))
    )
    assert torch.equal(torch.tensor(seen[0].predictions), responses)
    assert torch.equal(torch.tensor(seen[0].label_ids[0]), batch["clean"])
    assert decoded(seen[0].label_ids[1]) == decoded(answers.tolist()) == dataset["answer"][:]
    assert first["eval_generated_nfe"] == pytest.approx(nfe.float().mean().item(), abs=1e-4)


def test_rows_of_any_order_keep_their_answers(tmp_path, tokenizer, dataset):
    seen, asked = [], []
    options = {"per_device_eval_batch_size": 5, "train_sampling_strategy": "group_by_length"}
    trainer = trainer_of(tmp_path, tokenizer, dataset, law="regret", **options)
    metrics = AnswerMetrics(tokenizer, lambda response, answer: asked.append((response, answer)) or answer > "3")
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or metrics(prediction)
    share = trainer.evaluate()["eval_accuracy"]
    references, answers = seen[0].label_ids
    texts = tokenizer.batch_decode(references, skip_special_tokens=True)
    pairs = list(zip(texts, decoded(answers), strict=True))
    rows = [(tokenizer.decode(row["response_ids"]), row["answer"]) for row in dataset]
    assert pairs != rows  # long ones first
    assert sorted(pairs) == sorted(rows)
    assert all(answered(*pair) for pair in pairs)
    responses = tokenizer.batch_decode(seen[0].predictions, skip_special_tokens=True)
    assert asked == list(zip(responses, decoded(answers), strict=True))
    assert share == sum(answer > "3" for answer in dataset["answer"]) / len(dataset)


def test_rows_without_answers_are_not_judged(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset.remove_columns("answer"), law="regret")
    trainer.compute_metrics = AnswerMetrics(tokenizer)
    metrics = trainer.evaluate()
    assert "eval_same" in metrics
    assert "eval_accuracy" not in metrics


def test_evaluations_draw_anew_in_each_batch_and_the_same_each_time(tmp_path, tokenizer, dataset):
    twice = concatenate_datasets([dataset.select(range(4))] * 2)
    trainer, seen = trainer_of(tmp_path, tokenizer, twice, posterior="prior", max_denoising_steps=8), []
    trainer.compute_metrics = lambda prediction: seen.append(prediction.predictions) or {}
    trainer.evaluate()
    trainer.train()
    with torch.no_grad():
        for name, parameter in trainer.scorer.named_parameters():
            if "head" in name:
                parameter.zero_()  # as before the training
    trainer.evaluate()
    assert (seen[0] == seen[1]).all()
    assert (seen[0][:4] != seen[0][4:]).any(-1).sum() > 1  # some begin with an EOS


def test_evaluation_loss_of_the_elbo_is_the_bound(tmp_path, tokenizer, dataset):
    metrics = trainer_of(tmp_path, tokenizer, dataset, num_chains=1, baseline="none").evaluate()
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_bound"] / CANVAS, rel=1e-4)


def test_answers():
    tokenizer = equation_tokenizer()

    def ids(*texts):
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return torch.tensor([row + [tokenizer.eos_token_id] * (12 - len(row)) for row in rows]).numpy()

    right, given = ids("1+1=2 #2", "2*3=6 #6", "8-1=7 #7", "5=5"), ids("1+1=2 #2", "3*2=6 #6", "8-1=7 #8", "5=5")
    answers = encoded(["2", "6", "7", ""]).numpy()
    metrics = AnswerMetrics(tokenizer)(EvalPrediction(predictions=given, label_ids=(right, answers)))
    assert metrics == {"same": 0.5, "accuracy": pytest.approx(2 / 3)}  # the last one has no answer to compare
    rest = EvalPrediction(predictions=given[3:], label_ids=(right[3:], answers[3:]))
    assert AnswerMetrics(tokenizer)(rest) == {"same": 1.0}
    longer = AnswerMetrics(tokenizer, lambda response, answer: len(response) > int(answer))
    assert longer(EvalPrediction(predictions=given, label_ids=(right, answers)))["accuracy"] == 1


@pytest.mark.parametrize("case", ["clean", "lora", "train_denoiser", "regret"])
def test_early_stopping_leaves_the_best(case, tmp_path, tokenizer, dataset):
    """With updates that ruin everything: it stops after the second evaluation and the first is loaded again."""
    options = {
        **{**SGD, "learning_rate": 1e4, "max_grad_norm": 1e4, "max_steps": 9, **CASES[case]},
        **{
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_on_start": False,
        },
        **{"load_best_model_at_end": True, "metric_for_best_model": "loss" if case == "regret" else "bound"},
        **{"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"},  # the first update has a rate of 0
    }
    if case == "clean":
        options["target_nfe"] = 1.5
    trainer = trainer_of(tmp_path, tokenizer, dataset, callbacks=[EarlyStoppingCallback(1)], **options)
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.state.global_step < 9
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-1"
    assert changed(before, weights_of(trainer.model)) == set()
    if case == "clean":
        rest = trainer.scorer.config_class.from_pretrained(tmp_path / "checkpoint-1")
        # the best one's bias is loaded, and then solved for anew
        assert rest.law_bias != 0
        assert trainer.scorer.config.law_bias != 0


# ---- trackers and the bar ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_what_is_logged(tmp_path, tokenizer, dataset, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    options = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 3}
    trainer = trained(tmp_path, tokenizer, dataset, **options)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("bound", "kl", "nfe", "denoiser_calls"):
        logged = [logs[name] for logs in trainer.state.log_history if name in logs]
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(logged)
    assert len(events.Scalars("eval/bound")) == 1


def test_the_bar_shows_bound_and_nfe(tmp_path, tokenizer, dataset, capfd):
    trained(tmp_path, tokenizer, dataset, disable_tqdm=False)
    shown = capfd.readouterr().err
    assert "bound -" in shown
    assert "→, nfe 3" in shown or "→, nfe 2" in shown
    assert shown.count("3/3") >= 1


def test_trends():
    assert trend(deque([1.0, 5.0, 9.0])) == "→"  # too few to say
    assert trend(deque([1.0, 1.1, 2.0, 2.1])) == "↑"
    assert trend(deque([-1.0, -1.1, -2.0, -2.1])) == "↓"
    assert trend(deque([1.0, 3.0, 1.2, 3.1])) == "→"
    bar = OrderProgress()
    assert bar.text({"loss": 0.5, "bound": -12.345, "nfe": 4.0}) == "bound -12.35 →, nfe 4 →"
    assert OrderProgress().text({"loss": 0.5}) == "loss 0.5 →"
    for number in range(30):
        text = bar.text({"loss": 0.5, "bound": -12.0 + number, "nfe": 4.0 - number / 20})
    assert text == "bound 17 ↑, nfe 2.55 ↓"
    assert len(bar.seen["bound"]) == 10


# ---- configurations for many GPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp", "deepspeed", "cpu"])
def test_configurations_are_what_accelerate_takes(name):
    path = EXAMPLES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.to_dict()["distributed_type"] == written["distributed_type"]
    assert config.num_processes == written["num_processes"]


def test_fsdp_configuration_is_what_the_plugin_takes(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    written = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=written["fsdp_version"],
        auto_wrap_policy=written["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=written["fsdp_reshard_after_forward"],
        state_dict_type=written["fsdp_state_dict_type"],
        cpu_offload=written["fsdp_offload_params"],
        cpu_ram_efficient_loading=written["fsdp_cpu_ram_efficient_loading"],
    )
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


def test_deepspeed_configuration_can_be_filled_in():
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    written = yaml.safe_load((EXAMPLES / "accelerate" / "deepspeed.yaml").read_text())["deepspeed_config"]
    config = HfDeepSpeedConfig(str(EXAMPLES.parent / written["deepspeed_config_file"]))
    assert config.is_zero2()
    assert config.get_value("train_batch_size") == "auto"


def test_layers_that_fsdp_splits_are_named(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset)
    names = {type(module).__name__ for module in trainer.denoiser.modules()}
    # the embeddings are also the head's weights, so they are not split by themselves
    assert trainer.model._no_split_modules == ["ModernBertEncoderLayer"]
    assert "ModernBertEncoderLayer" in names


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3)])
def test_ranges_are_checked(low, high, tmp_path, tokenizer, dataset):
    with pytest.raises(ValueError, match=rf"min_denoising_steps must be in \[1, max_denoising_steps = {high}\], got"):
        trainer_of(tmp_path, tokenizer, dataset, min_denoising_steps=low, max_denoising_steps=high)


def test_finite(tmp_path, tokenizer, dataset):
    """One step has nothing to learn, and says so with gradients of 0."""
    trainer = trained(tmp_path, tokenizer, dataset, max_denoising_steps=1, max_steps=1)
    logs = trainer.state.log_history[0]
    assert logs["grad_norm"] == 0
    assert math.isfinite(logs["bound"])
    assert logs["denoiser_calls"] == logs["nfe"] == 1
