"""`OrderTrainer` with real, tiny models: what it trains, what it saves, what it resumes, what it logs."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from models import tiny_model
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, EarlyStoppingCallback, TrainerCallback
from transformers.utils import logging

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.scheduled import IIDSampler
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.training import weighing
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.objectives.updates import seeds_of
from hf_learned_order.training.saved import last_checkpoint
from hf_learned_order.training.trainer import OrderTrainer

PROBLEMS = Path(__file__).parents[2] / "examples" / "problems.jsonl"
CANVAS = 32
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# what is trained: options of the trainer, of the scorer, of LoRA
CASES = {
    "clean": {"posterior": "clean"},
    "clean_once": {"posterior": "clean_once"},
    "prior": {"posterior": "prior"},
    "regret": {"law": "regret"},
    "count": {"law": "count", "baseline": "value", "gradient_steps": "one"},
    "reward": {"objective": "reward", "law": "regret"},
    "judged": {
        **{"objective": "reward", "law": "regret", "num_chains": 8},
        "is_right": lambda text, answer: sum(map(ord, text + answer)) % 2 == 0,
    },
    "lora": {"lora": True},
    "train_denoiser": {"train_denoiser": True},
}
TUNED = ("lora", "train_denoiser")
BOUND = ("bound", "kl", "nfe")
MEASURED = {
    "regret": ("doubt_loss", "pair_loss", "observed", "predicted", "exact", "nfe"),
    "reward": ("reward", "exact", "nfe"),
    "judged": ("reward", "right", "nfe"),
}
UNBUDGETED = ("regret", "reward", "judged")
POSTERIOR = ("clean", "clean_once", "count", *TUNED)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars of saving and loading."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def brief():
    """Two ways of weighing doubt against pairs, at one fast speed: each is a decoding of the first rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weighing, "WEIGHTS", weighing.WEIGHTS[1:3])
        patched.setattr(weighing, "BIASES", (1.5,))
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer):
    rows = equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=CANVAS)
    return rows.select(range(8))


def denoising_model(tokenizer):
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return tiny_model("modernbert", max_position_embeddings=96, **special).float()


