"""`attach`: the model stays itself, and `model.generate(sampler=...)` works wherever the model goes."""

import copy
import pickle

import pytest
import torch
from accelerate import Accelerator
from models import (
    BOS,
    DECODERS,
    ENCODERS,
    FAMILIES,
    MASK,
    MAX_LENGTH,
    PAD,
    PLAIN,
    VOCAB,
    WORDS,
    tiny_model,
    tiny_tokenizer,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import IIDSampler, TopProbSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.interface.attach import LearnedOrderGenerationMixin, attach, detach
from hf_learned_order.orders.scorer import OrderScorer

TEXTS = ["w5 w6 w7 w8", "w9 w10"]
OPTIONS = {"max_new_tokens": 6, "max_denoising_steps": 4, "return_dict_in_generate": True}


def attached(family: str = "bert", scorer: bool = False, **config):
    model = tiny_model(family, **config)
    return attach(model, scorer_for(model) if scorer else None, tokenizer=tiny_tokenizer())


def scorer_for(model, **config) -> OrderScorer:
    torch.manual_seed(0)
    denoiser = Denoiser(model, mask_token_id=MASK)
    return OrderScorer.for_denoiser(denoiser, hidden_size=8, num_attention_heads=2, **config)


def tokenized(**options):
    return tiny_tokenizer()(TEXTS, return_tensors="pt", padding=True, **options)


def generated(model, sampler="top_prob", **options) -> LearnedOrderOutput:
    return model.generate(**tokenized(), sampler=sampler, **{**OPTIONS, **options})


def assert_equal(got: LearnedOrderOutput, expected: LearnedOrderOutput) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def with_lora(model, **config) -> PeftModel:
    """An adapter that changes what the model says."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", **config)).eval()
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return wrapped


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("sampler", PLAIN)
    def test_generate(self, family, sampler):
        model = attached(family, scorer=True)
        inputs = tokenized()
        assert "token_type_ids" in inputs
        output = model.generate(**inputs, sampler=sampler, **OPTIONS)
        assert output.sequences.shape == (2, 10)
        assert output.sequences[:, :4].tolist() == inputs["input_ids"].tolist()
        assert MASK not in output.sequences
        assert (output.nfe <= 4).all()
        assert (output.nfe >= 1).all()

    def test_generate_is_decode(self, family):
        model, inputs = attached(family), tokenized()
        expected = decode(
            Denoiser(model, mask_token_id=MASK),
            inputs["input_ids"],
            inputs["attention_mask"],
            sampler=TopProbSampler(),
            max_new_tokens=6,
            max_denoising_steps=4,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id,
        )
        assert_equal(generated(model), expected)
        assert_equal(generated(model, TopProbSampler()), expected)
        sequences = model.generate(inputs["input_ids"], inputs["attention_mask"], sampler="top_prob", max_new_tokens=6)
        assert isinstance(sequences, torch.Tensor)

    def test_the_model_stays_itself(self, family):
        model = tiny_model(family)
        kind, keys = type(model), list(model.state_dict())
        parameters = [name for name, _ in model.named_parameters()]
        modules = [name for name, _ in model.named_modules()]
        assert attach(model, scorer_for(model), mask_token_id=MASK) is model
        assert isinstance(model, kind)
        assert (type(model).__name__, type(model).__module__) == (kind.__name__, kind.__module__)
        assert (type(model).__qualname__, type(model).__doc__) == (kind.__qualname__, kind.__doc__)
        assert list(model.state_dict()) == keys
        assert [name for name, _ in model.named_parameters()] == parameters
        assert [name for name, _ in model.named_modules()] == modules
        assert model.can_generate()

    def test_attach_again_and_detach(self, family):
        model = tiny_model(family)
        kind = type(model)
        attach(model, mask_token_id=MASK)
        once = type(model)
        scorer = scorer_for(model)
        assert attach(model, scorer, mask_token_id=MASK) is model
        assert type(model) is once
        assert type(model).__mro__.count(LearnedOrderGenerationMixin) == 1
        assert model.order_scorer is scorer
        assert detach(model) is model
        assert type(model) is kind
        assert not {"order_scorer", "denoiser_options"} & set(model.__dict__)
        assert detach(model) is model  # nothing to undo

    def test_saved_and_loaded_as_a_plain_model(self, family, tmp_path):
        model = attached(family, scorer=True)
        model.save_pretrained(tmp_path)
        kind = FAMILIES[family][0]
        loaded = kind.from_pretrained(tmp_path, dtype=torch.float64)
        assert type(loaded) is kind
        assert loaded.config.architectures == [kind.__name__]
        assert_equal(generated(attach(loaded, mask_token_id=MASK)), generated(model))

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
    def test_copies(self, family, how, tmp_path):
        model = attached(family, scorer=True)
        if how == "deepcopy":
            copied = copy.deepcopy(model)
        elif how == "pickle":
            copied = pickle.loads(pickle.dumps(model))
        else:
            torch.save(model, tmp_path / "model.pt")
            copied = torch.load(tmp_path / "model.pt", weights_only=False)
        assert copied is not model
        assert type(copied) is type(model)
        assert copied.order_scorer is not model.order_scorer
        for sampler in ("top_prob", "learned_order"):
            expected = generated(model, sampler, seed=0)
            assert_equal(generated(copied, sampler, seed=0), expected)
        nn.init.zeros_(copied.get_input_embeddings().weight)
        assert_equal(generated(model, "learned_order", seed=0), expected)

    def test_peft_attached_before_or_after(self, family):
        before = with_lora(attached(family, scorer=True))
        after = attach(with_lora(tiny_model(family)), scorer_for(tiny_model(family)), mask_token_id=MASK)
        assert isinstance(after, PeftModel)
        for sampler in ("entropy", "learned_order"):
            assert_equal(generated(after, sampler, seed=0), generated(before, sampler, seed=0))
        tuned, plain = generated(before).sequences, generated(attached(family)).sequences
        assert tuned.tolist() != plain.tolist()

    def test_peft_merged(self, family):
        wrapped = with_lora(attached(family))
        expected = generated(wrapped)
        merged = wrapped.merge_and_unload()
        assert isinstance(merged, FAMILIES[family][0])
        assert generated(merged).sequences.tolist() == expected.sequences.tolist()

    def test_peft_copies(self, family):
        model = attach(with_lora(tiny_model(family)), mask_token_id=MASK)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert isinstance(copied, PeftModel)
            assert_equal(generated(copied), generated(model))
        assert type(detach(model)) is PeftModel

    def test_accelerate(self, family):
        model = attached(family, scorer=True)
        expected = generated(model)
        accelerator = Accelerator(cpu=True)
        prepared = accelerator.prepare(model)
        unwrapped = accelerator.unwrap_model(prepared)
        assert unwrapped is model
        assert_equal(generated(unwrapped), expected)

    @pytest.mark.parametrize("training", [True, False])
    def test_training_mode(self, family, training):
        expected = generated(attached(family))
        model = attached(family).train(training)
        frozen = model.get_input_embeddings().eval()
        modes = [module.training for module in model.modules()]
        assert_equal(generated(model), expected)  # no dropout meanwhile
        assert [module.training for module in model.modules()] == modes
        assert not frozen.training

    def test_training_mode_after_an_error(self, family):
        model = attached(family).train()
        with pytest.raises(ValueError, match="max_new_tokens"):
            generated(model, max_new_tokens=0)
        assert model.training

    def test_no_gradients(self, family):
        assert not generated(attached(family)).log_likelihood.requires_grad


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 3}, {"return_dict_in_generate": True}],
    ids=["greedy", "sampling", "beams", "dictionary"],
)
def test_without_a_sampler_generate_is_as_before(family, options):
    plain = tiny_model(family)
    model = attach(copy.deepcopy(plain), scorer_for(plain), mask_token_id=MASK)
    inputs = tokenized(padding_side="left")
    del inputs["token_type_ids"]
    outputs = []
    for m in (plain, model, detach(copy.deepcopy(model))):
        torch.manual_seed(3)
        outputs.append(m.generate(**inputs, max_new_tokens=7, **options))
    for output in outputs[1:]:
        if options.get("return_dict_in_generate"):
            assert type(output) is type(outputs[0])
            assert output.sequences.tolist() == outputs[0].sequences.tolist()
        else:
            assert output.tolist() == outputs[0].tolist()


@pytest.mark.parametrize("when", ["before", "after"])
def test_without_a_sampler_a_peft_wrapped_decoder_generates_as_before(when):
    inputs = tokenized(padding_side="left")
    del inputs["token_type_ids"]
    expected = with_lora(tiny_model("llama")).generate(**inputs, max_new_tokens=5)
    model = tiny_model("llama")
    if when == "before":
        model = with_lora(attach(model, mask_token_id=MASK))
    else:
        model = attach(with_lora(model), mask_token_id=MASK)
    assert model.generate(**inputs, max_new_tokens=5).tolist() == expected.tolist()


@pytest.mark.parametrize("family", ENCODERS)
def test_without_a_sampler_and_without_a_generate(family):
    name = FAMILIES[family][0].__name__
    with pytest.raises(
        ValueError, match=rf"sampler must be one of iid, .*, got None: {name} has no generate of its own"
    ):
        attached(family).generate(**tokenized())
    with pytest.raises(ValueError, match=r"sampler must be one of iid, .*, got None"):
        attach(with_lora(tiny_model(family)), mask_token_id=MASK).generate(**tokenized())


def test_a_peft_wrapper_for_causal_models():
    wrapped = with_lora(attached("llama"), task_type="CAUSAL_LM")
    inputs = tokenized()
    del inputs["token_type_ids"]
    output = wrapped.generate(**inputs, sampler="entropy", **OPTIONS)
    assert_equal(output, generated(with_lora(attached("llama")), "entropy"))


def test_two_models_keep_their_own_scorers():
    first, second = attached("bert", scorer=True), attached("bert")
    assert first.order_scorer is not None
    assert second.order_scorer is None
    assert type(first) is type(second)


class TestOptions:
    def test_sampler_config(self):
        model = attached()
        assert (generated(model, "threshold", sampler_config={"threshold": 0.0}).nfe == 1).all()
        assert (generated(model, "threshold", sampler_config={"threshold": 1.0}).nfe == 4).all()

    def test_learned_order_as_an_instance(self):
        model = attached(scorer=True)
        rule = LearnedOrderSampler(scorer=model.order_scorer)
        assert_equal(generated(model, rule, seed=1), generated(model, "learned_order", seed=1))
        assert_equal(generated(attached(), rule, seed=1), generated(model, "learned_order", seed=1))

    def test_untrained_learned_order_is_iid(self):
        model = attached(scorer=True)
        assert_equal(generated(model, "learned_order", seed=1), generated(model, "iid", seed=1))

    @pytest.mark.parametrize("sampler", ["iid", "random", IIDSampler(), "learned_order"])
    def test_seed(self, sampler):
        model = attached(scorer=True)
        first, same, other = (generated(model, sampler, seed=seed, max_new_tokens=12) for seed in (1, 1, 2))
        assert_equal(same, first)
        assert first.order.tolist() != other.order.tolist()

    def test_do_sample(self):
        model = attached()
        first, same, other = (generated(model, seed=seed, do_sample=True, max_new_tokens=12) for seed in (1, 1, 2))
        assert_equal(same, first)
        assert first.sequences.tolist() != other.sequences.tolist()
        assert_equal(generated(model, seed=1, do_sample=True, temperature=1e-4), generated(model))

    def test_a_seed_leaves_the_global_generator_alone(self):
        model = attached()
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        generated(model, "iid", seed=3, do_sample=True)
        assert torch.rand(1) == expected

    def test_special_tokens(self):
        """From the call, else from the generation configuration, else from the configuration."""
        model = attached()
        everything = list(range(VOCAB))
        assert (generated(model, eos_token_id=everything).sequences[:, 5:] == PAD).all()
        assert (generated(model, eos_token_id=everything, pad_token_id=BOS).sequences[:, 5:] == BOS).all()
        model.generation_config.eos_token_id = everything
        assert (generated(model).sequences[:, 5:] == PAD).all()
        model.generation_config.eos_token_id, model.config.eos_token_id = None, everything
        assert (generated(model).sequences[:, 5:] == PAD).all()
        model.config.eos_token_id = None
        assert (generated(model).order > 0).all()

    def test_tokens_per_forward(self):
        output = generated(attached(), eos_token_id=list(range(VOCAB)), max_denoising_steps=1)
        assert output.tokens_per_forward.tolist() == [1.0, 1.0]

    def test_family_given_by_hand(self):
        model = attach(tiny_model("llama"), mask_token_id=MASK, family=Family(attention="4d", shift=1))
        expected = decode(
            Denoiser(tiny_model("llama"), mask_token_id=MASK, family=Family(attention="4d", shift=1)),
            *(tokenized()[name] for name in ("input_ids", "attention_mask")),
            sampler=TopProbSampler(),
            max_new_tokens=6,
            max_denoising_steps=4,
            eos_token_id=2,
            pad_token_id=PAD,
        )
        assert_equal(generated(model), expected)

    @pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
    def test_scorer_from_a_folder(self, kind, tmp_path):
        model = attached(scorer=True)
        nn.init.normal_(model.order_scorer.network.head.weight)
        model.order_scorer.save_pretrained(tmp_path)
        again = attach(tiny_model("bert"), scorer=kind(tmp_path), mask_token_id=MASK)
        assert_equal(generated(again, "learned_order", seed=0), generated(model, "learned_order", seed=0))


class TestBadInput:
    def test_unknown_sampler(self):
        with pytest.raises(ValueError, match=r"sampler must be one of iid, random, .*, wino, got 'best'"):
            generated(attached(), "best")

    def test_sampler_of_the_wrong_type(self):
        with pytest.raises(TypeError, match="sampler must be a name or a Sampler, got int"):
            generated(attached(), 3)

    def test_unknown_option_of_a_sampler(self):
        with pytest.raises(ValueError, match=r"sampler_config of 'threshold' must have keys among \['threshold'\]"):
            generated(attached(), "threshold", sampler_config={"gamma": 1.0})

    def test_options_beside_an_instance(self):
        with pytest.raises(ValueError, match="sampler_config must be empty when sampler is an instance"):
            generated(attached(), TopProbSampler(), sampler_config={"threshold": 1.0})

    def test_two_samplers(self):
        message = "sampler must be the one that sampler_config names, got 'factor' and 'top_prob'"
        with pytest.raises(ValueError, match=message):
            generated(attached(), "factor", sampler_config={"sampler": "top_prob"})
        same = {"sampler": "factor", "factor": 0.0}
        expected = generated(attached(), "factor", sampler_config={"factor": 0.0})
        for sampler in ("factor", None):
            assert_equal(generated(attached(), sampler, sampler_config=same), expected)

    @pytest.mark.parametrize("sampler", ["threshold", None])
    def test_options_of_another_type(self, sampler):
        with pytest.raises(TypeError, match="sampler_config must be a dict, got list"):
            generated(attached(), sampler, sampler_config=["threshold"])

    def test_learned_order_without_a_scorer(self):
        with pytest.raises(ValueError, match=r'"learned_order" needs a scorer: attach\(model, scorer=...\)'):
            generated(attached(), "learned_order")

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"hidden_size": 16}, "its hidden size must be 16, but this model's is 32"),
            ({"vocab_size": VOCAB + 1}, f"its vocabulary size must be {VOCAB + 1}, but this model's is {VOCAB}"),
            ({"mask_token_id": 5}, f"its mask token id must be 5, but this model's is {MASK}"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_scorer_for_another_denoiser(self, changed, message):
        mask_token_id = changed.pop("mask_token_id", MASK) if "mask_token_id" in changed else MASK
        other = Denoiser(tiny_model("bert", **changed), mask_token_id=mask_token_id)
        scorer = OrderScorer.for_denoiser(other, hidden_size=8, num_attention_heads=2)
        with pytest.raises(ValueError, match=f"scorer was made for another denoiser .*{message}"):
            attach(tiny_model("bert"), scorer, mask_token_id=MASK)
        model = attached()
        with pytest.raises(ValueError, match=f"scorer was made for another denoiser .*{message}"):
            generated(model, LearnedOrderSampler(scorer=scorer))
        with pytest.raises(ValueError, match=message):
            generated(model, "learned_order", sampler_config={"scorer": scorer})

    def test_a_failed_attach_changes_nothing(self):
        model = tiny_model("bert")
        kind = type(model)
        other = scorer_for(tiny_model("bert", hidden_size=16))
        with pytest.raises(ValueError, match="scorer was made for another denoiser"):
            attach(model, other, mask_token_id=MASK)
        assert type(model) is kind
        assert "order_scorer" not in model.__dict__

    def test_no_mask_token(self):
        with pytest.raises(ValueError, match="neither the tokenizer nor the configuration of BertForMaskedLM"):
            attach(tiny_model("bert"), tokenizer=tiny_tokenizer(mask_token=None))
        with pytest.raises(ValueError, match="mask_token_id must be given, or a tokenizer with a mask token"):
            attach(tiny_model("bert"))

    def test_not_a_model(self):
        with pytest.raises(TypeError, match="model must be a transformers model, got Linear"):
            attach(nn.Linear(1, 1))
        with pytest.raises(TypeError, match="model must be a transformers model, got str"):
            attach("bert")

    def test_not_a_scorer(self):
        with pytest.raises(TypeError, match="scorer must be an OrderScorer or a path, got Linear"):
            attach(tiny_model("bert"), nn.Linear(1, 1), mask_token_id=MASK)

    @pytest.mark.parametrize("name", ["max_new_tokens", "max_denoising_steps"])
    @pytest.mark.parametrize("value", [0, -3, 1.5])
    def test_counts(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value}"):
            generated(attached(), **{name: value})

    def test_too_long(self):
        with pytest.raises(ValueError, match=rf"must fit the model's {MAX_LENGTH} positions, got 4 \+ {MAX_LENGTH}"):
            generated(attached(), max_new_tokens=MAX_LENGTH)

    def test_attention_mask(self):
        ids = torch.full((2, 4), WORDS[0])
        with pytest.raises(ValueError, match=r"attention_mask must have the shape of input_ids \(2, 4\), got \(2, 5\)"):
            attached().generate(ids, torch.ones(2, 5), sampler="iid")

    def test_input_ids(self):
        with pytest.raises(TypeError, match=r"input_ids must be an integer tensor \[batch, prompt\], got torch"):
            attached().generate(torch.zeros(2, 4), sampler="iid")

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_temperature(self, temperature):
        with pytest.raises(ValueError, match="temperature must be positive when do_sample=True, got"):
            generated(attached(), do_sample=True, temperature=temperature)

    @pytest.mark.parametrize("do_sample", [True, False])
    @pytest.mark.parametrize("temperature", ["hot", True])
    def test_temperature_of_another_type(self, temperature, do_sample):
        with pytest.raises(ValueError, match=f"temperature must be a number, got {temperature!r}"):
            generated(attached(), do_sample=do_sample, temperature=temperature)

    @pytest.mark.parametrize("seed", ["a", 1.5, True])
    def test_seed(self, seed):
        with pytest.raises(ValueError, match=f"seed must be an integer, got {seed!r}"):
            generated(attached(), "iid", seed=seed)

    @pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
    @pytest.mark.parametrize("token", [-5, VOCAB, 9999, "x", True])
    def test_special_tokens(self, name, token):
        message = rf"{name} must be in the vocabulary, \[0, {VOCAB}\), got {token!r}"
        with pytest.raises(ValueError, match=message):
            generated(attached(), **{name: token})
        model = attached()
        setattr(model.generation_config, name, token)
        with pytest.raises(ValueError, match=message):
            generated(model)
        ids = torch.tensor([[WORDS[0], MASK]])
        assert MASK not in model.generate(ids, sampler="top_prob", infill=True)  # where nothing ends

    def test_one_of_several_special_tokens(self):
        with pytest.raises(ValueError, match=r"eos_token_id must be in the vocabulary, .*, got -1"):
            generated(attached(), eos_token_id=[2, -1])

    @pytest.mark.parametrize("texts", ["", ["w5", ""], [5], 5])
    def test_stop_strings(self, texts):
        with pytest.raises(ValueError, match="stop_strings must be a text or a list of texts, none empty, got"):
            generated(attached(), stop_strings=texts, tokenizer=tiny_tokenizer())

    def test_no_stop_strings(self):
        assert_equal(generated(attached(), stop_strings=[]), generated(attached()))

    @pytest.mark.parametrize("token", ["1", 1.0])
    def test_mask_token_of_another_type(self, token):
        with pytest.raises(ValueError, match=rf"mask_token_id must be in \[0, {VOCAB}\), got {token!r}"):
            attach(tiny_model("bert"), mask_token_id=token)

    def test_token_types(self):
        inputs = tokenized()
        inputs["token_type_ids"][0, 0] = 1
        with pytest.raises(ValueError, match="token_type_ids must be 0 everywhere"):
            attached().generate(**inputs, sampler="iid")
