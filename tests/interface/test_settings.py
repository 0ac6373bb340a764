"""The settings of a call: which source counts, what is saved, what is refused; logits processors and warpers."""

import pytest
import torch
from models import EOS, FAMILIES, MASK, PAD, VOCAB, spelling_tokenizer, tiny_model
from test_attach import assert_equal, attached, generated, tokenized
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.interface.attach import attach
from hf_learned_order.interface.processors import PROCESSORS, WARPERS
from hf_learned_order.interface.settings import Settings, merged


def resolve(given=None, config=None, own=None, **options) -> Settings:
    return Settings.resolve(given or {}, config, own=own or GenerationConfig(), **options)


class TestSources:
    def test_call_then_its_configuration_then_the_models_own_then_the_default(self):
        own = GenerationConfig(max_denoising_steps=1, block_length=1, max_new_tokens=1)
        config = GenerationConfig(max_denoising_steps=2, block_length=2)
        got = resolve({"max_denoising_steps": 3}, config, own)
        assert (got.max_denoising_steps, got.block_length, got.max_new_tokens) == (3, 2, 1)
        assert (got.temperature, got.do_sample, got.output_order) == (1.0, False, True)
        assert resolve({"do_sample": False}, own=GenerationConfig(do_sample=True)).do_sample is False

    def test_special_tokens_are_looked_for_last_in_the_models_configuration(self):
        model = attached()
        assert resolve(special_tokens=(model.config,)).eos_token_id == EOS
        assert resolve(own=GenerationConfig(eos_token_id=7), special_tokens=(model.config,)).eos_token_id == 7
        none = GenerationConfig(eos_token_id=-1, pad_token_id=-1)
        assert resolve(own=none, special_tokens=(model.config,)).eos_token_id == EOS
        assert resolve(own=none, special_tokens=(none,)).pad_token_id is None
        assert resolve({"pad_token_id": -1}, own=none).pad_token_id == -1  # refused where it is used

    def test_what_is_saved_for_a_canvas_does_not_reach_infilling(self):
        own = GenerationConfig(max_new_tokens=9, block_length=3, stop_strings=["x"], max_denoising_steps=2)
        got = resolve(own=own, infill=True)
        assert (got.max_new_tokens, got.block_length, got.stop_strings) == (None, None, None)
        assert got.max_denoising_steps == 2
        assert resolve({"block_length": 4}, own=own, infill=True).block_length == 4

    def test_length(self):
        assert resolve({"max_length": 9}).canvas_length(4) == 5
        assert resolve({"max_length": 9, "max_new_tokens": 3}).canvas_length(4) == 3
        assert resolve().canvas_length(4) is None
        with pytest.raises(ValueError, match="max_length must exceed the prompt's 4 tokens, got 4"):
            resolve({"max_length": 4}).canvas_length(4)

    @pytest.mark.parametrize(
        ("configs", "expected"),
        [
            ([], {}),
            ([None, {"sampler": "iid"}], {"sampler": "iid"}),
            (
                [{"threshold": 0.5}, {"sampler": "threshold", "threshold": 0.8}],
                {"sampler": "threshold", "threshold": 0.5},
            ),
            ([{"sampler": "threshold"}, {"threshold": 0.8}], {"sampler": "threshold", "threshold": 0.8}),
            ([{"sampler": "factor"}, {"sampler": "threshold", "threshold": 0.8}], {"sampler": "factor"}),
            (
                [
                    {"sampler": "threshold"},
                    {"sampler": "threshold", "threshold": 0.8},
                    {"sampler": "factor", "factor": 2},
                ],
                {"sampler": "threshold", "threshold": 0.8},
            ),
        ],
    )  # fmt: skip
    def test_options_of_samplers(self, configs, expected):
        assert merged(configs) == expected


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_saved_and_loaded_with_the_model(family, tmp_path):
    model = attached(family)
    model.generation_config.update(
        max_new_tokens=8,
        max_denoising_steps=6,
        block_length=4,
        sampler_config={"sampler": "threshold", "threshold": 1.0},
        allow_custom_entries=True,
    )
    inputs = {name: value for name, value in tokenized().items() if name != "token_type_ids"}
    expected = model.generate(**inputs, return_dict_in_generate=True)
    explicit = attached(family).generate(
        **inputs, sampler="threshold", sampler_config={"threshold": 1.0}, max_new_tokens=8, max_denoising_steps=6,
        block_length=4, return_dict_in_generate=True,
    )  # fmt: skip
    assert_equal(expected, explicit)

    model.save_pretrained(tmp_path)
    loaded = attach(FAMILIES[family][0].from_pretrained(tmp_path, dtype=torch.float64), mask_token_id=MASK)
    assert_equal(loaded.generate(**inputs, return_dict_in_generate=True), expected)
    # the call's arguments override what was saved
    for options in (
        {"sampler": "left_to_right"},
        {"sampler_config": {"threshold": 0.0}},
        {"max_denoising_steps": 2},
        {"generation_config": GenerationConfig(block_length=8, pad_token_id=PAD)},
    ):
        got = loaded.generate(**inputs, return_dict_in_generate=True, **options)
        assert got.order.tolist() != expected.order.tolist()
    with pytest.raises(ValueError, match=r"sampler_config of 'entropy' must have keys among \[\]"):
        loaded.generate(**inputs, sampler="entropy", sampler_config={"threshold": 0.9})


