"""What a call may say: transformers' defaults change nothing, other libraries' names are answered with ours."""

import re

import pytest
import torch
from models import EOS, MASK, PAD, tiny_model, tiny_tokenizer
from test_attach import assert_equal, attached, generated, tokenized
from transformers import BatchEncoding, DynamicCache, GenerationConfig, LogitsProcessorList

from hf_learned_order.decoding.samplers.table import ELSEWHERE as RULES_ELSEWHERE
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.interface.arguments import ELSEWHERE, IGNORED, NEUTRAL, REFUSED, by_name, understood
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.settings import SAMPLING, Settings

IDS = torch.tensor([[5, 6, 7]])
DEFAULTS = GenerationConfig()._get_default_generation_params()


@pytest.fixture(scope="module")
def model():
    return attached("llama")


@pytest.fixture(scope="module")
def plain(model):
    return model.generate(IDS, sampler="top_prob", max_new_tokens=4)


class TestNeutral:
    @pytest.mark.parametrize(
        "options",
        [
            dict.fromkeys(
                ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "assistant_model", "streamer",
                 "synced_gpus", "past_key_values", "inputs_embeds", "position_ids", "generation_config", "max_time",
                 "negative_prompt_ids", "attention_mask", "sampler_config", "custom_thing")
            ),
            {"logits_processor": [], "stopping_criteria": (), "synced_gpus": True},
            {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
            {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "output_scores": False},
            {"num_beams": 1, "num_beam_groups": 1, "length_penalty": 1.0, "early_stopping": False, "min_length": 0},
            {"no_repeat_ngram_size": 0, "renormalize_logits": True, "remove_invalid_values": False},
            {"do_sample": False, "temperature": 0.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0},
            {"cfg_scale": 0.0, "alg_temp": 0.0, "output_history": False},
            {"eos_token_id": torch.tensor(EOS), "pad_token_id": torch.tensor(PAD)},
        ],
        ids=lambda options: next(iter(options)),
    )  # fmt: skip
    def test_by_argument(self, model, plain, options):
        assert model.generate(IDS, sampler="top_prob", max_new_tokens=4, **options).tolist() == plain.tolist()

    @pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "max_length"])
    def test_every_default_of_transformers_by_either_way(self, name):
        value = DEFAULTS[name]
        config = GenerationConfig(**{name: value})
        expected = Settings.resolve({}, None, own=GenerationConfig())
        # what means "off" there may be said here too
        for got in (
            Settings.resolve({name: value}, None, own=GenerationConfig()),
            Settings.resolve({}, config, own=GenerationConfig()),
        ):
            assert [type(one) for one in (*got.processors(3), *got.warpers())] == []
            assert (got.do_sample, got.max_new_tokens) == (expected.do_sample, expected.max_new_tokens)

    def test_names_are_in_one_table_each(self):
        ours = set(vars(Settings.resolve({}, None, own=GenerationConfig())))
        for table in (IGNORED, ELSEWHERE, REFUSED):
            assert not ours & set(table)
        assert ours & set(NEUTRAL) == {"num_assistant_tokens"}  # 20, transformers' default, asks for no verification
        assert not set(IGNORED) & {*NEUTRAL, *ELSEWHERE, *REFUSED}
        assert not set(ELSEWHERE) & set(REFUSED)
        assert set(RULES_ELSEWHERE.values()) <= set(SAMPLERS)
        # what stands for settings here does stand there
        named = {text for text in ELSEWHERE.values() if text.isidentifier()}
        assert named <= {*ours, "input_ids", "sampler", "logits_processor", "negative_prompt_ids"}


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            ({"num_beams": 3}, "num_beams (there are no beams; num_return_sequences gives several responses)"),
            ({"output_scores": True}, "output_scores (return_dict_in_generate=True gives order"),
            ({"position_ids": IDS}, "position_ids (positions are counted from the attention_mask)"),
            ({"foo": False}, "foo"),
            ({"num_beams": True}, "num_beams (there are no beams"),
            ({"gen_length": 64}, "gen_length=64 (here: max_new_tokens)"),
            ({"steps": 8}, "steps=8 (here: max_denoising_steps)"),
            ({"block_size": 4}, "block_size=4 (here: block_length)"),
            ({"remasking": "low_confidence"}, "remasking='low_confidence' (here: sampler=\"top_prob\")"),
            ({"alg": "maskgit_plus"}, "alg='maskgit_plus' (here: sampler=\"top_prob\")"),
            ({"alg": "topk_margin"}, "alg='topk_margin' (here: sampler=\"margin\")"),
            ({"alg": "other"}, "alg='other' (here: sampler)"),
            ({"cfg_scale": 1.5}, "cfg_scale=1.5 (here: guidance_scale, which is cfg_scale plus 1)"),
            ({"steps": 8, "gen_length": 64}, "steps=8 (here: max_denoising_steps); gen_length=64 (here: max_new"),
        ],
        ids=str,
    )
    def test_by_either_way(self, model, options, answer):
        with pytest.raises(ValueError, match=r"with a sampler, generate must set only .*; got " + re.escape(answer)):
            model.generate(IDS, sampler="top_prob", **options)
        config = GenerationConfig()
        config.update(**options, allow_custom_entries=True)
        for name, value in options.items():
            setattr(config, name, value)
        with pytest.raises(ValueError, match="with a sampler, generation_config must .*; got " + re.escape(answer)):
            model.generate(IDS, sampler="top_prob", generation_config=config)

    def test_a_cache(self, model):
        with pytest.raises(ValueError, match=r"got past_key_values \(a canvas is read from both sides; kv_cache"):
            model.generate(IDS, sampler="top_prob", past_key_values=DynamicCache())

    def test_names_of_rules(self):
        with pytest.raises(ValueError, match=r"sampler must be one of iid, .*, got 'maskgit_plus', which is 'top_"):
            make_sampler("maskgit_plus")

    @pytest.mark.parametrize("family", ["bert", "llama"])
    def test_without_a_sampler(self, family):
        theirs = {"steps": 8, "gen_length": 64, "remasking": "low_confidence"}
        with pytest.raises(ValueError, match=r"sampler must be one of .*steps=8 \(here: max_denoising_steps\); gen"):
            attached(family).generate(IDS, **theirs)

    def test_without_a_sampler_what_the_model_takes_goes_there(self):
        with pytest.raises(ValueError, match="The following `model_kwargs` are not used by the model"):
            attached("llama").generate(IDS, foo=3)

    def test_all_that_is_known_passes(self):
        assert understood("generate", {"top_k": 3, "top_p": None}, ["top_k", "top_p"]) == {"top_k": 3}