def arguments(folder, **options) -> OrderTrainingArguments:
    defaults = {
        "max_steps": 3,
        "max_denoising_steps": 3,
        "num_chains": 2,
        "canvas_length": CANVAS,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return OrderTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def trainer_of(
    folder,
    tokenizer,
    dataset,
    *,
    law="non_empty",
    hidden_layers=None,
    lora=False,
    is_right=None,
    callbacks=None,
    **options,
) -> OrderTrainer:
    model = denoising_model(tokenizer)
    torch.manual_seed(0)
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type=None) if lora else None
    scorer = None
    if law != "default":
        shape = {"denoiser_hidden_size": 32, "vocab_size": 40, "mask_token_id": tokenizer.mask_token_id}
        scorer = OrderScorer(OrderScorer.config_class(law=law, hidden_layers=hidden_layers, **shape, **SMALL))
    return OrderTrainer(
        model=model,
        scorer=scorer,
        args=arguments(folder, **options),
        processing_class=tokenizer,
        train_dataset=dataset,
        eval_dataset=dataset,
        peft_config=peft_config,
        is_right=is_right,
        callbacks=callbacks,
    )


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("case", CASES)
def test_trains_and_saves(case, tmp_path, tokenizer, dataset):
    options = CASES[case]
    trainer = trainer_of(tmp_path, tokenizer, dataset, **options)
    denoiser, scorer = weights_of(trainer.denoiser), weights_of(trainer.scorer)
    outcome = trainer.train()
    metrics = trainer.evaluate()

    # (a) what moved
    assert outcome.global_step == 3
    assert math.isfinite(outcome.training_loss)
    moved = changed(denoiser, weights_of(trainer.denoiser))
    assert changed(scorer, weights_of(trainer.scorer))
    if case not in TUNED:
        assert moved == set()
        assert not any(p.requires_grad for p in trainer.denoiser.parameters())
    elif case == "lora":
        assert moved
        assert all("lora_" in name for name in moved)
    else:
        assert len(moved) > 10

    # (b) what is saved can be loaded
    trainer.save_model()
    for loaded in (OrderScorer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is OrderScorer
        assert changed(weights_of(trainer.scorer), weights_of(loaded)) == set()
        assert loaded.config.law == options.get("law", "non_empty")
        assert loaded.config.max_denoising_steps == (None if case in UNBUDGETED else 3)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert ("posterior.safetensors" in names) == (case in POSTERIOR)
    assert ("adapter" in names) == (case == "lora")
    assert ("denoiser" in names) == (case == "train_denoiser")
    if trainer.posterior is not None:
        assert changed(weights_of(trainer.posterior), load_file(tmp_path / "posterior.safetensors")) == set()
    batch = trainer.data_collator([dataset[0], dataset[1]])["input_ids"]
    if case == "lora":
        loaded = PeftModel.from_pretrained(denoising_model(tokenizer), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(batch).logits, trainer.denoiser.model.eval()(batch).logits)
    elif case == "train_denoiser":
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "denoiser")
        assert changed(weights_of(trainer.denoiser.model), weights_of(loaded)) == set()

    # (d) what is logged, at every step and at evaluation
    measured = MEASURED.get(case, BOUND)
    steps = [logs for logs in trainer.state.log_history if "loss" in logs]
    assert len(steps) == 3
    for name in measured:
        assert all(math.isfinite(logs[name]) for logs in steps)
        assert math.isfinite(metrics[f"eval_{name}"])
        assert not any(f"eval_{name}" in logs for logs in steps)
    if case not in MEASURED:
        assert all(logs["bound"] < 0 <= logs["kl"] and 1 <= logs["nfe"] <= 3 for logs in steps)
        # q starts at p; without a posterior it stays there
        assert steps[0]["kl"] == 0
        assert case in POSTERIOR or all(logs["kl"] == 0 for logs in steps)


@pytest.mark.parametrize("case", ["clean", "regret", "lora"])
def test_an_update_on_several_hidden_states(case, tmp_path, tokenizer, dataset):
    """What is learned hangs on each of them, in the scorer and, where there is one, in the posterior."""
    options = {**CASES[case], "hidden_layers": [1, -1], "max_steps": 2}
    trainer = trainer_of(tmp_path, tokenizer, dataset, **options)
    before = weights_of(trainer.model)
    trainer.train()
    names = [name for name in before if name.endswith("network.hidden_states.1.weight")]
    assert len(names) == (2 if case in POSTERIOR else 1)
    for name in names:
        moved = before[name] != weights_of(trainer.model)[name]
        assert moved.shape == (16, 64)
        assert moved[:, :32].any()
        assert moved[:, 32:].any()
    trainer.save_model()
    loaded = OrderScorer.from_pretrained(tmp_path)
    assert loaded.config.layers_seen == (1, -1)
    assert changed(weights_of(trainer.scorer), weights_of(loaded)) == set()


def test_means_are_over_what_was_measured_since_the_last_log(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset)
    trainer._trained.add("bound", torch.tensor(1.0), 1)
    trainer._trained.add("bound", torch.tensor(2.0), 3)
    logs = {"eval_loss": 0.0}
    trainer.log(logs)
    assert "bound" not in logs
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert logs["bound"] == 1.75  # a row counts as a row, in whatever batch
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert "bound" not in logs


