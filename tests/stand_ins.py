"""Stand-ins for published remote code, which is not at hand: the same class names, call signatures and ways with masks.

The file is copied beside a tiny checkpoint and loaded with `trust_remote_code`, so it imports nothing of the tests.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput


class _Config(PreTrainedConfig):
    def __init__(self, vocab_size=40, num_hidden_layers=2, num_attention_heads=2, rope_theta=100.0, **kwargs):
        self.vocab_size, self.num_hidden_layers = vocab_size, num_hidden_layers
        self.num_attention_heads, self.rope_theta = num_attention_heads, rope_theta
        self.repaired = kwargs.pop("repaired", True)  # its code computes inv_freq again after loading
        self.forced = kwargs.pop("forced", None)  # a bug: "causal" or "full" attention, whatever the mask says
        super().__init__(**kwargs)


class _SizedConfig(_Config):
    def __init__(self, hidden_size=32, max_position_embeddings=64, **kwargs):
        self.hidden_size, self.max_position_embeddings = hidden_size, max_position_embeddings
        super().__init__(**kwargs)


class LLaDAConfig(_SizedConfig):  # LLaDA-MoE's model type is that of LLaDA
    model_type = "llada"

    def __init__(self, **kwargs):  # transformers makes a configuration class without one a dataclass
        super().__init__(**kwargs)


class LLaDA2MoeConfig(_SizedConfig):
    model_type = "llada2_moe"

    def __init__(self, partial_rotary_factor=0.5, **kwargs):
        self.partial_rotary_factor = partial_rotary_factor
        super().__init__(**kwargs)


class SDARConfig(_SizedConfig):
    model_type = "sdar"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Fast_dLLM_QwenConfig(_SizedConfig):
    model_type = "Fast_dLLM_Qwen"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class MDLMConfig(_Config):
    model_type = "mdlm"

    def __init__(self, hidden_dim=32, model_length=64, time_conditioning=False, **kwargs):
        self.hidden_dim, self.model_length, self.time_conditioning = hidden_dim, model_length, time_conditioning
        super().__init__(**kwargs)


def frequencies(config):
    size = getattr(config, "hidden_size", None) or config.hidden_dim
    size = int(size // config.num_attention_heads * getattr(config, "partial_rotary_factor", 1.0))
    return 1.0 / config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)


class Rotary(nn.Module):
    def __init__(self, config, persistent=False):
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", frequencies(config), persistent=persistent)

    def forward(self, x, positions):
        """`x` [batch, heads, length, size]; the first 2 x frequencies of its size are turned."""
        angle = torch.cat([positions[:, None, :, None] * self.inv_freq] * 2, -1).to(x.dtype)
        part, rest = x[..., : angle.shape[-1]], x[..., angle.shape[-1] :]
        first, second = part.chunk(2, -1)
        return torch.cat([part * angle.cos() + torch.cat([-second, first], -1) * angle.sin(), rest], -1)


class Layer(nn.Module):
    """Attention with a gate, added to what goes in, [batch, length, size]."""

    def __init__(self, size, heads, number):
        super().__init__()
        self.heads, self.number = heads, number
        self.mixer = nn.Linear(size, 4 * size, bias=False)

    def forward(self, states, norm, turn, mask=None, cache=None):
        batch, length, _ = states.shape
        parts = self.mixer(norm(states)).chunk(4, -1)
        q, k, v, gate = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        q, k = turn(q), turn(k)
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask) * gate.tanh()
        return states + mixed.transpose(1, 2).reshape(states.shape)


class _Model(PreTrainedModel):
    """A pre-norm transformer without MLPs."""

    base_model_prefix = "model"
    persistent_rotary = False

    def __init__(self, config):
        super().__init__(config)
        size = getattr(config, "hidden_size", None) or config.hidden_dim
        self.embed = nn.Embedding(config.vocab_size, size)
        heads, count = config.num_attention_heads, config.num_hidden_layers
        self.layers = nn.ModuleList(Layer(size, heads, number) for number in range(count))
        self.norm = nn.RMSNorm(size, eps=1e-6)
        self.rotary = Rotary(config, self.persistent_rotary)
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.4)
        if isinstance(module, Rotary) and self.config.repaired:
            module.inv_freq.copy_(frequencies(self.config))

    def get_output_embeddings(self):
        return self.lm_head

    def trunk(self, input_ids, mask, positions=None, cache=None):
        """Hidden states, the last of them normed. `mask` broadcasts to [batch, heads, length, keys]."""
        length = input_ids.shape[1]
        if self.config.forced is not None:
            mask = torch.ones(length, length, dtype=torch.bool)
            mask = mask.tril() if self.config.forced == "causal" else mask
        if positions is None:
            positions = torch.arange(length)[None]
        states = [self.embed(input_ids)]
        for layer in self.layers:
            turn = partial(self.rotary, positions=positions)
            states.append(layer(states[-1], self.norm, turn, mask=mask, cache=cache))
        return [*states[:-1], self.norm(states[-1])]


class LLaDAMoEModelLM(_Model):
    config_class = LLaDAConfig

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        seen = attention_mask.bool()[:, None, None, :] | torch.eye(input_ids.shape[1], dtype=torch.bool)
        states = self.trunk(input_ids, seen, position_ids)
        hidden = tuple(states) if output_hidden_states else None
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1]), hidden_states=hidden)


class LLaDAModelLM(_Model):
    config_class = LLaDAConfig

    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        attention_mask=None,
        attention_bias=None,
        past_key_values=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        mask = None
        if attention_mask is not None and 0.0 in attention_mask:  # published: one row of numbers a prompt, no square
            mask = attention_mask.bool().view(len(input_ids), -1)[:, None, None, :]
        states = self.trunk(input_ids, mask)
        hidden = tuple(states) if output_hidden_states else None
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1]), hidden_states=hidden)


class LLaDA2MoeModelLM(_Model):
    config_class = LLaDA2MoeConfig

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        output_router_logits=None,
        return_dict=None,
        **kwargs,
    ):
        square = (len(input_ids), 1, input_ids.shape[1], input_ids.shape[1])
        if attention_mask.shape != square or not attention_mask.is_floating_point():
            raise ValueError("LLaDA2.0 only supports block attention mask with shape")
        states = self.trunk(input_ids, attention_mask, position_ids)
        hidden = tuple(states) if output_hidden_states else None
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1]).float(), hidden_states=hidden)


class SDARForCausalLM(_Model):
    config_class = SDARConfig

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        return_dict=True,
        logits_to_keep=0,
        store_kv=False,  # published among kwargs; without it keys and values are read, not written
        **kwargs,
    ):
        # straight into the attention, as published: [batch, length, length] would be read as [heads, ...]
        cache = past_key_values if store_kv else None
        states = self.trunk(input_ids, attention_mask.bool(), position_ids, cache)
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1]))


class Fast_dLLM_QwenForCausalLM(_Model):
    config_class = Fast_dLLM_QwenConfig

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        update_past_key_values=False,
        block_size=32,
        mask_id=151665,
        **kwargs,
    ):
        if self.training:
            labels.clone()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        blocks = torch.arange(past + input_ids.shape[1]) // block_size
        cache = past_key_values if update_past_key_values else None
        states = self.trunk(input_ids, blocks[None, :] <= blocks[past:, None], position_ids, cache)
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1]))


class MDLM(_Model):
    config_class = MDLMConfig
    base_model_prefix = "mdlm"
    persistent_rotary = True

    def forward(self, input_ids=None, timesteps=None, output_hidden_states=None, return_dict=None):
        if timesteps.shape != input_ids.shape[:1]:
            raise ValueError("timesteps must be [batch]")
        states = self.trunk(input_ids, None)
        logits = self.lm_head(states[-1])
        if not return_dict:
            return logits
        return MaskedLMOutput(logits=logits, hidden_states=tuple(states) if output_hidden_states else None)
