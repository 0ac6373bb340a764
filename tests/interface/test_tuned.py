"""Denoiser, adapter and scorer come back by one call, from a folder and from the Hub."""

import pytest
import torch
from huggingface_hub import HfApi
from test_trainer import CANVAS, PROBLEMS, denoising_model, quiet, trainer_of  # noqa: F401 (a fixture)

from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.loading import custom_generate, load_model
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.hub import push_folder
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows

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
    push_folder(folder / kind, f"user/{kind}")
    model = load_model(f"user/{kind}", denoiser=None if kind == "denoiser" else "user/base")
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
    message = r"model must be the denoiser that was tuned along with the scorer of .*load_model\("
    with pytest.raises(ValueError, match=message):
        attach(load_denoiser(folder / "base"), scorer=folder / "denoiser", tokenizer=equation_tokenizer())
    for kind in ("adapter", "denoiser"):
        with pytest.raises(ValueError, match=message):
            custom_generate(load_denoiser(folder / "base"), folder / kind, input_ids=batch, max_new_tokens=4)


def test_a_scorer_without_a_name_needs_a_denoiser(tmp_path):
    OrderScorer(OrderScorerConfig(hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"denoiser must be given: the scorer of .* does not name the one"):
        load_model(tmp_path)


def test_tunings_are_known():
    with pytest.raises(ValueError, match="denoiser_tuning must be one of None, adapter, denoiser, got 'lora'"):
        OrderScorerConfig(denoiser_tuning="lora")