def test_a_decoder_decodes_from_left_to_right_again_when_it_names_no_sampler():
    model, plain = attached("llama"), tiny_model("llama")
    inputs = {name: value for name, value in tokenized(padding_side="left").items() if name != "token_type_ids"}
    model.generation_config.max_denoising_steps = 4
    assert model.generate(**inputs, max_new_tokens=5).tolist() == plain.generate(**inputs, max_new_tokens=5).tolist()


class Watcher(LogitsProcessor):
    """Keeps the ids that it was given."""

    def __init__(self):
        self.ids = []

    def __call__(self, input_ids, scores):
        assert scores.shape == (len(input_ids), VOCAB)
        assert (scores[:, MASK] == -torch.inf).all()
        self.ids.append(input_ids)
        return scores


class TestProcessors:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_each_position_is_processed_as_if_it_were_alone(self, side):
        """One step from the plain logits; padding is not repeated text."""
        inputs = tokenized(padding_side=side)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        model = attached("llama")
        denoiser, penalty = model._denoiser(), RepetitionPenaltyLogitsProcessor(3.0)
        output = generated_on(model, inputs, max_denoising_steps=1, repetition_penalty=3.0)
        given = generated_on(model, inputs, max_denoising_steps=1, logits_processor=[penalty])
        assert_equal(given, output)
        plain = generated_on(model, inputs, max_denoising_steps=1)
        assert given.sequences.tolist() != plain.sequences.tolist()
        for row in range(2):
            whole = torch.cat([ids[row, mask[row].bool()], torch.full((6,), MASK)])[None]
            with torch.no_grad():
                logits = denoiser(whole, torch.ones_like(whole), whole.shape[1] - 6)[0][0].float()
            logits[:, MASK] = -torch.inf
            for i in range(6):
                scores = penalty(whole, logits[i][None].clone())
                scores[:, MASK] = -torch.inf
                assert int(scores.argmax()) == int(output.sequences[row, 4 + i])

    def test_rules_see_what_processors_say(self):
        banned = [int(token) for token in generated(attached()).sequences[:, 4:].unique()]
        output = generated(attached(), "threshold", sampler_config={"threshold": 0.5}, suppress_tokens=banned)
        assert not torch.isin(output.sequences[:, 4:], torch.tensor(banned)).any()
        assert output.log_likelihood.isfinite().all()

    def test_what_they_are_given(self):
        watcher = Watcher()
        inputs = tokenized()
        output = generated_on(attached(), inputs, logits_processor=[watcher])
        first = watcher.ids[0].view(2, 6, 10)
        assert (first == first[:, :1]).all()
        # the second prompt is padded on the left, and padding looks like the mask token
        assert first[:, 0, :4].tolist() == [inputs["input_ids"][0].tolist(), [MASK, MASK, 9, 10]]
        last = watcher.ids[-1][:, 4:]  # one position is left in each row, and no other is asked about
        known = (output.order > 0) & (output.order < output.nfe[:, None])
        assert torch.equal(last, torch.where(known, output.sequences[:, 4:], MASK))