class TestPrompts:
    @pytest.mark.parametrize("how", ["by position", "inputs", "input_ids", "dict", "dict by name"])
    @pytest.mark.parametrize("family", ["bert", "llama"])
    def test_ids_and_what_a_tokenizer_returns(self, family, how):
        model, inputs = attached(family), tokenized()
        assert isinstance(inputs, BatchEncoding)
        options = {"sampler": "top_prob", "max_new_tokens": 6}
        expected = model.generate(**inputs, **options)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        ways = {
            "by position": ([inputs], {}),
            "inputs": ([], {"inputs": ids, "attention_mask": mask}),
            "input_ids": ([None], {"input_ids": ids, "attention_mask": mask}),
            "dict": ([dict(inputs)], {}),
            "dict by name": ([], {"input_ids": inputs}),
        }
        args, kwargs = ways[how]
        assert model.generate(*args, **kwargs, **options).tolist() == expected.tolist()

    def test_second_comes_a_mask_or_a_configuration(self, model, plain):
        ones = torch.ones_like(IDS)
        assert model.generate(IDS, ones, sampler="top_prob", max_new_tokens=4).tolist() == plain.tolist()
        config = GenerationConfig(max_new_tokens=4)
        assert model.generate(IDS, config, sampler="top_prob").tolist() == plain.tolist()
        config.sampler_config = {"sampler": "top_prob"}
        assert model.generate(IDS, config).tolist() == plain.tolist()

    @pytest.mark.parametrize(
        ("args", "kwargs", "name"),
        [
            ([IDS], {"input_ids": IDS}, "input_ids"),
            ([{"input_ids": IDS, "attention_mask": IDS}], {"attention_mask": IDS}, "attention_mask"),
            ([IDS, GenerationConfig()], {"generation_config": GenerationConfig()}, "generation_config"),
        ],
    )
    def test_twice(self, args, kwargs, name):
        with pytest.raises(ValueError, match=f"{name} must be given once, but it is given twice"):
            by_name(args, kwargs)

    def test_none(self, model):
        for args, kwargs in (([], {}), ([None], {}), ([{}], {}), ([], {"inputs_embeds": IDS})):
            with pytest.raises(TypeError, match=r"input_ids must be an integer tensor \[batch, prompt\], got None"):
                model.generate(*args, sampler="top_prob", **kwargs)

    def test_of_another_type(self, model):
        with pytest.raises(TypeError, match=r"input_ids must .*, got list; a tokenizer makes one with return_tens"):
            model.generate(tiny_tokenizer()(["w5"]), sampler="top_prob")
        with pytest.raises(TypeError, match="generation_config must be a GenerationConfig, got dict"):
            model.generate(IDS, sampler="top_prob", generation_config={"max_new_tokens": 3})
        with pytest.raises(TypeError, match="arguments by position must be a prompt and its attention mask, got 3"):
            model.generate(IDS, IDS, LogitsProcessorList(), sampler="top_prob")


