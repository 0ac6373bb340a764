"""Tiny random models of every family, and a tokenizer to go with them: real classes, no weights to load."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.interface.settings import Settings

VOCAB, HIDDEN = 40, 32
BOS, PAD, EOS, MASK = 0, 1, 2, 3
WORDS = range(4, VOCAB)
MAX_LENGTH = 64

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": HIDDEN, "intermediate_size": 64}
# large weights: at the usual 0.02 every prediction is nearly uniform and all positions look alike
SHARED = {**SIZES, "vocab_size": VOCAB, "initializer_range": 0.4, "pad_token_id": PAD, "bos_token_id": BOS}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
MODERN = {"cls_token_id": BOS, "sep_token_id": EOS, "global_attn_every_n_layers": 2, "local_attention": 8}

FAMILIES = {
    "bert": (BertForMaskedLM, BertConfig, {**DROPOUT, "max_position_embeddings": MAX_LENGTH}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, {**DROPOUT, "max_position_embeddings": MAX_LENGTH + 2}),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig, {**MODERN, "max_position_embeddings": MAX_LENGTH}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"max_position_embeddings": MAX_LENGTH}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"max_position_embeddings": MAX_LENGTH, "num_key_value_heads": 1}),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"max_position_embeddings": MAX_LENGTH, "num_key_value_heads": 1, "head_dim": 16},
    ),
}
# rules for any model as it is loaded; the others read attention maps (test_dapd.py)
PLAIN = [name for name, rule in SAMPLERS.items() if not rule.needs_attentions]
ENCODERS = ("bert", "roberta", "modernbert")
DECODERS = ("llama", "qwen2", "qwen3")


def tiny_model(family: str, *, seed: int = 0, **config) -> PreTrainedModel:
    """A random model in eval mode, in float64: rows of different batches then agree to more than float32's last bit."""
    model_class, config_class, options = FAMILIES[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SHARED, "eos_token_id": EOS, **options, **config}))
    return model.double().eval()


def special_tokens(model: PreTrainedModel) -> list:
    """[EOS, padding] that an attached model decodes with unless the call says otherwise."""
    holders = (model.config, model.denoiser_options["family"])
    settings = Settings.resolve({}, None, own=model.generation_config, special_tokens=holders)
    return [settings.eos_token_id, settings.pad_token_id]


def tiny_tokenizer(**options) -> PreTrainedTokenizerFast:
    """One token a word `w4 ... w39`; returns token type ids too, as BERT's does."""
    vocabulary = {"[BOS]": BOS, "[PAD]": PAD, "[EOS]": EOS, "[MASK]": MASK, **{f"w{i}": i for i in WORDS}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w4"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "mask_token": "[MASK]", **options}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **special)


def spelling_tokenizer(**options) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with the word by which transformers finds out how tokens are spelt, for stop strings."""
    tokenizer = tiny_tokenizer(**options)
    tokenizer.add_tokens(["abcdef"])
    return tokenizer
