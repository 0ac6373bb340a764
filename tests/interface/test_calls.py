"""Ways in: several responses, pipelines, chats, stop strings, adapters, and `custom_generate` without `attach`."""

import copy
from dataclasses import replace

import pytest
import torch
from models import EOS, MASK, PAD, VOCAB, spelling_tokenizer, tiny_model, tiny_tokenizer
from oracles import chi_square_excess
from test_attach import assert_equal, attached, generated, scorer_for, tokenized, with_lora
from transformers import EosTokenCriteria, GenerationConfig, StoppingCriteria, pipeline

from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import EntropySampler, IIDSampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.interface.attach import attach


class TestTrainedBudget:
    """A scorer that was trained for a step budget keeps to it, as in `evaluate`."""

    def attached(self, family="bert", **config):
        model = tiny_model(family)
        return attach(model, scorer_for(model, max_denoising_steps=2, **config), mask_token_id=MASK)

    def steps(self, model, sampler="learned_order", **options) -> list[int]:
        given = {"max_new_tokens": 12, "max_denoising_steps": None, "eos_token_id": [], "seed": 0, **options}
        return generated(model, sampler, **given).nfe.tolist()

    @pytest.mark.parametrize("law", ["non_empty", "regret"])
    def test_is_the_default(self, law):
        model = self.attached(law=law, bound=0.0)
        assert self.steps(model) == [2, 2]
        assert self.steps(model, LearnedOrderSampler(scorer=model.order_scorer)) == [2, 2]
        assert max(self.steps(model, "left_to_right")) == 12

    def test_what_is_given_counts_first(self):
        model = self.attached(law="regret", bound=0.0)
        assert self.steps(model, max_denoising_steps=5) == [5, 5]
        assert self.steps(model, generation_config=GenerationConfig(max_denoising_steps=4)) == [4, 4]
        model.generation_config.max_denoising_steps = 3
        assert self.steps(model) == [3, 3]

    def test_not_in_blocks(self):
        model = self.attached(law="regret", bound=0.0)
        assert self.steps(model, block_length=4) == [12, 12]
        model = self.attached("llama", law="regret", bound=0.0)
        model.denoiser_options["family"] = replace(model.denoiser_options["family"], attention="4d", block_size=4)
        assert self.steps(model) == [12, 12]

    def test_infilling_and_without_attach(self):
        model = self.attached("llama", law="regret", bound=0.0)
        ids = torch.tensor([[5, 6, *[MASK] * 6]])
        assert model.generate(ids, sampler="learned_order", infill=True, return_dict_in_generate=True).nfe == 2
        options = {"max_new_tokens": 6, "mask_token_id": MASK, "return_dict_in_generate": True, "eos_token_id": []}
        rule = LearnedOrderSampler(scorer=model.order_scorer)
        plain = tiny_model("llama")
        output = plain.generate(ids[:, :2], custom_generate=rule, **options)
        assert output.nfe == 2

    def test_a_scorer_that_was_trained_for_none(self):
        assert self.steps(attached(scorer=True), sampler_config={"bias": -60.0}) == [12, 12]


class TestSeveralResponses:
    def test_rows_of_one_prompt_stand_together(self):
        output = generated(attached(), do_sample=True, num_return_sequences=3, seed=0)
        prompts = tokenized()["input_ids"]
        assert output.sequences[:, :4].tolist() == [prompts[0].tolist()] * 3 + [prompts[1].tolist()] * 3
        assert len({tuple(row) for row in output.sequences[:3].tolist()}) > 1

    def test_rows_are_independent(self):
        """Pairs of neighbouring rows follow the product of the law of one row."""
        model = attached()
        inputs = tiny_tokenizer()("w5 w6", return_tensors="pt")
        options = {"sampler": "top_prob", "max_new_tokens": 1, "do_sample": True, "top_k": 3, "eos_token_id": []}
        n = 6000
        tokens = model.generate(**inputs, num_return_sequences=n, seed=0, **options)[:, -1].tolist()
        with torch.no_grad():
            whole = torch.cat([inputs["input_ids"], torch.tensor([[MASK]])], 1)
            logits = model._denoiser()(whole, torch.ones_like(whole), 2)[0][0, 0].float()
        logits[MASK] = -torch.inf
        top = logits.topk(3)
        law = dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))
        assert min(law.values()) > 0.01
        pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
        counts = {pair: pairs.count(pair) for pair in set(pairs)}
        assert chi_square_excess(counts, {(a, b): law[a] * law[b] for a in law for b in law}) < 5

    def test_random_rules_need_no_do_sample(self):
        model = attached(scorer=True)
        for sampler in ("iid", "random", "random_sizes", "remdm", "learned_order"):
            output = generated(model, sampler, num_return_sequences=4, seed=0, max_new_tokens=12)
            assert len({tuple(row) for row in output.order[:4].tolist()}) > 1

    def test_every_other_rule_does(self):
        regret = scorer_for(tiny_model("bert"), law="regret")
        for sampler in [*SAMPLERS, LearnedOrderSampler(scorer=regret)]:
            rule = (
                sampler
                if not isinstance(sampler, str)
                else make_sampler(sampler, scorer=scorer_for(tiny_model("bert")))
            )
            if not rule.is_random:
                with pytest.raises(
                    ValueError, match="num_return_sequences must be 1 without do_sample=True or a random"
                ):
                    generated(attached(), rule, num_return_sequences=2)

    def test_what_comes_with_a_prompt_is_repeated(self):
        options = {
            "guidance_scale": 2.0,
            "negative_prompt_ids": torch.tensor([[5, 6], [7, 8]]),
            "max_denoising_steps": 1,
        }
        once = generated(attached(), **options)
        output = generated(attached(), "iid", num_return_sequences=2, seed=0, **options)
        assert output.sequences.tolist() == once.sequences.repeat_interleave(2, 0).tolist()


