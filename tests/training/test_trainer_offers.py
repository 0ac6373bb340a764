"""What transformers' Trainer offers: it works with an `OrderTrainer`, or is refused before the first update."""

import json
import logging

import pytest
import torch
from models import MASK, tiny_model
from test_trainer import CANVAS, PROBLEMS, arguments, changed, denoising_model, quiet, trainer_of, weights_of  # noqa: F401
from transformers import EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.training.saved import last_checkpoint
from hf_learned_order.training.trainer import OrderTrainer


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=CANVAS).select(range(8))


def small_trainer(folder, tokenizer, rows, *, model=None, family=None, options=(), **more) -> OrderTrainer:
    """Two updates of the ELBO; `more` are arguments of the training."""
    torch.manual_seed(0)
    model = denoising_model(tokenizer) if model is None else model
    return OrderTrainer(
        model=model,
        args=arguments(folder, **{"max_steps": 2, **more}),
        processing_class=tokenizer,
        train_dataset=rows,
        family=family,
        scorer=OrderScorer.for_denoiser(
            Denoiser(model, mask_token_id=tokenizer.mask_token_id, family=family),
            **{"law": "non_empty", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        ),
        **dict(options),
    )


# ---- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"neftune_noise_alpha": 5.0}, {}, r"neftune_noise_alpha must be None, got 5\.0: noise in the denoiser's"),
        ({"label_smoothing_factor": 0.1}, {}, r"label_smoothing_factor must be 0, got 0\.1: there are no labels"),
        ({}, {"compute_loss_func": max}, "compute_loss_func must be None, got .*: the objective is the loss"),
        ({}, {"model_init": list}, "model_init must be None, got .*: the denoiser is given"),
        ({}, {"preprocess_logits_for_metrics": max}, "preprocess_logits_for_metrics must be None, .* decodes"),
        ({"hub_strategy": "every_save"}, {}, "hub_strategy must be one of end, got"),
    ],
)
def test_what_would_do_nothing_is_refused(arguments, options, message, tmp_path, tokenizer, dataset):
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path, tokenizer, dataset, options=options, **arguments)


def test_group_by_length_needs_lengths(tmp_path, tokenizer, dataset):
    group = {"train_sampling_strategy": "group_by_length"}
    small_trainer(tmp_path, tokenizer, dataset, **group).train()
    message = "rows must have a column 'length' of lengths for group_by_length .*, but a Dataset has none"
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path, tokenizer, dataset.remove_columns("length"), **group)
    with pytest.raises(ValueError, match="but a list has none"):
        small_trainer(tmp_path, tokenizer, list(dataset), **group)


# ---- what works --------------------------------------------------------------------------------------------------


def test_a_collator_of_the_users_own(tmp_path, tokenizer, dataset):
    given = CanvasCollator(tokenizer=tokenizer, canvas_length=CANVAS, with_answers=True)
    seen = []

    def collate(rows: list) -> dict:
        seen.append(len(rows))
        return given(rows)

    trainer = small_trainer(tmp_path, tokenizer, dataset, options={"data_collator": collate})
    trainer.train()
    assert set(seen) == {2}
    plain = CanvasCollator(tokenizer=tokenizer, canvas_length=CANVAS)
    trainer = small_trainer(tmp_path, tokenizer, dataset, options={"data_collator": plain})
    with pytest.raises(ValueError, match=r"data_collator must give input_ids, .*answer, got .*with_answers=True"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_save_only_model(tmp_path, tokenizer, dataset):
    """There is no state of the optimizer to go on with, but the weights are those of the checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    trainer = small_trainer(tmp_path, tokenizer, dataset, **options)
    trainer.train()
    again = small_trainer(tmp_path, tokenizer, dataset, **options)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert not changed(weights_of(trainer.scorer), weights_of(again.scorer))
    assert not list(tmp_path.glob("checkpoint-2/optimizer*"))


@pytest.mark.parametrize("kind", ["stream", "list", "torch"])
def test_data_of_other_kinds(kind, tmp_path, tokenizer, dataset):
    """Training, the target for the speed, an evaluation and a prediction; as with a data set of `datasets`."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, number):
            return dataset[number]

    made = {"stream": dataset.to_iterable_dataset, "list": lambda: list(dataset), "torch": Rows}
    found = []
    for rows in (dataset, made[kind]()):
        options = {"eval_dataset": rows, "compute_metrics": lambda _: {}}
        sequential = {"train_sampling_strategy": "sequential"}
        trainer = small_trainer(tmp_path, tokenizer, rows, options=options, target_nfe=2.0, **sequential)
        trainer.train()
        trainer.save_model()
        found.append((trainer.scorer.config.law_bias, trainer.evaluate()["eval_loss"]))
        assert len(trainer.predict(rows).predictions) == 8
        assert json.loads((tmp_path / "training_args.json").read_text())["prompt"]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] != 0


