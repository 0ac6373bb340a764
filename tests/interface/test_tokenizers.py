"""Warnings about tokenizers: those that are another model's, and those that end a prompt by themselves."""

import warnings

import pytest
import torch
from models import EOS, MASK, VOCAB, WORDS, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from hf_learned_order.interface.attach import attach, detach
from hf_learned_order.interface.tokenizers import Ending, ending_of

OPTIONS = {"sampler": "top_prob", "max_new_tokens": 4}


def berts(**options):
    """Puts [BOS] before a text and [EOS] behind it."""
    tokenizer = tiny_tokenizer(sep_token="[EOS]", **options)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 0), ("[EOS]", EOS)]
    )
    return tokenizer


class TestEndings:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_canvas_behind_the_end_of_a_text(self, side):
        tokenizer = berts()
        model = attach(tiny_model("bert"), tokenizer=tokenizer)
        inputs = tokenizer(["w5 w6 w7", "w8"], return_tensors="pt", padding=True, padding_side=side)
        message = r"input_ids end with \[EOS\], which the tokenizer appends by itself, .*add_special_tokens=False"
        with pytest.warns(UserWarning, match=message):
            model.generate(**inputs, **OPTIONS)
        with pytest.warns(UserWarning, match=message):
            model.generate(inputs["input_ids"][:1], **OPTIONS)
        with pytest.warns(UserWarning, match=message):  # the call's own
            attach(tiny_model("bert"), mask_token_id=MASK).generate(**inputs, tokenizer=tokenizer, **OPTIONS)

    def test_not_otherwise(self):
        tokenizer = berts()
        model = attach(tiny_model("bert"), tokenizer=tokenizer)
        plain = tokenizer(["w5 w6"], return_tensors="pt", add_special_tokens=False)
        model.generate(**plain, **OPTIONS)
        model.generate(torch.tensor([[5, EOS, 6]]), **OPTIONS)  # in between
        model.generate(torch.tensor([[0, 5, MASK, EOS]]), sampler="top_prob", infill=True)
        attach(model, tokenizer=tiny_tokenizer())
        model.generate(torch.tensor([[5, 6, EOS]]), **OPTIONS)

    def test_what_a_tokenizer_appends(self):
        assert ending_of(berts()) == Ending(EOS, "[EOS]")
        assert ending_of(berts(eos_token=None)) == Ending(EOS, "[EOS]")
        assert ending_of(berts(eos_token="w9")) is None  # [SEP] then comes between prompt and response
        assert ending_of(tiny_tokenizer()) is None
        assert ending_of(None) is None
        model = attach(tiny_model("bert"), tokenizer=berts())
        assert "prompt_ending" not in detach(model).__dict__


class TestForeign:
    @staticmethod
    def attached(model, tokenizer):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attach(model, tokenizer=tokenizer)
        return [str(one.message) for one in caught]

    def test_another_mask_token(self):
        model = tiny_model("llama", mask_token_id=MASK)
        assert self.attached(model, tiny_tokenizer()) == []
        assert self.attached(model, tiny_tokenizer(mask_token=None)) == []
        assert self.attached(model, tiny_tokenizer(mask_token="w7")) == [
            f"tokenizer must be the model's, but its mask token is 7 and the model's is {MASK}"
        ]
        assert self.attached(tiny_model("llama"), tiny_tokenizer(mask_token="w7")) == []  # nothing else is known

    @pytest.mark.parametrize(("size", "right"), [(VOCAB + 1, True), (VOCAB + 4, True), (VOCAB - 1, False), (60, False)])
    def test_a_vocabulary_of_another_size(self, size, right):
        message = f"tokenizer must be the model's, but it has {len(tiny_tokenizer())} tokens and the model {size}"
        assert self.attached(tiny_model("llama", vocab_size=size), tiny_tokenizer()) == ([] if right else [message])
        assert len(tiny_tokenizer()) == VOCAB == len(WORDS) + 4
