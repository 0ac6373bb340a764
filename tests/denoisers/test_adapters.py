"""Adapters of PEFT: each kind that is taken comes back from its folder to the last bit; the others are refused."""

import json

import peft
import pytest
import torch
from models import tiny_model, tiny_tokenizer
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from hf_learned_order.denoisers.adapters import (
    KINDS,
    WEIGHTS,
    adapter_of,
    has_adapter,
    put_adapter,
    save_adapter,
    set_adapter_weights,
)
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer

ALL = {"target_modules": "all-linear"}
ADAPTERS = {
    "lora": LoraConfig(r=2, **ALL),
    "rslora": LoraConfig(r=2, use_rslora=True, rank_pattern={"Wo": 4}, alpha_pattern={"Wo": 3}, **ALL),
    "dora": LoraConfig(r=2, use_dora=True, **ALL),
    "biases": LoraConfig(r=2, bias="all", **ALL),
    "whole modules": LoraConfig(r=2, modules_to_save=["head"], **ALL),
    "tokens along": LoraConfig(r=2, trainable_token_indices=[5, 9], **ALL),
    "embeddings": LoraConfig(r=2, target_modules=["tok_embeddings", "Wqkv"]),
    "one layer": LoraConfig(r=2, layers_to_transform=[0], target_modules=["Wqkv"]),
    "dropout": LoraConfig(r=2, lora_dropout=0.5, **ALL),
    **{f"from {start}": LoraConfig(r=2, init_lora_weights=start, **ALL) for start in (False, "gaussian", "orthogonal")},
    **{f"from {start}": LoraConfig(r=2, init_lora_weights=start, **ALL) for start in ("olora", "pissa")},
    "loha": peft.LoHaConfig(r=2, **ALL),
    "lokr": peft.LoKrConfig(r=2, **ALL),
    "ia3": IA3Config(target_modules=["Wqkv", "Wi"], feedforward_modules=["Wi"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=4, **ALL),
    "hra": peft.HRAConfig(r=2, **ALL),
    "norms": peft.LNTuningConfig(target_modules=["norm"]),
    "fourier": peft.FourierFTConfig(n_frequency=8, target_modules=["Wo"]),
    "tokens": peft.TrainableTokensConfig(token_indices=[5, 9], target_modules=["tok_embeddings"]),
}
REFUSED = {
    "prompt": (peft.PromptTuningConfig(num_virtual_tokens=2), "peft_config must be of one of the kinds LORA, .*PROMPT"),
    "vera": (peft.VeraConfig(r=4, **ALL), "peft_config must be of one of the kinds LORA, .*, got VERA"),
    "adalora": (peft.AdaLoraConfig(total_step=9, **ALL), "peft_config must be of one of the kinds .*, got ADALORA"),
    "loftq": (
        LoraConfig(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}, **ALL),
        "init_lora_weights must be one of True, False, .*, got 'loftq'",
    ),
    "copies": (
        LoraConfig(layer_replication=[[0, 2], [1, 2]], **ALL),
        r"layer_replication of peft_config must be None, got \[\[0, 2\], \[1, 2\]\]",
    ),
}
IDS = torch.tensor([[5, 9, 7, 3, 3, 12], [3, 30, 9, 9, 8, 3]])


def base():
    return tiny_model("modernbert").float()


def tuned(config, model=None, **options) -> PeftModel:
    """Every weight of it moved, as by a training."""
    torch.manual_seed(1)
    model = get_peft_model(base() if model is None else model, config, **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def test_there_is_a_case_for_each_kind():
    assert {config.peft_type.value for config in ADAPTERS.values()} == set(KINDS)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's, of each norm
@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_comes_back(kind, tmp_path):
    model = tuned(ADAPTERS[kind])
    expected = model(IDS).logits
    assert (expected - base()(IDS).logits).abs().max() > 0.5
    save_adapter(model, tmp_path, model.state_dict())
    into = base()
    put_adapter(into, tmp_path)
    assert has_adapter(into)
    assert not into.training
    assert not any(parameter.requires_grad for parameter in into.parameters())
    assert torch.equal(into(IDS).logits, expected)
    # what PEFT itself reads, and where a training goes on
    assert torch.equal(PeftModel.from_pretrained(base(), tmp_path).eval()(IDS).logits, expected)
    fresh = get_peft_model(base(), ADAPTERS[kind]).eval()
    set_adapter_weights(fresh, load_file(tmp_path / WEIGHTS), tmp_path)
    assert torch.equal(fresh(IDS).logits, expected)
    # once more, from a model without PEFT's wrapper
    save_adapter(into, tmp_path / "again", into.state_dict())
    again = base()
    put_adapter(again, tmp_path / "again")
    assert torch.equal(again(IDS).logits, expected)


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused(kind):
    config, message = REFUSED[kind]
    model = base()
    model.peft_config = {"default": config}
    with pytest.raises(ValueError, match=message):
        adapter_of(model)


def test_a_name_of_its_own(tmp_path):
    model = tuned(LoraConfig(r=2, **ALL), adapter_name="mine")
    save_adapter(model, tmp_path, model.state_dict())
    into = base()
    put_adapter(into, tmp_path)
    assert torch.equal(into(IDS).logits, model(IDS).logits)
    model.add_adapter("other", LoraConfig(r=2, **ALL))
    with pytest.raises(ValueError, match=r"model must have one adapter, got 2 \(mine, other\): merge what belongs"):
        adapter_of(model)


@pytest.mark.parametrize("change", ["missing", "too many"])
def test_weights_have_to_be_those_of_the_configuration(change, tmp_path):
    model = tuned(LoraConfig(r=2, **ALL))
    save_adapter(model, tmp_path, model.state_dict())
    weights = load_file(tmp_path / WEIGHTS)
    if change == "missing":
        del weights[next(iter(weights))]
    else:
        weights["base_model.model.model.layers.7.attn.Wo.lora_A.weight"] = torch.zeros(2, 32)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"must hold the weights that its .* in this model, but 1 are missing or"):
        put_adapter(base(), tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A base model with its tokenizer, and an adapter for it."""
    base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = tuned(LoraConfig(r=2, use_dora=True, **ALL), load_denoiser(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model(IDS).logits


def test_the_folder_of_an_adapter_is_a_denoiser(folder):
    path, expected = folder
    model = load_denoiser(path / "adapter")
    assert torch.equal(model(IDS).logits, expected)
    assert model.config.name_or_path == str(path / "adapter")
    assert torch.equal(load_denoiser(path, subfolder="adapter")(IDS).logits, expected)
    assert load_tokenizer(path / "adapter").mask_token_id == tiny_tokenizer().mask_token_id


def test_an_adapter_that_names_no_base_model(folder):
    path, _ = folder
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    (path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"its adapter_config.json must name a base_model_name_or_path, got None"):
        load_denoiser(path / "adapter")
    with pytest.raises(ValueError, match="tokenizer"):  # transformers' own
        load_tokenizer(path / "adapter")


def test_an_adapter_on_the_hub(folder, hub):
    path, expected = folder
    tuned(LoraConfig(r=2, use_dora=True, **ALL), load_denoiser(path / "base")).push_to_hub("user/adapter")
    model = load_denoiser("user/adapter")
    assert torch.equal(model(IDS).logits, expected)
    assert model.config.name_or_path == "user/adapter"
    assert model.config._commit_hash == hub.repositories["user/adapter"].branches["main"]
    assert load_tokenizer("user/adapter").mask_token_id == tiny_tokenizer().mask_token_id