class TestSamplingWithoutSampling:
    """As transformers: it warns, and takes the most likely tokens."""

    @pytest.mark.parametrize("options", [{"temperature": 5.0, "top_p": 0.95}, {"top_k": 3}, {"min_p": 0.1}], ids=str)
    def test_is_warned_of(self, options):
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        with pytest.warns(UserWarning, match=f"{said} counts with do_sample=True only: the most likely"):
            assert_equal(generated(attached(), **options), generated(attached()))
        with pytest.warns(UserWarning, match=f"{said} counts with do_sample=True only"):
            generated(attached(), generation_config=GenerationConfig(**options))
        with pytest.warns(UserWarning, match=f"{said} counts with do_sample=True only"):
            generated(attached(), do_sample=False, **options)

    def test_not_where_it_counts_or_was_not_asked_for(self):
        assert set(SAMPLING) == {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
                                 "eta_cutoff"}  # fmt: skip
        config = GenerationConfig(do_sample=True, temperature=0.7)  # as a pipeline's
        generated(attached(), generation_config=config, seed=0)
        generated(attached(), generation_config=config, do_sample=False)
        model = attached()
        model.generation_config.temperature = 0.7
        generated(model)


class TestNoMask:
    """As transformers: padding is what is `pad_token_id`, unless that ends responses."""

    ALONE, BATCH = torch.tensor([[5, 6]]), torch.tensor([[PAD, PAD, PAD, 5, 6], [5, 6, 7, 8, 9]])

    def model(self, family="llama", **config):
        return attach(tiny_model(family, **config), mask_token_id=MASK)

    @pytest.mark.parametrize("family", ["bert", "llama"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_is_inferred_from_the_padding_token(self, family, side):
        model, options = self.model(family), {"sampler": "top_prob", "max_new_tokens": 6, "eos_token_id": []}
        batch = self.BATCH if side == "left" else torch.tensor([[5, 6, PAD, PAD, PAD], [5, 6, 7, 8, 9]])
        got = model.generate(batch, **options)
        assert got.tolist() == model.generate(batch, (batch != PAD).long(), **options).tolist()
        if family == "llama":  # where places are relative
            assert got[:1, 5:].tolist() == model.generate(self.ALONE, **options)[:, 2:].tolist()
        # a mask that is given counts
        assert got.tolist() != model.generate(batch, torch.ones_like(batch), **options).tolist()

    def test_of_a_negative_prompt_and_of_infilling(self):
        model = self.model()
        options = {"sampler": "top_prob", "max_new_tokens": 6, "guidance_scale": 3.0}
        mask = (self.BATCH != PAD).long()
        expected = model.generate(
            self.BATCH, mask, negative_prompt_ids=self.BATCH, negative_prompt_attention_mask=mask, **options
        )
        assert model.generate(self.BATCH, negative_prompt_ids=self.BATCH, **options).tolist() == expected.tolist()
        holes = torch.where(self.BATCH == 6, MASK, self.BATCH)
        expected = model.generate(holes, mask, sampler="top_prob", infill=True)
        assert model.generate(holes, sampler="top_prob", infill=True).tolist() == expected.tolist()

    def test_is_warned_of_where_padding_is_eos(self):
        model = self.model(eos_token_id=PAD)
        options = {"sampler": "top_prob", "max_new_tokens": 6}
        with pytest.warns(UserWarning, match=f"^attention_mask was not given .*input_ids begin or end with {PAD}, w"):
            got = model.generate(self.BATCH, **options)
        assert got.tolist() == model.generate(self.BATCH, torch.ones_like(self.BATCH), **options).tolist()
        ones = {"attention_mask": torch.ones_like(self.BATCH), "guidance_scale": 3.0}
        with pytest.warns(UserWarning, match="^negative_prompt_attention_mask was not given"):
            model.generate(self.BATCH, **ones, negative_prompt_ids=self.BATCH, **options)
        model.generate(self.BATCH[:1], **options)  # one row needs no padding
        model.generate(self.BATCH[:, 3:], **options)

    def test_nothing_is_known_of_padding(self):
        model = self.model(pad_token_id=None, eos_token_id=None)
        model.generate(self.BATCH, sampler="top_prob", max_new_tokens=6)