class StopAt(TrainerCallback):
    """An interruption, as far as a trainer can tell."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_the_uninterrupted_one(case, tmp_path, tokenizer, dataset):
    options = {**CASES[case], "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(tmp_path / "whole", tokenizer, dataset, **options)
    whole.train()
    stopped = trainer_of(tmp_path / "parts", tokenizer, dataset, callbacks=[StopAt(1)], **options)
    stopped.train()
    assert stopped.state.global_step == 1
    assert changed(weights_of(stopped.scorer), weights_of(whole.scorer))
    torch.manual_seed(99)
    resumed = trainer_of(tmp_path / "parts", tokenizer, dataset, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert changed(weights_of(resumed.model), weights_of(whole.model)) == set()  # scorer, posterior and denoiser
    for name in ("loss", "bound", "observed", "reward"):
        losses = [[logs[name] for logs in t.state.log_history if name in logs] for t in (whole, resumed)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("target_nfe", [None, 2.5])
def test_a_finished_run_that_is_given_again_saves_what_it_saved(target_nfe, tmp_path, tokenizer, dataset):
    """So it ends to the bit, too, where a kill came between the last checkpoint and `save_model`."""
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "target_nfe": target_nfe}
    saved = []
    for _ in range(3):
        trainer = trainer_of(tmp_path, tokenizer, dataset, **options)
        trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path))
        assert trainer.state.global_step == 3
        trainer.save_model()
        saved.append([(tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")])
    assert saved[0] == saved[1] == saved[2]
    assert (trainer.scorer.config.law_bias != 0) == (target_nfe is not None)  # solved for behind the last checkpoint
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    # with more to do it goes on
    trainer = trainer_of(tmp_path, tokenizer, dataset, **{**options, "max_steps": 5})
    trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert trainer.state.global_step == 5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"law": "count"},
            "law must be that of the checkpoint .*checkpoint-3, 'non_empty', got 'count': go on with its",
        ),
        ({"hidden_layers": [1, -1]}, r"hidden_layers must be that of the checkpoint .*, None, got \[1, -1\]"),
    ],
)
def test_a_checkpoint_of_another_scorer_is_refused(option, message, tmp_path, tokenizer, dataset):
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer_of(tmp_path, tokenizer, dataset, **options).train()
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, tokenizer, dataset, **option, **options).train(
            resume_from_checkpoint=last_checkpoint(tmp_path)
        )


def test_patience_outlasts_a_kill(tmp_path, tokenizer, dataset):
    """Evaluations that are all alike: the first is the best, and the third the second in a row that is no better."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "flat", "per_device_eval_batch_size": 8}

    def run(folder: str, *callbacks, patience: int = 2) -> OrderTrainer:
        callbacks = [EarlyStoppingCallback(patience), *callbacks]
        trainer = trainer_of(tmp_path / folder, tokenizer, dataset, callbacks=callbacks, **options)
        trainer.compute_metrics = lambda prediction: {"flat": 1.0}
        trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / folder))
        return trainer

    whole = run("whole")
    assert whole.state.global_step == 3
    assert run("parts", StopAt(2)).state.global_step == 2
    resumed = run("parts")
    assert resumed.state.global_step == 3
    again = run("parts")
    assert again.state.global_step == 3
    assert not changed(weights_of(again.model), weights_of(whole.model))  # those of the best checkpoint
    assert run("parts", patience=4).state.global_step == 5


@pytest.mark.parametrize("training", [True, False])
def test_processes_draw_together_what_one_draws_alone(training, tmp_path, tokenizer, dataset, monkeypatch):
    """Three of them, in the second batch of an update: the rows' seeds, in the order of the processes."""
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    trainer = trainer_of(tmp_path, tokenizer, dataset, seed=7, **sizes)
    trainer._batch = 1

    def seeds(world: int, rank: int, rows: int) -> list:
        monkeypatch.setattr(type(trainer.args), "world_size", world)
        monkeypatch.setattr(type(trainer.args), "process_index", rank)
        return trainer._seeds(rows, training=training).tolist()

    parts = [seeds(3, rank, 2) for rank in range(3)]
    # those of an update are counted on through its batches; an evaluation of one process begins anew with each
    expected = seeds_of(7, 0, first=6, rows=6).tolist() if training else seeds(1, 0, 6)
    assert [*itertools.chain(*parts)] == expected
    assert len({own for own, _ in expected}) == 6


