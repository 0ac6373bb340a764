"""Any Hugging Face model as a denoiser: canvas in, logits aligned to positions and hidden states out.

What differs between model families is a few facts, and they stand in one table, `FAMILIES`.
"""

import inspect
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_learned_order.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class Family:
    """What must be known to call a model as a denoiser.

    Attributes:
        full_attention: a decoder that attends to everything only when given a 4-D mask.
        shift: 1 when the logits of position i stand at i - 1, as in a model tuned from an autoregressive one.
        position_offset: position id of the first token.
    """

    full_attention: bool = False
    shift: int = 0
    position_offset: int = 0


ENCODER = Family()
FAMILIES = {
    "llama": Family(full_attention=True),  # LLaDA
    "qwen2": Family(full_attention=True, shift=1),  # Dream, DiffuCoder
    "qwen3": Family(full_attention=True),  # A2D
    "roberta": Family(position_offset=2),
    "xlm-roberta": Family(position_offset=2),
}


class Denoiser(nn.Module):
    """A model with the facts of its family: `denoiser(input_ids, attention_mask, start)`.

    Args:
        model: a masked language model or a decoder trained with bidirectional attention.
        mask_token_id: id of the mask token; by default the configuration's `mask_token_id`.

    Raises:
        ValueError: no mask token is known, or it is outside the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, *, mask_token_id: int | None = None, family: Family | None = None):
        super().__init__()
        if mask_token_id is None:
            mask_token_id = getattr(model.config, "mask_token_id", None)
        if mask_token_id is None:
            raise ValueError(
                "mask_token_id must be given, or a tokenizer with a mask token: "
                f"the configuration of {type(model).__name__} does not name one"
            )
        vocab_size = model.config.vocab_size
        if not 0 <= mask_token_id < vocab_size:
            raise ValueError(f"mask_token_id must be in [0, {vocab_size}), got {mask_token_id}")
        self.model = model
        self.mask_token_id = mask_token_id
        self.family = family or FAMILIES.get(model.config.model_type, ENCODER)
        # pyrefly: ignore[not-callable] (PEFT's)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    def train(self, mode: bool = True) -> "Denoiser":
        """A frozen denoiser stays in evaluation mode: its dropout would be noise in what the order learns from."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_length(self) -> int | None:
        """The longest sequence, prompt and canvas together; None where the configuration sets no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.family.position_offset

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, start: int, *, hidden_states: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [batch, length - start, vocab] of the positions from `start` on, and their last hidden states.

        Args:
            input_ids: [batch, length], masks included.
            attention_mask: [batch, length], 0 at padding, which stands on the left.
            hidden_states: whether the hidden states [batch, length - start, hidden] are wanted.
        """
        arguments: dict[str, object] = {"attention_mask": attention_mask}
        if self._takes_positions:
            # counted from the first real token, so that padding changes nothing
            arguments["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0) + self.family.position_offset
        if self.family.full_attention:
            # padding attends to itself, or its softmax would be over nothing
            seen = attention_mask.bool()[:, None, None, :]
            itself = torch.eye(input_ids.shape[1], dtype=torch.bool, device=input_ids.device)
            arguments |= {"attention_mask": seen | itself, "use_cache": False}
        output = self.model(input_ids=input_ids, output_hidden_states=hidden_states, **arguments)
        window = slice(start - self.family.shift, input_ids.shape[1] - self.family.shift)
        hidden = output.hidden_states[-1][:, window] if hidden_states else None
        return output.logits[:, window], hidden


def predict(
    denoiser: Denoiser, prompt: Tensor, prompt_mask: Tensor, canvas: Tensor, *, hidden_states: bool
) -> tuple[Predictions, Tensor | None]:
    """One call: predictions and, if wanted, hidden states of the canvas [batch, canvas] behind a left-padded prompt."""
    logits, hidden = denoiser(
        torch.cat([prompt, canvas], 1),
        torch.cat([prompt_mask, prompt_mask.new_ones(canvas.shape)], 1),
        prompt.shape[1],
        hidden_states=hidden_states,
    )
    return Predictions.from_logits(logits, denoiser.mask_token_id), hidden


def mask_token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The mask token's id. Raises `ValueError` when the tokenizer has none."""
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"tokenizer must have a mask token, but {type(tokenizer).__name__} has none: "
            "set tokenizer.mask_token, or pass mask_token_id"
        )
    return tokenizer.mask_token_id


def load_tokenizer(name_or_path: str | PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub repository."""
    # its annotation allows None; it raises instead
    return AutoTokenizer.from_pretrained(name_or_path)  # pyrefly: ignore[bad-return]


def load_denoiser(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """The model of a folder or a Hub repository, as a masked language model where it is one, else as a decoder.

    `kwargs` go to `from_pretrained`; `revision`, `subfolder` and `token` are among them. The commit that a repository
    was at is kept in the configuration's `_commit_hash`, as transformers 4 did: a scorer names it.
    """
    place = {name: kwargs[name] for name in ("revision", "subfolder", "token", "cache_dir") if name in kwargs}
    config = AutoConfig.from_pretrained(name_or_path, **place)
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(name_or_path, **kwargs)
    if not Path(name_or_path).exists():
        file = f"{kwargs['subfolder']}/config.json" if kwargs.get("subfolder") else "config.json"
        where = {name: value for name, value in place.items() if name in ("revision", "cache_dir")}
        cached = try_to_load_from_cache(str(name_or_path), file, **where)
        if isinstance(cached, str):  # .../snapshots/COMMIT/config.json
            model.config._commit_hash = cached.removesuffix(file).rstrip("/").rpartition("/")[2]
    return model
