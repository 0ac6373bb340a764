"""Denoiser, adapter and scorer come back by one call; the denoiser from before is refused, whoever uses it."""

import json
import warnings

import pytest
import torch
from files import write_rows
from huggingface_hub import HfApi
from models import tiny_model
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from test_trainer import CANVAS, PROBLEMS, arguments, denoising_model, quiet, trainer_of  # noqa: F401 (a fixture)
from transformers import GPT2Config, GPT2LMHeadModel

from hf_learned_order.cli.main import main
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.denoisers.probe import distance, probe
from hf_learned_order.evaluation.evaluator import fingerprint
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.loading import custom_generate, load_model
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.cards import Card
from hf_learned_order.sharing.hub import push_folder
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.training.trainer import OrderTrainer

MASK = equation_tokenizer().mask_token_id
SGD = {"optim": "sgd", "learning_rate": 3.0, "max_steps": 2}  # far enough to be told from the start


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=CANVAS).select(range(8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, dataset):
    """Folder of the denoiser from before; of scorers trained along with it, and what that one says then."""
    folder = tmp_path_factory.mktemp("trained")
    denoising_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    batch = tokenizer("12*5;a+30", return_tensors="pt")["input_ids"]
    said = {}
    for kind, options in (("adapter", {"lora": True}), ("denoiser", {"train_denoiser": True}), ("frozen", {})):
        trainer = trainer_of(folder / kind, tokenizer, dataset, **SGD, **options)
        trainer.scorer.config.base_model_name_or_path = str(folder / "base")
        trainer.train()
        trainer.save_model()
        said[kind] = trainer.denoiser.model.eval()(batch).logits.detach()
    assert not torch.allclose(said["adapter"], said["frozen"], atol=1e-2)
    assert not torch.allclose(said["denoiser"], said["frozen"], atol=1e-2)
    return folder, batch, said


BEFORE = r"model must be the denoiser that was tuned along with the scorer of .*load_model\("


def of_base(folder, tokenizer, dataset, *, model=None, peft_config=None, scorer=None, **options) -> OrderTrainer:
    """A trainer for the denoiser of `folder`, or for `model`."""
    return OrderTrainer(
        model=load_denoiser(folder / "base") if model is None else model,
        scorer=scorer,
        args=arguments(folder / "run", **SGD, **options),
        processing_class=tokenizer,
        train_dataset=dataset,
        peft_config=peft_config,
    )


def generated(model, batch):
    return model.generate(batch, sampler="learned_order", max_new_tokens=8, max_denoising_steps=3, seed=0)


@pytest.mark.parametrize("kind", ["adapter", "denoiser", "frozen"])
def test_one_call_brings_all(kind, trained):
    folder, batch, said = trained
    model = load_model(folder / kind)
    torch.testing.assert_close(model(batch).logits, said[kind])
    assert model.order_scorer.config.denoiser_tuning == (None if kind == "frozen" else kind)
    assert generated(model, batch).shape == (1, batch.shape[1] + 8)


@pytest.mark.parametrize("kind", ["adapter", "denoiser", "frozen"])
def test_from_the_hub(kind, trained, hub):
    folder, batch, said = trained
    HfApi().create_repo("user/base")
    HfApi().upload_folder(repo_id="user/base", folder_path=folder / "base")
    if kind != "denoiser":
        with pytest.warns(UserWarning, match=r"its denoiser is named by a folder, .*base, which nobody else has: push"):
            push_folder(folder / kind, f"user/{kind}")
    push_folder(folder / kind, f"user/{kind}", card=Card(base_model="user/base"))
    model = load_model(f"user/{kind}")
    assert model.order_scorer.config.base_model_name_or_path == "user/base"
    torch.testing.assert_close(model(batch).logits, said[kind])


def test_attach_loads_the_adapter_that_lies_beside(trained):
    folder, batch, said = trained
    plain = load_denoiser(folder / "base")
    model = attach(plain, scorer=folder / "adapter", tokenizer=equation_tokenizer())
    assert model is plain
    torch.testing.assert_close(model(batch).logits, said["adapter"])
    again = attach(model, scorer=folder / "adapter", tokenizer=equation_tokenizer())  # has it already
    torch.testing.assert_close(again(batch).logits, said["adapter"])
    assert torch.equal(generated(model, batch), generated(load_model(folder / "adapter"), batch))


def test_attach_takes_the_tuned_denoiser(trained):
    folder, batch, said = trained
    model = attach(
        load_denoiser(folder / "denoiser" / "denoiser"), scorer=folder / "denoiser", tokenizer=equation_tokenizer()
    )
    torch.testing.assert_close(model(batch).logits, said["denoiser"])


def test_the_denoiser_from_before_is_refused(trained):
    folder, batch, _ = trained
    with pytest.raises(ValueError, match=BEFORE):
        attach(load_denoiser(folder / "base"), scorer=folder / "denoiser", tokenizer=equation_tokenizer())
    for kind in ("adapter", "denoiser"):
        with pytest.raises(ValueError, match=BEFORE):
            custom_generate(load_denoiser(folder / "base"), folder / kind, input_ids=batch, max_new_tokens=4)


def test_a_scorer_without_a_name_needs_a_denoiser(tmp_path):
    OrderScorer(OrderScorerConfig(hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"denoiser must be given: the scorer of .* does not name the one"):
        load_model(tmp_path)


def test_tunings_are_known():
    with pytest.raises(ValueError, match="denoiser_tuning must be one of None, adapter, denoiser, got 'lora'"):
        OrderScorerConfig(denoiser_tuning="lora")


# ---- known by what it says, not by its name ----------------------------------------------------------------------


def test_a_probe_tells_denoisers_apart(trained):
    folder, _, _ = trained
    base = Denoiser(load_denoiser(folder / "base"), mask_token_id=MASK)
    said = probe(base)
    config = OrderScorerConfig.from_pretrained(folder / "denoiser")
    assert distance(said, config.base_model_probe) < 1e-5
    assert distance(said, config.denoiser_probe) > 1e-3
    assert distance(said, probe(base)) == 0
    short = denoising_model(equation_tokenizer())
    short.config.max_position_embeddings = 15
    assert probe(Denoiser(short, mask_token_id=MASK)) is None
    assert distance(said, said[:16]) == float("inf")
    with pytest.raises(ValueError, match=r"denoiser_probe must be what `denoisers.probe` gives, got 'nonsense!'"):
        OrderScorerConfig(denoiser_probe="nonsense!")


def test_a_merged_denoiser_is_recognised(trained, tmp_path):
    """It is not given the adapter once more, in memory and from a folder, whoever loads it."""
    folder, batch, said = trained
    PeftModel.from_pretrained(
        load_denoiser(folder / "base"), folder / "adapter" / "adapter"
    ).merge_and_unload().save_pretrained(tmp_path)
    for load in (
        lambda: attach(load_denoiser(tmp_path), scorer=folder / "adapter", tokenizer=equation_tokenizer()),
        lambda: load_model(folder / "adapter", denoiser=tmp_path),
        lambda: attach(load_denoiser(tmp_path), OrderScorer.from_pretrained(folder / "adapter"), mask_token_id=MASK),
    ):
        torch.testing.assert_close(load()(batch).logits, said["adapter"], atol=1e-3, rtol=1e-3)
    settings = {"input_ids": batch, "max_new_tokens": 8, "max_denoising_steps": 3, "seed": 0}
    ids = custom_generate(load_denoiser(tmp_path), folder / "adapter", **settings)
    assert torch.equal(ids, generated(load_model(folder / "adapter"), batch))


@pytest.mark.parametrize("kind", ["adapter", "denoiser"])
def test_a_scorer_in_memory_refuses_the_one_from_before(kind, trained, tmp_path):
    folder, _, _ = trained
    load_denoiser(folder / "base").save_pretrained(tmp_path)  # under another name
    scorer = OrderScorer.from_pretrained(folder / kind)
    with pytest.raises(ValueError, match=BEFORE):
        attach(load_denoiser(tmp_path), scorer, tokenizer=equation_tokenizer())
    if kind == "denoiser":
        with pytest.raises(ValueError, match=BEFORE):
            attach(load_denoiser(tmp_path), scorer=folder / kind, tokenizer=equation_tokenizer())


def test_another_denoiser_is_told(trained):
    folder, _, _ = trained
    other = load_denoiser(folder / "base")
    other.get_output_embeddings().weight.data.mul_(-1.0)
    with pytest.warns(UserWarning, match=r"scorer of .*frozen was trained with .*base as it predicted then, but"):
        attach(other, scorer=folder / "frozen", tokenizer=equation_tokenizer())


def test_scorers_of_before_have_no_probe(trained, tmp_path):
    """They go by names, and by whether there is an adapter."""
    folder, batch, said = trained
    scorer = OrderScorer.from_pretrained(folder / "denoiser")
    scorer.config.denoiser_probe = scorer.config.base_model_probe = None
    scorer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=BEFORE):
        attach(load_denoiser(folder / "base"), scorer=tmp_path, tokenizer=equation_tokenizer())
    model = attach(load_denoiser(folder / "denoiser" / "denoiser"), scorer=tmp_path, tokenizer=equation_tokenizer())
    torch.testing.assert_close(model(batch).logits, said["denoiser"])


# ---- whoever uses a scorer uses its denoiser ---------------------------------------------------------------------


def test_the_harness_takes_what_was_tuned_along(trained):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from hf_learned_order.interface.harness import LearnedOrderLM

    folder, batch, said = trained
    base = str(folder / "base")
    model = LearnedOrderLM(base, scorer=str(folder / "adapter")).denoiser.model
    torch.testing.assert_close(model(batch).logits, said["adapter"])
    for scorer in (str(folder / "denoiser"), OrderScorer.from_pretrained(folder / "adapter")):
        with pytest.raises(ValueError, match=BEFORE):
            LearnedOrderLM(base, scorer=scorer)


def evaluated(folder, output, *more: str) -> int:
    write_rows(folder / "train.jsonl", 410, 0)
    options = ["--samplers", "learned_order", "--nfe", "3", "--limit", "2", "--tuning_limit", "2", "--seeds", "1"]
    options += ["--budget_shares", "--no_bound", "--canvas_length", str(CANVAS), "--output_dir", str(output)]
    files = ["--train_file", str(folder / "train.jsonl"), "--test_file", str(folder / "train.jsonl")]
    return main(["evaluate", "--model", str(folder / "base"), *files, *options, *more])


def test_evaluate_and_push_take_what_was_tuned_along(trained, tmp_path, hub, capsys):
    folder, _, _ = trained
    scorer = folder / "adapter"
    assert evaluated(folder, tmp_path, "--scorer", str(scorer)) == 0
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["model_fingerprint"] == fingerprint(load_model(scorer))
    card = Card(results=tmp_path / "results.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        push_folder(scorer, "user/scorer", card=card)
        before = OrderScorerConfig.from_pretrained(scorer).base_model_probe
        (tmp_path / "settings.json").write_text(json.dumps({**settings, "denoiser_probe": before}))
        with pytest.raises(ValueError, match="results must be those of the denoiser that was tuned along"):
            push_folder(scorer, "user/scorer", card=card)
    capsys.readouterr()
    assert evaluated(folder, tmp_path / "other", "--scorer", str(folder / "denoiser")) == 2
    assert "model must be the denoiser that was tuned along" in capsys.readouterr().err
    assert evaluated(folder, tmp_path / "other", "--scorer", str(folder / "frozen"), str(scorer)) == 2
    assert "--scorer must be one where the denoiser was tuned along, as with" in capsys.readouterr().err


def test_a_trainer_takes_what_was_tuned_along_or_refuses(trained, tokenizer, dataset):
    folder, batch, said = trained
    for kind in ("adapter", "denoiser"):
        with pytest.raises(ValueError, match=BEFORE):
            of_base(folder, tokenizer, dataset, scorer=OrderScorer.from_pretrained(folder / kind))
    # gone on with: the denoiser is named as it is now
    where = folder / "denoiser" / "denoiser"
    scorer = OrderScorer.from_pretrained(folder / "denoiser")
    trainer = of_base(folder, tokenizer, dataset, scorer=scorer, model=load_denoiser(where))
    trainer.save_model()
    assert scorer.config.base_model_name_or_path == str(where)
    torch.testing.assert_close(load_model(folder / "run")(batch).logits, said["denoiser"])


# ---- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules="all-linear", use_dora=True),
        LoraConfig(r=2, target_modules="all-linear", modules_to_save=["head"], bias="all"),
        IA3Config(target_modules=["Wqkv", "Wo"], feedforward_modules=[]),
    ],
    ids=["dora", "modules_to_save", "ia3"],
)
def test_adapters_of_other_kinds_are_trained_and_come_back(config, trained, tokenizer, dataset):
    folder, batch, _ = trained
    trainer = of_base(folder, tokenizer, dataset, peft_config=config)
    trainer.train()
    trainer.save_model()
    expected = trainer.denoiser.model.eval()(batch).logits
    assert (expected - load_denoiser(folder / "base")(batch).logits).abs().max() > 1e-3
    assert torch.equal(load_model(folder / "run")(batch).logits, expected)


