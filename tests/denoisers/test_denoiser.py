"""Every family, called as a denoiser: bidirectional, blind to padding, logits and hidden states at their positions."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DECODERS, EOS, FAMILIES, HIDDEN, MASK, MAX_LENGTH, PAD, VOCAB, WORDS, tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    LongformerConfig,
    LongformerForMaskedLM,
)

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.denoisers.loading import load_denoiser

SHIFTS = {"qwen2": 1}


@functools.cache
def denoiser_of(family: str) -> Denoiser:
    return Denoiser(tiny_model(family), mask_token_id=MASK)


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(WORDS.start, WORDS.stop, shape, generator=torch.Generator().manual_seed(seed))


def call(denoiser: Denoiser, ids: torch.Tensor, start: int = 1, mask: torch.Tensor | None = None, **kwargs):
    with torch.no_grad():
        return denoiser(ids, torch.ones_like(ids) if mask is None else mask, start, **kwargs)


def raw_logits(family: str, ids: torch.Tensor) -> torch.Tensor:
    """What the model itself says at every place when each token sees each."""
    full = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    see_all = {"attention_mask": full} if family in DECODERS else {}
    with torch.no_grad():
        return denoiser_of(family).model(input_ids=ids, **see_all).logits


def head_of(family: str, model):
    heads = {"bert": "cls", "roberta": "lm_head"}
    if family == "modernbert":
        return lambda hidden: model.decoder(model.head(hidden))
    return getattr(model, heads.get(family, "lm_head"))


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_first_position_sees_the_last_token(self, family):
        ids = words(1, 12)
        changed = ids.clone()
        changed[0, -1] = WORDS.start + (ids[0, -1] - WORDS.start + 1) % len(WORDS)
        before, after = (call(denoiser_of(family), x)[0][0, 0] for x in (ids, changed))
        assert (before - after).abs().max() > 1e-3

    @settings(max_examples=8)
    @given(
        seed=st.integers(0, 999),
        pads=st.lists(st.integers(0, 20), min_size=1, max_size=3),
        filler=st.sampled_from([PAD, WORDS.start]),
    )
    def test_padding_on_the_left_changes_nothing(self, family, seed, pads, filler):
        ids = words(len(pads), 10, seed=seed)
        widest = max(pads)
        padded = torch.full((len(pads), widest + 10), filler)
        padded[:, widest:] = ids
        mask = (torch.arange(widest + 10) >= widest).long().repeat(len(pads), 1)
        for row, pad in enumerate(pads):  # rows of different lengths, all of which end together
            padded[row, pad:widest] = words(widest - pad, seed=seed + 1)
            mask[row, pad:] = 1
        got, hidden = call(denoiser_of(family), padded, widest + 3, mask, hidden_states=True)
        for row, pad in enumerate(pads):
            alone = call(denoiser_of(family), padded[row : row + 1, pad:], widest - pad + 3, hidden_states=True)
            torch.testing.assert_close(got[row], alone[0][0])
            torch.testing.assert_close(hidden[row], alone[1][0])

    def test_logits_stand_at_their_positions(self, family):
        ids = words(2, 9)
        logits, _ = call(denoiser_of(family), ids, 4)
        shift = SHIFTS.get(family, 0)
        assert logits.shape == (2, 5, VOCAB)
        torch.testing.assert_close(logits, raw_logits(family, ids)[:, 4 - shift : 9 - shift])

    def test_hidden_states_are_those_that_the_logits_come_from(self, family):
        denoiser = denoiser_of(family)
        logits, hidden = call(denoiser, words(2, 9), 4, hidden_states=True)
        assert hidden.shape == (2, 5, denoiser.hidden_size) == (2, 5, HIDDEN)
        torch.testing.assert_close(head_of(family, denoiser.model)(hidden), logits)

    def test_logits_of_some_positions_are_those_of_all(self, family):
        denoiser = denoiser_of(family)
        ids, at = words(2, 9), (torch.tensor([0, 1, 1]), torch.tensor([3, 0, 4]))
        logits, hidden = call(denoiser, ids, 4, hidden_states=True)
        widths = []
        hook = denoiser.model.get_output_embeddings().register_forward_hook(
            lambda _m, _i, out: widths.append(out.shape)
        )
        some, same = call(denoiser, ids, 4, hidden_states=True, at=at)
        hook.remove()
        torch.testing.assert_close(some, logits[at])
        torch.testing.assert_close(same, hidden)
        assert widths == [(1, 3, VOCAB)], "the head is asked for these only"

    @pytest.mark.parametrize("wanted", [True, (0, -1)])
    def test_only_hidden_states_that_are_wanted_are_kept(self, family, wanted):
        denoiser, seen = denoiser_of(family), []
        hook = denoiser.model.register_forward_hook(lambda _m, _i, out: seen.append(out.hidden_states))
        call(denoiser, words(1, 5), hidden_states=wanted)
        hook.remove()
        assert seen == [None]
        # nothing stays behind on the layers
        assert not any(module._forward_pre_hooks for module in denoiser.model.modules())

    @pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (-1,), (-2,), (-3,), (-1, 0), (1, -3, 2)])
    def test_hidden_states_by_number(self, family, wanted):
        """Those of transformers' own tuple, side by side in the order in which they are wanted."""
        denoiser, ids = denoiser_of(family), words(2, 9)
        mask = torch.ones(2, 1, 9, 9, dtype=torch.bool) if family in DECODERS else torch.ones_like(ids)
        with torch.no_grad():
            every = denoiser.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        start = 4 - SHIFTS.get(family, 0)
        expected = torch.cat([every[index][:, start : start + 5] for index in wanted], -1)
        logits, hidden = call(denoiser, ids, 4, hidden_states=wanted)
        torch.testing.assert_close(hidden, expected)
        assert len({state.abs().sum().item() for state in every}) == 3  # their sums are 0 behind a norm
        torch.testing.assert_close(logits, call(denoiser, ids, 4)[0])
        at = (torch.tensor([0, 1]), torch.tensor([3, 0]))
        torch.testing.assert_close(call(denoiser, ids, 4, hidden_states=wanted, at=at)[1], hidden)

    def test_hidden_states_of_padded_rows(self, family):
        ids, mask = words(2, 12), torch.ones(2, 12, dtype=torch.long)
        mask[1, :4] = 0
        _, hidden = call(denoiser_of(family), ids, 6, mask, hidden_states=(0, 1))
        alone = call(denoiser_of(family), ids[1:, 4:], 2, hidden_states=(0, 1))[1]
        torch.testing.assert_close(hidden[1], alone[0])

    def test_hidden_states_only_on_request(self, family):
        assert call(denoiser_of(family), words(1, 4))[1] is None

    def test_the_longest_sequence_runs(self, family):
        denoiser = denoiser_of(family)
        assert denoiser.max_length == MAX_LENGTH
        assert call(denoiser, words(1, MAX_LENGTH))[0].isfinite().all()

    def test_a_lora_wrapped_model_is_the_same_denoiser(self, family):
        ids, mask = words(2, 8), torch.ones(2, 8, dtype=torch.long)
        mask[0, :3] = 0  # so that position ids matter
        expected, _ = call(denoiser_of(family), ids, 4, mask)
        wrapped = get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules="all-linear"))
        denoiser = Denoiser(wrapped.eval(), mask_token_id=MASK)
        assert (denoiser.hidden_size, denoiser.max_length) == (HIDDEN, MAX_LENGTH)
        logits, hidden = call(denoiser, ids, 4, mask, hidden_states=(1, -1))
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(hidden, call(denoiser_of(family), ids, 4, mask, hidden_states=(1, -1))[1])

    def test_gradients_reach_the_model(self, family):
        denoiser = Denoiser(tiny_model(family), mask_token_id=MASK)
        ids = words(1, 6)
        denoiser(ids, torch.ones_like(ids), 2)[0].logsumexp(-1).sum().backward()
        assert denoiser.model.get_input_embeddings().weight.grad.abs().sum() > 0

    def test_loaded_as_what_it_is(self, family, tmp_path):
        model = denoiser_of(family).model
        model.save_pretrained(tmp_path)
        loaded = load_denoiser(str(tmp_path), dtype=torch.float64)
        assert type(loaded) is type(model)
        expected, got = (call(d, words(1, 6))[0] for d in (denoiser_of(family), Denoiser(loaded, mask_token_id=MASK)))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("family", DECODERS)
