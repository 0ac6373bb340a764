"""The table of families, and models that come with their own code, tested on stand-ins for that code."""

import pytest
import torch
from models import EOS, MASK, PAD, VOCAB, WORDS, special_tokens, tiny_model
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from published import DREAM, stand_in, write_checkpoint, write_remote_code
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.denoisers import families
from hf_learned_order.denoisers.attention import heeds_padding
from hf_learned_order.denoisers.checkpoints import check_inv_freq
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import FAMILIES, Family, find_family, register_family
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.attach import attach

# class to: block size, shift, options of its configuration
REMOTE = {
    "LLaDAMoEModelLM": (None, 0, {}),
    "LLaDA2MoeModelLM": (4, 0, {"block_size": 4}),
    "SDARForCausalLM": (4, 0, {}),
    "Fast_dLLM_QwenForCausalLM": (4, 1, {"bd_size": 4}),
    "MDLM": (None, 0, {}),
}
BLOCKS = [name for name, (block_size, *_) in REMOTE.items() if block_size]
NO_MASK = ("Fast_dLLM_QwenForCausalLM", "MDLM")


def words(*shape: int) -> torch.Tensor:
    return torch.randint(WORDS.start, WORDS.stop, shape, generator=torch.Generator().manual_seed(2))


def remote(name: str, **config):
    return stand_in(name, **REMOTE[name][2], **config)