def test_several_evaluation_sets(tmp_path, tokenizer, dataset):
    """Each has its own metrics, whatever their prefix, and the best model may be chosen by any of them."""
    sets = {"a": dataset.select(range(2)), "b": dataset.select(range(2, 8))}
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_a_bound"}
    more = {"eval_dataset": sets, "compute_metrics": lambda _: {}, "callbacks": [EarlyStoppingCallback(5)]}
    trainer = small_trainer(tmp_path, tokenizer, dataset, options=more, target_nfe=2.0, **options)
    trainer.train()
    logs = {name: value for line in trainer.state.log_history for name, value in line.items()}
    for name in ("loss", "bound", "kl", "nfe", "generated_nfe"):
        assert f"eval_{name}" not in logs
        assert {f"eval_a_{name}", f"eval_b_{name}"} <= logs.keys()
    assert logs["eval_a_bound"] != logs["eval_b_bound"]
    found = [line["eval_a_bound"] for line in trainer.state.log_history if "eval_a_bound" in line]
    assert trainer.state.best_metric == max(found)
    alone = trainer.evaluate(sets["b"], metric_key_prefix="other")
    assert alone["other_bound"] == trainer.evaluate(sets)["eval_b_bound"]
    assert {"test_nfe", "test_generated_nfe"} <= trainer.predict(sets["a"]).metrics.keys()


@pytest.mark.parametrize("where", ["in the last evaluation", "behind the training"])
def test_nothing_is_lost_by_an_error_at_the_end(where, tmp_path, tokenizer, dataset, caplog):
    options = {"target_nfe": 2.0, "eval_strategy": "steps", "eval_steps": 2}
    trainer = small_trainer(tmp_path, tokenizer, dataset, options={"eval_dataset": dataset}, **options)
    if where == "in the last evaluation":
        trainer.compute_metrics = lambda _: {}["missing"]
    else:
        trainer._mean_nfe = lambda batches: {}["missing"]
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match="missing"):
        trainer.train()
    assert f"What was trained is in {tmp_path}" in caplog.text
    assert not changed(weights_of(OrderScorer.from_pretrained(tmp_path)), weights_of(trainer.scorer))


# ---- the family --------------------------------------------------------------------------------------------------


def test_the_family_of_an_attached_model_holds_in_training(tmp_path, tokenizer, dataset):
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=96).float()
    family = Family(attention="4d", block_size=16)
    attach(model, tokenizer=tokenizer, family=family)
    trainer = small_trainer(tmp_path, tokenizer, dataset, model=model)
    assert trainer.denoiser.family == family
    assert attach(model, tokenizer=tokenizer).denoiser_options["family"] == family  # of a second call, too
    trainer.train()


def test_a_family_for_the_trainer(tmp_path, tokenizer, dataset):
    """A GPT-2 with attention in both directions by its mask, which no table knows."""
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 96, "bos_token_id": MASK, "eos_token_id": MASK}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval()
    family = Family(attention="additive", shift=1)
    with pytest.raises(ValueError, match="model must be a masked language model or of a known family"):
        small_trainer(tmp_path, tokenizer, dataset, model=model)
    trainer = small_trainer(tmp_path, tokenizer, dataset, model=model, family=family)
    assert trainer.denoiser.family == family
    trainer.train()