def test_eager_attention_is_the_same_denoiser(family):
    """It would add a bool mask to its scores, and padding would be seen."""
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    ids, mask = words(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    expected, _ = call(denoiser_of(family), ids, 5, mask)
    got, _ = call(Denoiser(model, mask_token_id=MASK), ids, 5, mask)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)  # its softmax is in float32


class TestWholeLogits:
    """Models whose head cannot be asked for some positions."""

    AT = (torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]))

    def assert_same(self, denoiser):
        for _ in range(2):
            some, _ = call(denoiser, words(2, 9), 4, at=self.AT)
            assert torch.equal(some, call(denoiser, words(2, 9), 4)[0][self.AT])

    def test_a_head_that_is_no_module(self):
        class Tied(type(tiny_model("llama"))):
            def get_output_embeddings(self):
                return None

        model = tiny_model("llama")
        model.__class__ = Tied
        self.assert_same(Denoiser(model, mask_token_id=MASK))

    def test_a_head_that_is_the_embedding(self):
        """As in LLaDA's own code with tied weights: what goes into it are token ids."""

        class Tied(type(tiny_model("llama"))):
            def get_output_embeddings(self):
                return self.model.embed_tokens

        model = tiny_model("llama")
        model.__class__ = Tied
        self.assert_same(Denoiser(model, mask_token_id=MASK))

    def test_a_model_that_returns_more_than_its_head_says(self):
        class Doubled(type(tiny_model("llama"))):
            def forward(self, *args, **kwargs):
                output = super().forward(*args, **kwargs)
                output.logits = output.logits.repeat(1, 2, 1) if len(output.logits) == 1 else output.logits
                return output

        model = tiny_model("llama")
        model.__class__ = Doubled
        self.assert_same(Denoiser(model, mask_token_id=MASK, family=Family(attention="4d")))


