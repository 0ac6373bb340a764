"""Published layouts, loaded as transformers' own classes, against references written from the layouts."""

import json

import pytest
import torch
from models import BOS, EOS, MASK, PAD, VOCAB, WORDS, special_tokens, tiny_tokenizer
from published import DREAM, LLADA, a2d, llada_logits, llada_weights, write_checkpoint
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.interface.attach import attach

A2D = {
    "A2DLlamaLMHeadModel": ("llama", LlamaForCausalLM, LlamaConfig, {}),
    "A2DQwen2LMHeadModel": ("qwen2", Qwen2ForCausalLM, Qwen2Config, {"max_window_layers": 28}),
    "A2DQwen3LMHeadModel": ("qwen3", Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
}


def words(*shape: int) -> torch.Tensor:
    return torch.randint(WORDS.start, WORDS.stop, shape, generator=torch.Generator().manual_seed(1))


def llada(folder, *, shards: int = 1, dtype: torch.dtype = torch.float32, **fields):
    """A checkpoint and what it holds."""
    config = LLADA | fields
    weights = llada_weights(config, dtype=dtype)
    return write_checkpoint(folder, config, weights, shards=shards), config, weights


def said(model, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return Denoiser(model.eval(), **kwargs)(ids, torch.ones_like(ids), 1)[0]


def stock(config: dict, model_class, config_class):
    """A random model of a stock class with the published sizes."""
    torch.manual_seed(0)
    fields = {key: value for key, value in config.items() if key not in ("model_type", "auto_map", "architectures")}
    return model_class(config_class(**fields | {"initializer_range": 0.4})).eval()


def fully(model, ids: torch.Tensor) -> torch.Tensor:
    """What the stock class says when everyone sees everyone."""
    full = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=full, use_cache=False).logits


class TestLLaDA:
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("weight_tying", [False, True], ids=["untied", "tied"])
    @pytest.mark.parametrize("n_kv_heads", [4, 2])
    def test_logits_of_the_published_block_to_the_bit(self, shards, weight_tying, n_kv_heads, tmp_path):
        name, config, weights = llada(tmp_path, shards=shards, weight_tying=weight_tying, n_kv_heads=n_kv_heads)
        model = load_denoiser(name)
        assert type(model) is LlamaForCausalLM
        ids = words(1, 11)
        assert torch.equal(said(model, ids)[0], llada_logits(weights, config, ids[0])[1:])

    def test_one_head_for_all_keys(self, tmp_path):
        """OLMo's older way to say it."""
        name, config, _ = llada(tmp_path, n_kv_heads=1)
        (tmp_path / "config.json").write_text(json.dumps(config | {"n_kv_heads": None, "multi_query_attention": True}))
        assert load_denoiser(name).config.num_key_value_heads == 1

    def test_bfloat16_stays_bfloat16(self, tmp_path):
        """The published rotation is in float32, Llama's in bfloat16: near, not equal."""
        name, config, weights = llada(tmp_path, dtype=torch.bfloat16)
        model = load_denoiser(name)
        assert model.dtype == torch.bfloat16
        ids = words(1, 11)
        expected = llada_logits(weights, config, ids[0])[1:].float()
        assert (said(model, ids)[0].float() - expected).abs().max() < 0.1 * expected.abs().max()
        assert load_denoiser(name, dtype=torch.float64).dtype == torch.float64

    def test_decodes_as_it_is(self, tmp_path):
        """Mask, end and padding come with the checkpoint, also where the tokenizer registers no mask token."""
        name, *_ = llada(tmp_path)
        tokenizer = tiny_tokenizer(mask_token=None)
        model = attach(load_denoiser(name), tokenizer=tokenizer)
        prompts = tokenizer(["w4 w5 w6", "w7"], return_tensors="pt", padding=True)
        out = model.generate(**prompts, sampler="top_prob", max_new_tokens=6, return_dict_in_generate=True)
        assert out.sequences.shape == (2, 9)
        assert (out.sequences != MASK).all()
        assert special_tokens(model) == [EOS, EOS]

    def test_published_ids(self, tmp_path):
        """At the published vocabulary, from the table: the mask, both ends of a turn, the padding."""
        fields = {"embedding_size": 126464, "vocab_size": 126464, "d_model": 8, "n_layers": 1, "mlp_hidden_size": 8}
        name, *_ = llada(tmp_path, **fields, eos_token_id=126081, pad_token_id=126081, mask_token_id=None)
        model = attach(load_denoiser(name))
        assert model._denoiser().mask_token_id == 126336
        assert special_tokens(model) == [[126081, 126348], 126081]

    def test_saved_again_it_is_a_llama(self, tmp_path):
        name, *_ = llada(tmp_path / "published", shards=2)
        model = load_denoiser(name)
        model.save_pretrained(tmp_path / "again")
        ids = words(2, 9)
        for again in (load_denoiser(tmp_path / "again"), AutoModelForCausalLM.from_pretrained(tmp_path / "again")):
            assert type(again) is LlamaForCausalLM
            assert torch.equal(said(again, ids), said(model, ids))
        assert Denoiser(again).family == Denoiser(model).family
        assert again.generation_config.pad_token_id == EOS

    def test_remote_code_is_not_wanted(self, tmp_path):
        """The native way comes first, also for those who would trust."""
        name, *_ = llada(tmp_path)
        assert type(load_denoiser(name, trust_remote_code=True)) is LlamaForCausalLM

    def test_every_row_of_the_end_token_trains(self, tmp_path):
        """Padding is EOS here, and a Llama never trains the embedding of its padding."""
        name, *_ = llada(tmp_path)
        model = load_denoiser(name)
        Denoiser(model)(torch.tensor([[EOS, MASK, 5]]), torch.ones(1, 3), 1)[0].logsumexp(-1).sum().backward()
        assert model.get_input_embeddings().weight.grad[EOS].abs().sum() > 0

    def test_memory_of_one_copy(self, tmp_path):
        """What stays on the heap after each weight was read, at its highest, over the weights themselves."""
        fields = {"d_model": 256, "mlp_hidden_size": 1024, "n_layers": 8}
        name, _, weights = llada(tmp_path, shards=2, **fields)
        size = sum(weight.nbytes for weight in weights.values())
        del weights
        load_denoiser(name)  # imports and buffers that stay
        highest = peak_heap(lambda: load_denoiser(name))
        assert highest < 1.3 * size

    @pytest.mark.parametrize(
        ("field", "value"),
        [("alibi", True), ("block_type", "sequential"), ("include_qkv_bias", True), ("scale_logits", True)],
    )
    def test_what_is_no_llama(self, field, value, tmp_path):
        name, *_ = llada(tmp_path, **{field: value})
        message = f"a LLaDA checkpoint must have {field}=.* to load as a Llama, got {value!r}"
        with pytest.raises(ValueError, match=message):
            load_denoiser(name)

    def test_fields_that_are_missing(self, tmp_path):
        name, *_ = llada(tmp_path)
        fields = {key: value for key, value in LLADA.items() if key not in ("d_model", "rope_theta")}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=r"a LLaDA checkpoint must name d_model, rope_theta in its config.json"):
            load_denoiser(name)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("blocks.1.ff_out", None, r"'missing_keys': \['model.layers.1.mlp.down_proj.weight'\]"),
            ("blocks.0.q_proj", "blocks.0.att_proj", r"'unexpected_keys': \['model.layers.0.att_proj.weight'\]"),
        ],
    )
    def test_weights_of_another_layout(self, old, new, message, tmp_path):
        weights = llada_weights(LLADA)
        moved = weights.pop(f"model.transformer.{old}.weight")
        if new is not None:
            weights[f"model.transformer.{new}.weight"] = moved
        name = write_checkpoint(tmp_path, LLADA, weights)
        with pytest.raises(ValueError, match=f"weights of .* must be those of a LLaDAModelLM, got .*{message}"):
            load_denoiser(name)