def test_untrained_bound_is_that_of_ancestral_sampling(tmp_path, tokenizer, dataset):
    options = {"max_denoising_steps": 4, "num_chains": 32}
    trainer = trainer_of(tmp_path, tokenizer, dataset, **options)
    torch.manual_seed(0)
    metrics = trainer.evaluate()
    batch = trainer.data_collator(list(dataset))
    batch = {name: value.repeat_interleave(128, 0) for name, value in batch.items()}
    generator = torch.Generator().manual_seed(0)
    output = decode(
        trainer.denoiser,
        batch["input_ids"],
        batch["attention_mask"],
        sampler=IIDSampler(),
        max_new_tokens=CANVAS,
        max_denoising_steps=4,
        eos_token_id=tokenizer.eos_token_id,
        generator=generator,
        clean=batch["clean"],
    )
    means = output.log_likelihood.view(8, 128)
    error = means.std(1).square().sum().sqrt().item() / 8 / 128**0.5
    print(f"{metrics['eval_bound']:.3f} and {means.mean():.3f} with a standard error of {error:.3f}")
    # the estimate from 32 chains has twice that error, less what Rao-Blackwellisation saves
    assert abs(metrics["eval_bound"] - means.mean()) < 8 * error
    assert metrics["eval_kl"] == 0
    assert abs(metrics["eval_nfe"] - output.nfe.float().mean()) < 0.1


def test_exploration_falls_to_nothing(tmp_path, tokenizer, dataset):
    """As a square, to 0 at 85 % of the updates; an evaluation has none, nor has what is measured after training."""
    trainer = trainer_of(tmp_path, tokenizer, dataset, exploration=2.0, max_steps=10)
    seen: dict[bool, list[float]] = {True: [], False: []}
    objective = trainer.model
    objective.register_forward_pre_hook(lambda module, _: seen[module.training].append(module.exploration))
    trainer.train()
    trainer.evaluate()
    assert seen[True] == pytest.approx([2 * max(0.0, 1 - update / 10 / 0.85) ** 2 for update in range(10)])
    assert set(seen[False]) == {0.0}


def test_scorer_is_made_where_none_is_given(tmp_path, tokenizer, dataset):
    trainer = trainer_of(tmp_path, tokenizer, dataset, law="default")
    assert trainer.scorer.config.denoiser_hidden_size == 32
    assert trainer.scorer.config.mask_token_id == tokenizer.mask_token_id


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "best"}, "objective must be one of None, elbo, regret, reward, got 'best'"),
        ({"posterior": "exact"}, "posterior must be one of None, clean, clean_once, prior, got 'exact'"),
        (
            {"posterior_law": "regret"},
            "posterior_law must be one of None, non_empty, .*, got 'regret'",
        ),
        ({"baseline": "mean"}, "baseline must be one of leave_one_out, value, none, got 'mean'"),
        ({"posterior_temperature": 0.0}, r"posterior_temperature must be positive, got 0\.0"),
        ({"posterior_temperature": -1.0}, r"posterior_temperature must be positive, got -1\.0"),
        ({"exploration": -0.5}, r"exploration must be 0 or more, got -0\.5"),
        ({"max_denoising_steps": 0}, "max_denoising_steps must be a positive integer, got 0"),
        ({"num_chains": 0}, "num_chains must be a positive integer, got 0"),
        ({"num_chains": 2.5}, r"num_chains must be a positive integer, got 2\.5"),
        ({"canvas_length": -1}, "canvas_length must be a positive integer, got -1"),
        ({"temperature": math.inf}, "temperature must be a finite number, 0 or more, got inf"),
    ],
)
def test_arguments_are_checked(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": True, "train_denoiser": True}, "train_denoiser must be False when peft_config is given"),
        ({"law": "regret", "lora": True}, 'objective must be "elbo" when the denoiser is tuned, got .regret.'),
        ({"objective": "reward", "train_denoiser": True}, 'objective must be "elbo" when .* is tuned, got .reward.'),
        (
            {"objective": "elbo", "law": "regret", "posterior": "clean"},
            'posterior must be "prior" with law "regret": the KL',
        ),
        (
            {"is_right": lambda text, answer: True},
            "is_right must be None with objective .elbo.: only regret and reward judge responses",
        ),
        (
            {"num_chains": 1},
            'num_chains must be 2 or more with baseline "leave_one_out", got 1: one chain has no others',
        ),
        (
            {"law": "regret", "exploration": 1.0},
            r"exploration must be 0\.0 with objective .regret., which has no such setting, got 1\.0",
        ),
        (
            {"objective": "reward", "min_denoising_steps": 2},
            "min_denoising_steps must be None with objective .reward.",
        ),
        (
            {"speed_exponent": 2.0},
            r"speed_exponent must be 1\.0 with objective .elbo., which has no such .*, got 2\.0",
        ),
        (
            {"temperature": 1.0},
            r"temperature must be 0\.0 with objective .elbo., which has no such setting, got 1\.0",
        ),
        ({"objective": "reward", "num_chains": 1}, "num_chains must be 2 or more, got 1"),
        (
            {"law": "max_normalized", "posterior": "clean"},
            'posterior must be "prior" with law "max_normalized": the KL',
        ),
    ],
)
def test_combinations_are_checked(options, message, tmp_path, tokenizer, dataset):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, tokenizer, dataset, **options)