def own_adapter(folder, way: str):
    """The denoiser of `folder` with an adapter that it had before any scorer: by PEFT, by transformers, by name."""
    if way == "peft":
        return PeftModel.from_pretrained(load_denoiser(folder / "base"), folder / "own")
    if way == "name":
        return load_denoiser(folder / "own")
    model = load_denoiser(folder / "base")
    model.load_adapter(str(folder / "own"))
    return model


@pytest.mark.parametrize("way", ["peft", "transformers", "name"])
def test_a_denoiser_with_an_adapter_of_its_own_comes_back(way, trained, tokenizer, dataset):
    folder, batch, _ = trained
    own = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_denoiser(folder / "base"), own).eval()
    model.save_pretrained(folder / "own")
    expected = model(batch).logits
    trainer = of_base(folder, tokenizer, dataset, model=own_adapter(folder, way))
    trainer.train()
    trainer.save_model()
    assert not any(parameter.requires_grad for parameter in trainer.denoiser.parameters())
    assert trainer.scorer.config.denoiser_tuning == "adapter"
    assert trainer.scorer.config.base_model_name_or_path == str(folder / ("own" if way == "name" else "base"))
    torch.testing.assert_close(load_model(folder / "run")(batch).logits, expected)
    attached = attach(load_denoiser(folder / "base"), scorer=folder / "run", tokenizer=tokenizer)
    torch.testing.assert_close(attached(batch).logits, expected)