class TestLayersThatAreNotThere:
    @pytest.mark.parametrize("index", [3, -4, 40])
    def test_out_of_range(self, index):
        message = rf"hidden_layers must be in \[-3, 2\] with BertForMaskedLM of 2 layers, got \[0, {index}\]"
        with pytest.raises(ValueError, match=message):
            call(denoiser_of("bert"), words(1, 4), hidden_states=(0, index))

    @pytest.mark.parametrize("indices", [(2, -1), (0, 1, -3)])
    def test_the_same_one_twice(self, indices):
        with pytest.raises(
            ValueError, match=r"hidden_layers must be different ones, got .* with 2 layers these are \["
        ):
            call(denoiser_of("bert"), words(1, 4), hidden_states=indices)

    def test_layers_that_share_one_module(self):
        shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "embedding_size": 8}
        albert = AlbertForMaskedLM(AlbertConfig(vocab_size=VOCAB, intermediate_size=8, **shape))
        denoiser = Denoiser(albert, mask_token_id=MASK)
        assert call(denoiser, words(1, 4), hidden_states=(-1,))[1].shape == (1, 3, 8)
        message = r"must be None or \[-1\] with AlbertForMaskedLM: its layers, .* counts 2, are not its first .* \(1\)"
        with pytest.raises(ValueError, match=message):
            call(denoiser, words(1, 4), hidden_states=(1,))

    def test_layers_that_are_no_list(self):
        denoiser = Denoiser(tiny_model("bert"), mask_token_id=MASK)
        encoder = denoiser.model.bert.encoder
        encoder.layer = torch.nn.Sequential(*encoder.layer)
        with pytest.raises(ValueError, match=r"BertForMaskedLM: its layers, .* counts 2, are not .* \(none\)"):
            call(denoiser, words(1, 4), hidden_states=(1,))

    def test_layers_that_see_another_sequence(self):
        """Longformer pads it to its window."""
        shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
        config = LongformerConfig(vocab_size=VOCAB, attention_window=8, max_position_embeddings=32, **shape)
        denoiser = Denoiser(LongformerForMaskedLM(config).eval(), mask_token_id=MASK)
        message = r"with LongformerForMaskedLM: its layer 0 is not given hidden states \[1, 6, 8\] once a call"
        with pytest.raises(ValueError, match=message):
            call(denoiser, words(1, 6), hidden_states=(0,))


def test_family_given_by_hand_wins():
    """A decoder tuned without shift from a family that has one."""
    model = denoiser_of("qwen2").model
    ids = words(1, 7)
    logits, _ = call(Denoiser(model, mask_token_id=MASK, family=Family(attention="4d")), ids, 3)
    torch.testing.assert_close(logits, raw_logits("qwen2", ids)[:, 3:])


def test_mask_token_from_the_configuration_or_by_hand():
    model = tiny_model("bert")
    model.config.mask_token_id = MASK
    assert Denoiser(model).mask_token_id == MASK
    assert Denoiser(model, mask_token_id=7).mask_token_id == 7


def test_no_mask_token():
    with pytest.raises(ValueError, match=r"mask_token_id must be given, or a tokenizer .* LlamaForCausalLM"):
        Denoiser(tiny_model("llama"))


@pytest.mark.parametrize("mask_token_id", [-1, VOCAB])
def test_mask_token_outside_the_vocabulary(mask_token_id):
    with pytest.raises(ValueError, match=rf"mask_token_id must be in \[0, {VOCAB}\), got {mask_token_id}"):
        Denoiser(tiny_model("bert"), mask_token_id=mask_token_id)


def test_no_length_limit():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=8, n_layer=1, n_head=1))
    assert Denoiser(bloom, mask_token_id=MASK, family=Family(attention="4d")).max_length is None


def test_special_tokens_of_the_tiny_tokenizer():
    tokenizer = tiny_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, EOS)