def called_by_hand(name: str, model, ids: torch.Tensor) -> torch.Tensor:
    """One row, called as the published generation code calls it."""
    length = ids.shape[1]
    grid = [[column // 4 <= row // 4 for column in range(length)] for row in range(length)]
    blocks, positions = torch.tensor(grid), torch.arange(length)[None]
    calls = {
        "LLaDAMoEModelLM": lambda: model(ids, attention_mask=torch.ones_like(ids)),
        "LLaDA2MoeModelLM": lambda: model(
            ids, attention_mask=blocks.float().log()[None, None], position_ids=positions, use_cache=False
        ),
        "SDARForCausalLM": lambda: model(ids, attention_mask=blocks.float()[None], position_ids=positions),
        "Fast_dLLM_QwenForCausalLM": lambda: model(input_ids=ids, block_size=4),
        "MDLM": lambda: model(ids, torch.zeros(1), return_dict=True),
    }
    with torch.no_grad():
        return calls[name]().logits


@pytest.mark.parametrize("name", REMOTE)
class TestRemoteCode:
    def test_loaded_only_when_trusted_then_verified_and_decoded_with(self, name, tmp_path):
        folder = write_remote_code(tmp_path, name, **REMOTE[name][2])
        with pytest.raises(ValueError, match=f"trust_remote_code must be True to load .* for its {name}"):
            load_denoiser(folder)
        model = attach(load_denoiser(folder, trust_remote_code=True))
        assert type(model).__name__ == name
        ids = words(2, 5)
        prompt = torch.cat([ids[:, :1], ids], 1)
        out = model.generate(prompt, sampler="top_prob", max_new_tokens=6, return_dict_in_generate=True)
        assert (out.sequences != MASK).all()
        assert torch.equal(out.sequences[:, :6], prompt)
        expected = called_by_hand(name, remote(name), ids[:1])
        torch.testing.assert_close(called_by_hand(name, model, ids[:1]), expected)

    def test_the_call_that_was_published(self, name):
        model, ids = remote(name), words(1, 11)
        shift = REMOTE[name][1]
        denoiser = Denoiser(model)
        logits, hidden = denoiser(ids, torch.ones_like(ids), 3, hidden_states=True)
        torch.testing.assert_close(logits, called_by_hand(name, model, ids)[:, 3 - shift : 11 - shift])
        torch.testing.assert_close(denoiser(ids, torch.ones_like(ids), 3)[0], logits)
        assert hidden.shape == (1, 8, denoiser.hidden_size) == (1, 8, 32)
        torch.testing.assert_close(model.lm_head(hidden), logits)
        assert denoiser.max_length == 64

    def test_hidden_states_by_number(self, name):
        """Those of the trunk, also of models that return none."""
        model, ids, kept = remote(name), words(1, 11), []
        trunk = model.trunk
        model.trunk = lambda *args, **kwargs: kept.append(trunk(*args, **kwargs)) or kept[-1]
        _, hidden = Denoiser(model)(ids, torch.ones_like(ids), 3, hidden_states=(1, -1, 0))
        start = 3 - REMOTE[name][1]
        expected = [kept[0][index][:, start : start + 8] for index in (1, -1, 0)]
        assert torch.equal(hidden, torch.cat(expected, -1))
        assert len({state.sum().item() for state in kept[0]}) == 3

    def test_padding(self, name):
        """Rows of unequal length: the same as alone, on a grid that starts at their first token; or refused."""
        denoiser, ids, mask = Denoiser(remote(name)), words(2, 11), torch.ones(2, 11, dtype=torch.long)
        mask[1, :3] = 0
        if name in NO_MASK:
            with pytest.raises(ValueError, match=f"attention_mask must be 1 everywhere: {name} takes none"):
                denoiser(ids, mask, 5)
            return
        got, hidden = denoiser(ids, mask, 5, hidden_states=True)
        alone = denoiser(ids[1:, 3:], mask[1:, 3:], 2, hidden_states=True)
        torch.testing.assert_close(got[1:], alone[0])
        torch.testing.assert_close(hidden[1:], alone[1])
        torch.testing.assert_close(got[:1], denoiser(ids[:1], mask[:1], 5)[0])

    def test_causal_code_is_refused(self, name):
        with pytest.raises(ValueError, match=f"model must attend in both directions, but in {name} the last token"):
            attach(remote(name, forced="causal"))

    def test_a_model_in_training_mode_is_checked_and_stays_in_it(self, name):
        model = remote(name).train()
        assert attach(model).training

    def test_facts(self, name):
        block_size, shift, _ = REMOTE[name]
        family = Denoiser(remote(name)).family
        assert (family.block_size, family.shift) == (block_size, shift)
        published = {"LLaDAMoEModelLM": 156895, "LLaDA2MoeModelLM": 156895, "SDARForCausalLM": 151669, "MDLM": 50257}
        assert FAMILIES[name].mask_token_id == published.get(name, 151665)


class TestIgnoredMasks:
    """A model that does not heed its attention mask decodes prompts of one length, and refuses others."""

    IDS, MASK = words(2, 5), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    OPTIONS = {"sampler": "top_prob", "max_new_tokens": 4}

    def refused(self, model):
        return pytest.raises(
            ValueError, match=f"attention_mask must be 1 everywhere with {type(model).__name__}, which does not ignore"
        )

    def test_code_that_ignores_it(self):
        model = attach(remote("LLaDAMoEModelLM", forced="full"))
        assert model.generate(self.IDS, **self.OPTIONS).shape == (2, 9)
        with self.refused(model):
            model.generate(self.IDS, self.MASK, **self.OPTIONS)
        with self.refused(model):
            model.generate(
                self.IDS, guidance_scale=2.0, negative_prompt_ids=self.IDS, negative_prompt_attention_mask=self.MASK,
                **self.OPTIONS,
            )  # fmt: skip
        with self.refused(model):  # without attach, at the first padded batch
            decode(Denoiser(model), self.IDS, self.MASK, sampler=TopProbSampler(), max_new_tokens=4)

    def test_the_authors_class_of_llada_gets_the_hint_to_load_denoiser(self):
        model = attach(stand_in("LLaDAModelLM"))
        assert model.generate(self.IDS, **self.OPTIONS).shape == (2, 9)
        hint = r"load_denoiser\(...\) loads the weights of LLaDAModelLM as transformers' LlamaForCausalLM, which can"
        with pytest.raises(ValueError, match=rf"attention_mask must be 1 everywhere with LLaDAModelLM, .*; {hint}"):
            model.generate(self.IDS, self.MASK, **self.OPTIONS)
        with pytest.raises(ValueError, match=rf"kv_cache must be None with the authors' own LLaDAModelLM, .*; {hint}"):
            model.generate(self.IDS, block_length=2, kv_cache="dual", **self.OPTIONS)
        with pytest.raises(ValueError, match=rf"model must attend in both directions, .*; {hint}"):
            attach(stand_in("LLaDAModelLM", forced="causal"))

    @pytest.mark.parametrize("family", ["bert", "llama", "qwen2"])
    def test_asked_once_and_of_each_way_to_call_it(self, family):
        model, calls = tiny_model(family), []
        attach(model, mask_token_id=MASK)
        model.register_forward_hook(lambda *_: calls.append(1))
        assert heeds_padding(Denoiser(model, mask_token_id=MASK))
        assert not calls
        if family == "llama":  # causal where it gets an encoder's mask: the padding is ruled out all the same
            assert heeds_padding(Denoiser(model, mask_token_id=MASK, family=Family()))
            assert len(calls) == 2

    def test_low_precision_is_no_reason(self):
        for family in ("bert", "llama"):
            assert heeds_padding(Denoiser(tiny_model(family).bfloat16(), mask_token_id=MASK))


@pytest.mark.parametrize("name", BLOCKS)
class TestBlocks:
    def test_code_that_looks_beyond_its_block_is_refused(self, name):
        with pytest.raises(ValueError, match=f"must be block-causal, but in {name} a position sees beyond its block"):
            attach(remote(name, forced="full"))

    def test_published_block_size_without_one_in_the_configuration(self, name):
        assert Denoiser(stand_in(name)).family.block_size == (4 if name == "SDARForCausalLM" else 32)


class TestRotaryFrequencies:
    @pytest.mark.parametrize("name", [name for name in REMOTE if name != "MDLM"])
    def test_code_that_does_not_compute_them_again(self, name, tmp_path):
        """transformers builds models without memory: the buffer is whatever was there."""
        folder = write_remote_code(tmp_path, name, repaired=False, **REMOTE[name][2])
        with pytest.raises(ValueError, match=r"rotary.inv_freq must be the rotary frequencies of the configuration"):
            load_denoiser(folder, trust_remote_code=True)
        model = load_denoiser(folder, trust_remote_code=True, restore_inv_freq=True)
        assert torch.equal(model.rotary.inv_freq, remote(name).rotary.inv_freq)
        assert "inv_freq" not in "".join(model.state_dict())

    def test_attach_checks_too(self):
        model = remote("SDARForCausalLM")
        model.rotary.inv_freq *= 1.001
        with pytest.raises(ValueError, match=r"rotary.inv_freq must be the rotary frequencies"):
            attach(model)

    def test_other_kinds_of_rope(self):
        """As transformers computes them, and at the precision that the buffer has."""
        model = remote("SDARForCausalLM")
        model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
        with pytest.raises(ValueError, match="inv_freq"):
            check_inv_freq(model)
        model.rotary.inv_freq /= 2
        check_inv_freq(model)
        model.rotary.to(torch.bfloat16)
        check_inv_freq(model)


class TestRegister:
    @pytest.fixture(autouse=True)
    def own_table(self, monkeypatch):
        monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))

    def test_by_model_type_or_by_class(self):
        family = register_family("gpt2", attention="4d", shift=1)
        assert family == Family(attention="4d", shift=1)
        assert find_family(GPT2Config(), "Anything") == family
        by_class = register_family("Special", attention="4d")
        assert find_family(GPT2Config(), "Special") == by_class

    def test_worked_example(self):
        """A causal model that obeys a 4-D mask, as in docs/model_families.md."""
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4))
        register_family("gpt2", attention="4d", shift=1, eos_token_id=EOS, pad_token_id=PAD)
        model.config.eos_token_id = model.config.pad_token_id = None
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
        attach(model, mask_token_id=MASK)
        assert (model.generate(words(2, 4), sampler="entropy_bound", max_new_tokens=4) != MASK).all()
        assert special_tokens(model) == [EOS, PAD]

    def test_twice(self):
        register_family("new", shift=1)
        register_family("new", shift=1)
        with pytest.raises(ValueError, match=r"name must not be in the table with other facts, but 'new' is: Family"):
            register_family("new", shift=0)

    def test_unknown_fact(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'shifted'"):
            register_family("new", shifted=1)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"attention": "3d"}, "attention must be one of 2d, 4d, additive, none, got '3d'"),
        ({"attention": "4d", "block_size": 0}, "block_size must be positive, got 0"),
        ({"block_size": 4}, "block_size must be None with attention='2d'"),
        ({"shift": -1}, "shift must be 0 or 1, got -1"),
    ],
)
def test_facts_out_of_range(facts, message):
    with pytest.raises(ValueError, match=message):
        Family(**facts)