def test_two_adapters_are_refused(trained, tokenizer, dataset):
    folder, _, _ = trained
    config = LoraConfig(r=2, target_modules="all-linear")
    for options in ({"peft_config": config}, {"train_denoiser": True}):
        message = f"{next(iter(options))} must be .* with a model that has an adapter .*merge_and_unload"
        with pytest.raises(ValueError, match=message):
            of_base(folder, tokenizer, dataset, model=get_peft_model(load_denoiser(folder / "base"), config), **options)


def test_a_family_that_was_given_comes_back(tmp_path, tokenizer, dataset):
    """A model that the table does not know, and one that it has otherwise."""
    special = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, **special)).eval()
    llama = tiny_model("llama", vocab_size=len(tokenizer)).float()
    batch = tokenizer("12*5;a+30", return_tensors="pt")["input_ids"]
    for model, family in ((gpt, Family(attention="4d")), (llama, Family(attention="4d", block_size=16))):
        folder = tmp_path / model.config.model_type
        model.save_pretrained(folder / "base")
        trainer = OrderTrainer(
            model=model,
            scorer=None if model is gpt else scorer_without_family(model),
            args=arguments(folder / "scorer", **SGD),
            processing_class=tokenizer,
            train_dataset=dataset,
            family=family,
        )
        trainer.scorer.config.base_model_name_or_path = str(folder / "base")
        trainer.train()
        trainer.save_model()
        loaded = load_model(folder / "scorer")
        assert loaded._denoiser().family == OrderScorerConfig.from_pretrained(folder / "scorer").family == family
        expected = generated(attach(model, trainer.scorer, mask_token_id=MASK, family=family), batch)
        assert generated(loaded, batch).tolist() == expected.tolist()
    plain = load_denoiser(folder / "base")
    assert attach(plain, folder / "scorer", tokenizer=tokenizer)._denoiser().family == family
    with pytest.raises(ValueError, match="scorer was trained with a denoiser that was called in another way: its fam"):
        attach(load_denoiser(folder / "base"), folder / "scorer", tokenizer=tokenizer, family=Family(attention="4d"))


def scorer_without_family(model):
    return OrderScorer.for_denoiser(Denoiser(model, mask_token_id=MASK), hidden_size=8, num_attention_heads=2)


def test_a_family_in_a_configuration_is_checked():
    with pytest.raises(ValueError, match=r"denoiser_family must hold the fields of a Family, .*: attention must"):
        OrderScorerConfig(denoiser_family={"attention": "5d"})
    with pytest.raises(TypeError, match="denoiser_family must be of type"):
        OrderScorerConfig(denoiser_family="llama")