def peak_heap(load) -> int:
    """The most bytes of storage that tensors made by `load` held at any time; mapped files do not count."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = load()
    held = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    del kept
    return highest


class TestDream:
    @pytest.mark.parametrize("shards", [1, 2])
    def test_a_qwen2_with_logits_one_place_before(self, shards, tmp_path):
        reference = stock(DREAM, Qwen2ForCausalLM, Qwen2Config)
        model = load_denoiser(write_checkpoint(tmp_path, DREAM, reference.state_dict(), shards=shards))
        assert type(model) is Qwen2ForCausalLM
        ids = words(2, 9)
        assert torch.equal(said(model, ids), fully(reference, ids)[:, :-1])

    def test_ids(self, tmp_path):
        reference = stock(DREAM, Qwen2ForCausalLM, Qwen2Config)
        config = {key: value for key, value in DREAM.items() if key not in ("mask_token_id", "eos_token_id")}
        name = write_checkpoint(tmp_path, config, reference.state_dict())
        found = load_denoiser(name).config
        assert (found.mask_token_id, found.eos_token_id, found.pad_token_id) == (151666, 151643, PAD)
        name = write_checkpoint(tmp_path, DREAM, reference.state_dict())
        model = attach(load_denoiser(name))
        assert model._denoiser().mask_token_id == MASK
        assert [*special_tokens(model), model.config.bos_token_id] == [EOS, PAD, BOS]

    def test_saved_again_it_keeps_its_shift(self, tmp_path):
        reference = stock(DREAM, Qwen2ForCausalLM, Qwen2Config)
        model = load_denoiser(write_checkpoint(tmp_path, DREAM, reference.state_dict()))
        model.save_pretrained(tmp_path / "again")
        again = load_denoiser(tmp_path / "again")
        assert Denoiser(again).family.shift == 1
        assert torch.equal(said(again, words(1, 7)), said(model, words(1, 7)))

    def test_its_namesake_is_another_model(self, tmp_path):
        """DreamReasoner has Dream's model type, no shift, and attention in blocks."""
        config = DREAM | {"architectures": ["DreamForCausalLM"]}
        name = write_checkpoint(tmp_path, config, {"a": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"trust_remote_code must be True to load .* for its DreamForCausalLM"):
            load_denoiser(name)


@pytest.mark.parametrize("architecture", A2D)
def test_a2d_is_its_base_without_shift(architecture, tmp_path):
    base, model_class, config_class, fields = A2D[architecture]
    config = a2d(base, architecture, **fields)
    reference = stock(config, model_class, config_class)
    weights = reference.state_dict()
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    model = load_denoiser(write_checkpoint(tmp_path, config, weights))
    assert type(model) is model_class
    ids = words(2, 9)
    assert torch.equal(said(model, ids, mask_token_id=MASK), fully(reference, ids)[:, 1:])
    assert model.config.mask_token_id == (151669 if base == "qwen3" else None)


def test_vocabularies_of_the_references():
    assert LLADA["vocab_size"] == DREAM["vocab_size"] == VOCAB