def generated_on(model, inputs, sampler="top_prob", **options):
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "eos_token_id": [], **options}
    return model.generate(**inputs, sampler=sampler, **options)


class TestWarpers:
    @pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
    def test_one_token_left_is_greedy(self, options):
        for seed in (0, 1):
            got = generated(attached(), do_sample=True, temperature=3.0, seed=seed, **options)
            assert_equal(got, generated(attached()))

    def test_the_temperature_comes_first(self):
        """At a high temperature many tokens are needed for half of the mass, at a low one a single one."""
        seen = []
        for temperature in (0.05, 20.0):
            tokens = [
                generated(attached(), do_sample=True, temperature=temperature, top_p=0.5, seed=s, max_denoising_steps=1)
                .sequences[0, 4].item()
                for s in range(12)
            ]  # fmt: skip
            seen.append(len(set(tokens)))
        assert seen[0] <= 2 < seen[1]

    def test_drawn_from_the_most_likely_ones(self):
        denoiser, ids = attached()._denoiser(), torch.full((400, 2), 9)
        output = decode(
            denoiser, ids, sampler=TopProbSampler(), max_new_tokens=3, max_denoising_steps=1, temperature=2.0,
            logits_warper=LogitsProcessorList([TopKLogitsWarper(3)]), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with torch.no_grad():
            whole = torch.cat([ids[:1], torch.full((1, 3), MASK)], 1)
            logits = denoiser(whole, torch.ones_like(whole), 2)[0][0].float()
        logits[:, MASK] = -torch.inf
        for i in range(3):
            assert set(output.sequences[:, 2 + i].tolist()) == set(logits[i].topk(3).indices.tolist())

    def test_none_without_do_sample_and_none_by_default(self):
        with pytest.warns(UserWarning, match=r"top_k=3, top_p=0.5 counts with do_sample=True only"):
            assert resolve({"top_k": 3, "top_p": 0.5}).warpers() == []
        assert resolve({"do_sample": True}).warpers() == []
        off = {"top_k": 0, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        assert resolve({"do_sample": True, **off}).warpers() == []
        assert resolve({"repetition_penalty": 1.0}).processors(3) == []

    def test_transformers_own_in_its_order(self):
        got = resolve({"do_sample": True, "min_p": 0.1, "top_p": 0.9, "top_k": 5}).warpers()
        assert [type(warper) for warper in got] == [TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper]
        assert {*WARPERS, *PROCESSORS} <= set(vars(GenerationConfig()))

    @pytest.mark.parametrize("options", [{"top_k": -1}, {"top_p": 2.0}])
    def test_out_of_range(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            generated(attached(), do_sample=True, **options)


class TestBadInput:
    def test_what_a_configuration_may_hold_beside(self):
        config = GenerationConfig.from_model_config(tiny_model("llama").config)
        config.update(use_cache=True, max_new_tokens=6, max_denoising_steps=4, allow_custom_entries=True)
        assert_equal(generated(attached(), generation_config=config), generated(attached()))

    def test_the_models_own_settings_are_for_its_own_generate(self):
        model = attached("llama")
        model.generation_config.num_beams = 3
        assert_equal(generated(model), generated(attached("llama")))

    def test_sampler_config(self):
        with pytest.raises(TypeError, match="sampler_config must be a dict, got list"):
            resolve({"sampler_config": [1]})

    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_num_return_sequences(self, value):
        with pytest.raises(ValueError, match=f"num_return_sequences must be a positive integer, got {value}"):
            resolve({"num_return_sequences": value})

    def test_stop_strings_without_a_tokenizer(self):
        with pytest.raises(ValueError, match="tokenizer must be given with stop_strings, got None"):
            generated(attached(), stop_strings=["w5"])


def test_a_tokenizer_for_stop_strings():
    assert len(resolve({"stop_strings": "w5"}).criteria(spelling_tokenizer())) == 1
    assert resolve().criteria(spelling_tokenizer()) == []