def test_zero_3_is_refused(tmp_path, tokenizer, dataset, monkeypatch):
    monkeypatch.setattr("hf_learned_order.training.refusals.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"deepspeed must not be ZeRO-3, which splits the scorer too, .* FSDP2"):
        trainer_of(tmp_path, tokenizer, dataset)


@pytest.mark.parametrize("policy", ["size_based_wrap", "transformer_based_wrap", "no_wrap"])
def test_fsdp_by_size_is_refused(policy, tmp_path, tokenizer, dataset, monkeypatch):
    kind = {"state_dict_type": "FULL_STATE_DICT"}
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy=policy, **kind)
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)  # accelerate sets it on GPUs only
    if policy == "size_based_wrap":
        with pytest.raises(
            ValueError, match=r"fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP, got SIZE_BASED_WRAP"
        ):
            trainer_of(tmp_path, tokenizer, dataset)
    else:
        trainer_of(tmp_path, tokenizer, dataset)
        plugin.set_state_dict_type("SHARDED_STATE_DICT")
        with pytest.raises(ValueError, match="fsdp_state_dict_type must be FULL_STATE_DICT, got SHARDED"):
            trainer_of(tmp_path, tokenizer, dataset)


def test_tokenizer_needs_a_mask_token(tmp_path, dataset):
    tokenizer = equation_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="mask_token_id must be given, or a tokenizer with a mask token"):
        OrderTrainer(model=denoising_model(tokenizer), args=arguments(tmp_path), processing_class=tokenizer)


def test_scorer_has_to_fit(tmp_path, tokenizer, dataset):
    scorer = OrderScorer(OrderScorer.config_class(denoiser_hidden_size=48, **SMALL))
    with pytest.raises(ValueError, match=r"scorer was made for another denoiser .*hidden size must be 48"):
        OrderTrainer(
            model=denoising_model(tokenizer), scorer=scorer, args=arguments(tmp_path), processing_class=tokenizer
        )


def test_an_evaluation_draws_at_the_temperature_of_the_training(tmp_path, tokenizer, dataset):
    def tokens(temperature):
        trainer = trainer_of(tmp_path, tokenizer, dataset, law="regret", temperature=temperature)
        trainer.compute_metrics = lambda _: {}
        first, again = (trainer.predict(dataset).predictions.tolist() for _ in range(2))
        assert first == again
        return first

    assert tokens(1.0) != tokens(0.0)
    assert len({*map(tuple, tokens(1.0))}) == len(dataset)
