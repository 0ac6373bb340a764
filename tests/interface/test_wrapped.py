"""Models whose weights are elsewhere, that are compiled, or in PEFT's wrappers decode as the plain ones."""

import accelerate
import pytest
import torch
from models import MASK, tiny_model
from peft import LoraConfig, PeftMixedModel, get_peft_model
from test_attach import assert_equal, generated, scorer_for, tokenized
from torch import nn
from transformers import LlamaForCausalLM

from hf_learned_order.denoisers.checkpoints import check_inv_freq
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.wrappers import base_of, device_of, dtype_of, is_compiled
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.attach import attach, detach

FAMILIES = ("bert", "llama")


def plain(family, **config):
    model = tiny_model(family)
    return attach(model, scorer_for(tiny_model(family), **config), mask_token_id=MASK)


def decodes_as(model, expected, **options):
    for sampler in ("top_prob", "learned_order"):
        assert_equal(generated(model, sampler, seed=1, **options), generated(expected, sampler, seed=1, **options))


class TestOffloaded:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_after_attach(self, family):
        model = plain(family)
        accelerate.cpu_offload(model, execution_device="cpu")
        assert model.device.type == "meta"
        decodes_as(model, plain(family), do_sample=True)
        assert {weight.device.type for weight in model.order_scorer.parameters()} == {"cpu"}
        accelerate.hooks.remove_hook_from_submodules(model)
        decodes_as(model, plain(family))

    @pytest.mark.parametrize("places", [{"": "disk"}, {"model": "disk", "lm_head": "cpu"}], ids=str)
    def test_before_attach(self, places, tmp_path):
        tiny_model("llama").save_pretrained(tmp_path / "model")
        options = {"dtype": torch.float64, "device_map": places, "offload_folder": str(tmp_path / "offload")}
        model = load_denoiser(tmp_path / "model", **options)
        assert any(weight.is_meta for weight in model.parameters())
        attach(model, scorer_for(tiny_model("llama")), mask_token_id=MASK)
        decodes_as(model, plain("llama"))
        decodes_as(model, plain("llama"), block_length=3, kv_cache="dual", max_denoising_steps=6)
        inputs = {name: value for name, value in tokenized(padding_side="left").items() if name != "token_type_ids"}
        assert (
            model.generate(**inputs, max_new_tokens=3).tolist()
            == plain("llama").generate(**inputs, max_new_tokens=3).tolist()
        )

    def test_where_inputs_go(self):
        model = tiny_model("llama")
        assert device_of(model) == torch.device("cpu")
        assert dtype_of(model) == torch.float64
        accelerate.cpu_offload_with_hook(model, execution_device=torch.device("cuda:0"))  # moves when it is called
        assert device_of(model) == torch.device("cuda:0")
        sequential = tiny_model("bert")
        hook = accelerate.hooks.AlignDevicesHook(execution_device=None, io_same_device=True)
        accelerate.hooks.add_hook_to_module(sequential, hook)
        accelerate.hooks.add_hook_to_module(sequential, accelerate.hooks.ModelHook(), append=True)
        assert device_of(sequential) == torch.device("cpu")

    def test_the_first_weight_is_not_asked(self):
        """It may lie elsewhere, or be of another type: of a quantised layer, an adapter."""
        model = tiny_model("llama")
        model._parameters["first"] = nn.Parameter(torch.zeros(1, device="meta", dtype=torch.float16))
        assert model.device.type == "meta"
        assert Denoiser(model, mask_token_id=MASK).device == torch.device("cpu")
        assert Denoiser(model, mask_token_id=MASK).dtype == torch.float64

    def test_code_that_names_no_embeddings(self):
        model = tiny_model("llama")
        model.get_input_embeddings = lambda: (_ for _ in ()).throw(NotImplementedError)
        assert device_of(model) == torch.device("cpu")
        assert dtype_of(model) == torch.float64

    def test_without_weights(self):
        with torch.device("meta"):
            model = LlamaForCausalLM(tiny_model("llama").config)
        with pytest.raises(ValueError, match=r"model must have its weights, but those of LlamaForCausalLM are on the"):
            attach(model, mask_token_id=MASK)

    def test_rotary_frequencies_that_are_elsewhere(self):
        class Rotary(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("inv_freq", torch.ones(8, device="meta"), persistent=False)

        model = tiny_model("llama")
        model.rotary = Rotary()
        check_inv_freq(model)


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def in_place(model):
    model.compile(backend="eager")
    return model


class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_wrapped_before_attach(self):
        """transformers' own `generate`, too, is that of what is wrapped."""
        model = torch.compile(tiny_model("llama"), backend="eager")
        assert attach(model, scorer_for(tiny_model("llama")), mask_token_id=MASK) is model
        decodes_as(model, plain("llama"))
        assert Denoiser(model, mask_token_id=MASK).model is model._orig_mod
        assert detach(model) is model
        assert type(model._orig_mod) is LlamaForCausalLM

    @pytest.mark.slow  # what is compiled anew for each length takes seconds
    @pytest.mark.parametrize(
        ("how", "layers"),
        [(compiled_forward, [0, -1]), (compiled_layers, [0, -1]), (in_place, None)],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_in_place(self, how, layers):
        """Hooks of a call would be compiled in with it."""
        model = how(tiny_model("llama"))
        assert is_compiled(model)
        options = {} if layers is None else {"hidden_layers": layers}
        attach(model, scorer_for(tiny_model("llama"), **options), mask_token_id=MASK)
        decodes_as(model, plain("llama", **options))

    @pytest.mark.slow  # as above
    @pytest.mark.parametrize("options", [{"task_type": "CAUSAL_LM"}, {"mixed": True}], ids=str)
    def test_within_an_adapter(self, options):
        def adapted(model):
            torch.manual_seed(0)
            lora = LoraConfig(
                r=2, target_modules=["q_proj"], init_lora_weights=False, task_type=options.get("task_type")
            )
            wrapped = get_peft_model(model, lora, mixed=options.get("mixed", False)).eval()
            return attach(wrapped, scorer_for(tiny_model("llama")), mask_token_id=MASK)

        model = adapted(torch.compile(tiny_model("llama"), backend="eager"))
        decodes_as(model, adapted(tiny_model("llama")))
        assert model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)

    def test_hidden_states_that_are_not_returned(self):
        model = tiny_model("llama")
        forward = model.forward
        model.forward = lambda *args, output_hidden_states=None, **kwargs: forward(*args, **kwargs)
        model.forward._torchdynamo_orig_callable = forward
        with pytest.raises(ValueError, match="model must not be compiled with a scorer that sees hidden states: Llama"):
            Denoiser(model, mask_token_id=MASK)(torch.ones(1, 3).long(), torch.ones(1, 3), 1, hidden_states=True)


class TestAdapters:
    def test_mixed(self):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        base = tiny_model("llama")
        model = get_peft_model(base, config, mixed=True).eval()
        assert isinstance(model, PeftMixedModel)
        assert base_of(model) is base
        assert attach(model, scorer_for(tiny_model("llama")), mask_token_id=MASK) is model
        got = generated(model, "learned_order", seed=1)
        assert got.sequences.tolist() != generated(plain("llama"), "learned_order", seed=1).sequences.tolist()
        torch.manual_seed(0)
        single = attach(
            get_peft_model(tiny_model("llama"), config).eval(), scorer_for(tiny_model("llama")), mask_token_id=MASK
        )
        assert_equal(got, generated(single, "learned_order", seed=1))
        inputs = torch.tensor([[5, 6]])
        assert model.generate(inputs, max_new_tokens=2).tolist() == single.generate(inputs, max_new_tokens=2).tolist()
        assert isinstance(detach(model), PeftMixedModel)