class TestBadModels:
    @pytest.mark.parametrize("kind", [T5ForConditionalGeneration, BartForConditionalGeneration])
    def test_encoder_decoder(self, kind, tmp_path):
        small = {"vocab_size": VOCAB, "d_model": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8, "d_ff": 8}
        bart = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
        config = T5Config(**small) if kind is T5ForConditionalGeneration else BartConfig(**small, **bart)
        model = kind(config)
        message = f"model must not be an encoder-decoder, got type '{config.model_type}'"
        with pytest.raises(ValueError, match=message):
            attach(model, mask_token_id=MASK)
        with pytest.raises(ValueError, match=message):
            attach(model, mask_token_id=MASK, family=Family(attention="4d"))
        config.save_pretrained(tmp_path)  # no weights: it is refused before they are read
        with pytest.raises(ValueError, match=message):
            load_denoiser(tmp_path)

    def test_causal_model_of_no_known_family(self, tmp_path):
        config = GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1, architectures=["GPT2LMHeadModel"])
        message = r"got GPT2LMHeadModel of type 'gpt2': a causal model cannot denoise.* register_family\('gpt2', "
        with pytest.raises(ValueError, match=message):
            attach(GPT2LMHeadModel(config), mask_token_id=MASK)
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            load_denoiser(tmp_path)

    def test_causal_model_with_a_mask_that_it_ignores(self):
        """The table may be wrong about a model: it is called, not believed."""
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1))
        with pytest.raises(ValueError, match="in GPT2LMHeadModel the last token does not change the first position"):
            attach(model, mask_token_id=MASK, family=Family(attention="2d"))
        assert type(model) is GPT2LMHeadModel

    def test_encoder_made_causal(self):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = BertForMaskedLM(BertConfig(vocab_size=VOCAB, is_decoder=True, **sizes))
        with pytest.raises(ValueError, match="must attend in both directions, but in BertForMaskedLM"):
            attach(model, mask_token_id=MASK)

    def test_model_conditioned_on_time(self):
        with pytest.raises(ValueError, match="model must not be conditioned on time"):
            attach(remote("MDLM", time_conditioning=True))

    @pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
    def test_prompt_and_prefix_tuning(self, kind):
        model = get_peft_model(tiny_model("llama"), kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
        with pytest.raises(ValueError, match=r"must not have a prompt or prefix tuning adapter, but 'default' is P"):
            attach(model, mask_token_id=MASK)
        inside = attach(tiny_model("llama"), mask_token_id=MASK)
        wrapped = get_peft_model(inside, LoraConfig(r=2))
        assert attach(wrapped, mask_token_id=MASK) is wrapped

    def test_unknown_architecture_is_refused_before_its_weights_come(self, tmp_path):
        config = DREAM | {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "auto_map": {}}
        name = write_checkpoint(tmp_path, config, {"nothing": torch.zeros(1)})
        with pytest.raises(ValueError, match="got Qwen2MoeForCausalLM of type 'qwen2_moe': a causal model"):
            load_denoiser(name)


def test_masked_language_models_by_remote_code_need_no_family(tmp_path):
    """Whoever publishes one says so in `auto_map`."""
    folder = write_remote_code(tmp_path, "LLaDAMoEModelLM")
    model = load_denoiser(folder, trust_remote_code=True)
    model.config.auto_map = {"AutoModelForMaskedLM": "modeling_new.New"}
    new = type("New", (type(model),), {})
    model.__class__ = new
    assert Denoiser(model).family == Family()
    model.config.auto_map = None
    with pytest.raises(ValueError, match="got New of type 'llada'"):
        Denoiser(model)