class TestArguments:
    def test_a_generator_is_a_seed(self):
        expected = generated(attached(), "iid", seed=4, do_sample=True)
        assert_equal(generated(attached(), "iid", generator=torch.Generator().manual_seed(4), do_sample=True), expected)

    def test_both_are_too_much(self):
        with pytest.raises(ValueError, match="seed must be None when generator is given, got 4"):
            generated(attached(), "iid", seed=4, generator=torch.Generator())

    def test_output_order(self):
        output = generated(attached(), output_order=False)
        assert output.order is None
        assert "order" not in output
        assert output.nfe.tolist() == generated(attached()).nfe.tolist()

    def test_blocks(self):
        output = generated(attached(), block_length=2, max_denoising_steps=6)
        assert output.order.view(2, 3, 2).amax(-1).diff(dim=-1).gt(0).all()

    def test_infilling(self):
        ids = tokenized()["input_ids"]
        ids[0, 2] = ids[1, 3] = MASK
        model = attached()
        model.generation_config.max_new_tokens = 9
        output = model.generate(ids, sampler="top_prob", infill=True)
        assert output.shape == ids.shape
        assert (output != ids).tolist() == (ids == MASK).tolist()

    @pytest.mark.parametrize("sampler", ["left_to_right", "top_prob", "iid"])
    def test_stop_strings(self, sampler):
        """A response ends with the first stop string, as it would from left to right."""
        options = {"max_new_tokens": 12, "eos_token_id": [], "pad_token_id": PAD, "max_denoising_steps": 12, "seed": 0}
        tokenizer = spelling_tokenizer()
        whole = generated(attached(), sampler, **options).sequences[:, 4:]
        stop = tokenizer.decode(whole[0, 5])
        output = generated(attached(), sampler, stop_strings=[stop], tokenizer=tokenizer, **options)
        for row, full in zip(output.sequences[:, 4:].tolist(), whole.tolist(), strict=True):
            end = next((i + 1 for i, t in enumerate(row) if tokenizer.decode([t]) == stop), 12)
            assert row[end:] == [PAD] * (12 - end)
            if sampler == "left_to_right":
                assert row[:end] == full[:end]
        assert stop in tokenizer.decode(output.sequences[0, 4:])

    def test_stopping_criteria(self):
        eos = int(generated(attached()).sequences[0, 5])
        as_criterion = generated(attached(), stopping_criteria=[EosTokenCriteria(eos)], eos_token_id=[])
        assert_equal(as_criterion, generated(attached(), eos_token_id=eos))

    def test_a_chat(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w30 "
        messages = [{"role": "user", "content": "w5 w6"}]
        chat = tokenizer.apply_chat_template(
            messages, return_tensors="pt", return_dict=True, add_generation_prompt=True
        )
        del chat["token_type_ids"]
        output = attached().generate(**chat, sampler="entropy", max_new_tokens=4)
        assert output[:, :3].tolist() == [[5, 6, 30]]
        expected = attached().generate(torch.tensor([[5, 6, 30]]), sampler="entropy", max_new_tokens=4)
        assert_equal({"sequences": output}, {"sequences": expected})

    def test_adapters_on_and_off(self):
        model = attach(with_lora(tiny_model("llama")), mask_token_id=MASK)
        tuned = generated(model)
        with model.disable_adapter():
            assert_equal(generated(model), generated(attached("llama")))
        assert_equal(generated(model), tuned)
        assert tuned.sequences.tolist() != generated(attached("llama")).sequences.tolist()


@pytest.mark.parametrize("family", ["bert", "llama"])
class TestPipeline:
    def test_text(self, family):
        tokenizer = tiny_tokenizer()
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        model = attached(family)
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
        options = {"sampler": "top_prob", "max_new_tokens": 5, "do_sample": False}
        expected = model.generate(torch.tensor([[5, 6]]), **options)
        for texts in ("w5 w6", ["w5 w6", "w7"]):
            results = pipe(texts, return_full_text=False, **options)
            first = results[0] if isinstance(texts, str) else results[0][0]
            assert first["generated_text"] == tokenizer.decode(expected[0, 2:], skip_special_tokens=True)

    def test_a_chat_a_dictionary_and_a_stop_string(self, family):
        tokenizer = spelling_tokenizer()
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        pipe = pipeline("text-generation", model=attached(family), tokenizer=tokenizer, sampler="iid", seed=0)
        chat = [{"role": "user", "content": "w5 w6"}]
        (result,) = pipe(chat, max_new_tokens=5, return_dict_in_generate=True, stop_sequence="w7")
        assert result["generated_text"][-1]["role"] == "assistant"
        assert len(result["order"]) == 5


class AfterTwo(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
class TestCustomGenerate:
    """`model.generate(ids, custom_generate=sampler)` on a plain model is what `attach` gives."""

    @staticmethod
    def inputs(**options):
        return {name: value for name, value in tokenized(**options).items() if name != "token_type_ids"}

    def run(self, family, sampler, model=None, **options):
        options = {"max_new_tokens": 6, "max_denoising_steps": 4, "return_dict_in_generate": True, **options}
        return (model or tiny_model(family)).generate(
            **self.inputs(padding_side="left"), custom_generate=sampler, mask_token_id=MASK, **options
        )

    def attached(self, family, sampler, **options):
        """The same by an attached model."""
        options = {"max_new_tokens": 6, "max_denoising_steps": 4, "return_dict_in_generate": True, **options}
        return attached(family).generate(**self.inputs(padding_side="left"), sampler=sampler, **options)

    @pytest.mark.parametrize("sampler", [EntropySampler(), ThresholdSampler(threshold=0.4), IIDSampler()])
    def test_is_what_an_attached_model_does(self, family, sampler):
        for options in ({}, {"block_length": 3}, {"stopping_criteria": [AfterTwo()]}, {"output_order": False}):
            output = self.run(family, sampler, seed=1, **options)
            assert isinstance(output, LearnedOrderOutput)
            assert_equal(output, self.attached(family, sampler, seed=1, **options))

    def test_the_learned_order(self, family):
        plain = tiny_model(family)
        sampler = LearnedOrderSampler(scorer=scorer_for(plain))
        assert_equal(self.run(family, sampler, plain, seed=1), self.attached(family, sampler, seed=1))

    def test_a_prompt_without_padding(self, family):
        """transformers hands on no attention mask then."""
        ids = torch.tensor([[5, 6, 7]])
        options = {"max_new_tokens": 4, "max_denoising_steps": 3}
        output = tiny_model(family).generate(ids, custom_generate=EntropySampler(), mask_token_id=MASK, **options)
        assert output.tolist() == attached(family).generate(ids, sampler="entropy", **options).tolist()

    def test_sampling_is_what_transformers_makes_of_it(self, family):
        options = {"do_sample": True, "temperature": 2.0, "top_k": 4, "seed": 2}
        output = self.run(family, EntropySampler(), **options)
        assert_equal(output, self.attached(family, "entropy", **options))
        several = self.run(family, EntropySampler(), num_return_sequences=3, **options)
        assert_equal(several, self.attached(family, "entropy", num_return_sequences=3, **options))

    def test_infilling(self, family):
        ids = torch.tensor([[5, 6, MASK, 8, MASK]])
        output = tiny_model(family).generate(
            ids,
            custom_generate=EntropySampler(),
            mask_token_id=MASK,
            infill=True,
            max_new_tokens=1,  # transformers wants a length
        )
        assert output.tolist() == attached(family).generate(ids, sampler="entropy", infill=True).tolist()

    def test_infilling_in_blocks(self, family):
        ids = torch.tensor([[5, MASK, MASK, 8, MASK]])
        options = {"infill": True, "block_length": 2}
        output = tiny_model(family).generate(
            ids, custom_generate=EntropySampler(), mask_token_id=MASK, max_new_tokens=1, **options
        )
        assert output.tolist() == attached(family).generate(ids, sampler="entropy", **options).tolist()

    def test_an_attached_model(self, family):
        model = attached(family)
        model.generation_config.sampler_config = {"sampler": "iid"}  # the call's own way in counts
        output = model.generate(
            **self.inputs(padding_side="left"), custom_generate=EntropySampler(), max_new_tokens=6,
            max_denoising_steps=4, return_dict_in_generate=True,
        )  # fmt: skip
        assert_equal(output, self.attached(family, "entropy"))

    def test_the_model_stays_as_it_is(self, family):
        model = tiny_model(family).train()
        before = copy.deepcopy(model.state_dict())
        self.run(family, EntropySampler(), model)
        assert model.training
        assert type(model) is type(tiny_model(family))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_guidance(self, family):
        with pytest.raises(ValueError, match=r"guidance_scale must not be set with custom_generate, got 2.0"):
            self.run(family, EntropySampler(), guidance_scale=2.0)

    def test_no_mask_token(self, family):
        with pytest.raises(ValueError, match="mask_token_id must be given"):
            tiny_model(family).generate(torch.tensor([[5]]), custom_generate=EntropySampler(), max_new_tokens=2)


def test_eos_of_a_configuration_reaches_custom_generate():
    config = GenerationConfig(max_new_tokens=6, eos_token_id=[*range(4, VOCAB), EOS], pad_token_id=PAD)
    output = tiny_model("llama").generate(
        torch.tensor([[5, 6]]), custom_generate=EntropySampler(), mask_token_id=MASK, generation_config=config
    )
    assert (output[:, 3:] == PAD).all()
