"""Any Hugging Face model as a denoiser: canvas in, logits aligned to positions and hidden states out.

What differs between model families is a few facts, and they stand in one table, `families.FAMILIES`.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hf_learned_order.denoisers.causal_context import reading
from hf_learned_order.denoisers.checkpoints import LAYOUTS
from hf_learned_order.denoisers.families import Family, find_family, refuse_what_cannot_denoise
from hf_learned_order.denoisers.inside.hooks import Seen
from hf_learned_order.denoisers.inside.layers import LAST, layer_numbers, layers_of
from hf_learned_order.denoisers.inside.maps import check_maps, mean_attention
from hf_learned_order.denoisers.inside.wrappers import base_of, class_of, device_of, dtype_of, is_compiled, uncompiled


class Denoiser(nn.Module):
    """A model with the facts of its family: `denoiser(input_ids, attention_mask, start)`.

    Args:
        model: a masked language model or a decoder trained with bidirectional attention.
        mask_token_id: id of the mask token; by default the configuration's `mask_token_id`, then its family's.
        family: how to call the model, where the table does not know it or is wrong about it; by default the one that
            it is attached with.

    Raises:
        ValueError: no mask token is known, or it is outside the vocabulary; the model is an encoder-decoder, of no
            known family, conditioned on time, or has a prompt or prefix tuning adapter.
    """

    is_idle = is_in_step = False  # `sharding`'s

    def __init__(self, model: PreTrainedModel, *, mask_token_id: int | None = None, family: Family | None = None):
        super().__init__()
        model = uncompiled(model)
        base = base_of(model)
        kind = class_of(base)
        refuse_what_cannot_denoise(model)
        attached: dict[str, Any] = base.__dict__.get("denoiser_options", model.__dict__.get("denoiser_options", {}))
        family = family or attached.get("family")
        self.family = family or self._known_family(model)
        for known in (getattr(model.config, "mask_token_id", None), self.family.mask_token_id):
            mask_token_id = known if mask_token_id is None else mask_token_id
        if mask_token_id is None:
            raise ValueError(
                "mask_token_id must be given, or a tokenizer with a mask token: "
                f"neither the tokenizer nor the configuration of {type(model).__name__} names one"
            )
        vocab_size = model.config.vocab_size
        if not isinstance(mask_token_id, int) or not 0 <= mask_token_id < vocab_size:
            raise ValueError(f"mask_token_id must be in [0, {vocab_size}), got {mask_token_id!r}")
        self.model = model
        self.mask_token_id = mask_token_id
        self._stock = kind.__module__.startswith("transformers.")
        self._compiled = is_compiled(model)
        self._cuts = True  # until the model turns out to need logits of all positions
        self._parameters_taken = inspect.signature(base.forward).parameters
        # its name from transformers 5.24 on, and the one before
        self._cache_argument = "cache" if self._stock and "cache" in self._parameters_taken else "past_key_values"

    @staticmethod
    def _known_family(model: PreTrainedModel) -> Family:
        base = base_of(model)
        masked_lm = "AutoModelForMaskedLM" in (getattr(base.config, "auto_map", None) or {})
        return find_family(model.config, class_of(base).__name__, masked_lm=masked_lm)

    @property
    def own_family(self) -> Family | None:
        """The facts of its family, where the table does not have them: a scorer keeps them."""
        try:
            return None if self._known_family(self.model) == self.family else self.family
        except ValueError:  # a model that the table does not know
            return self.family

    def train(self, mode: bool = True) -> "Denoiser":
        """A frozen denoiser stays in evaluation mode: its dropout would be noise in what the order learns from."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    @property
    def hidden_size(self) -> int:
        return getattr(self.model.config, "hidden_size", None) or self.model.config.hidden_dim

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states, and of masks that are added to scores."""
        return dtype_of(self.model)

    @property
    def hint(self) -> str:
        """What to do where the authors' own class of a published layout lacks something; "" for other classes."""
        name = class_of(base_of(self.model)).__name__
        if self._stock or name not in LAYOUTS:
            return ""
        stock = LAYOUTS[name].model_class.__name__
        return f"; load_denoiser(...) loads the weights of {name} as transformers' {stock}, which can"

    @property
    def max_length(self) -> int | None:
        """The longest sequence, prompt and canvas together; None where the configuration sets no limit."""
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "model_length", None)
        return None if limit is None else limit - self.family.position_offset

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        start: int,
        *,
        hidden_states: bool | Sequence[int] = False,
        attentions: list[Tensor] | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        columns: slice | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [batch, length - start, vocab] of the positions from `start` on, and their hidden states.

        Args:
            input_ids: [batch, length], masks included.
            attention_mask: [batch, length], 0 at padding, which stands on the left.
            hidden_states: whether the last hidden states [batch, length - start, hidden] are wanted; or the numbers of
                several (`layers.py`), which are then side by side, [batch, length - start, numbers * hidden].
            attentions: a list that gets the attention [batch, length - start, length - start] between these positions,
                `maps.mean_attention`.
            at: logits [n, vocab] of these positions only: int [n] twice, the row and the position, from `start` on.
                The model's head is not asked for others, where it is a module of its own.
            columns: with `past_key_values`, the only ones that the model is sent; logits and hidden states end with
                them.
            past_key_values: keys and values of the other columns, in the order of the sequence.

        Raises:
            ValueError: the model takes no padding and is given some; hidden states or attention maps that it does not
                have are wanted.
        """
        taken, length = self._parameters_taken, input_ids.shape[1]
        if attentions is not None:
            check_maps(base_of(self.model), whole=past_key_values is None and not self.family.causal_context)
        columns = slice(0, length) if columns is None else columns
        # counted from the first real token, so that padding changes nothing
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if self.family.causal_context:
            read = reading(attention_mask, positions, start, cast(int, self.family.block_size))
            input_ids, positions = input_ids[:, read.columns], positions[:, read.columns]
            columns = slice(columns.start, input_ids.shape[1] - length + columns.stop)
            arguments, window = self._mask(read.seen[:, columns]), read.places - columns.start
        else:
            arguments = self._attention(attention_mask, positions, columns)
            before = self.family.shift + columns.start
            window = slice(start - before, length - before)
        if "position_ids" in taken:
            arguments["position_ids"] = positions[:, columns] + self.family.position_offset
        if "timesteps" in taken:  # a model that is not conditioned on time, or it would have been refused
            arguments["timesteps"] = torch.zeros(len(input_ids), device=input_ids.device)
        wanted = {"use_cache": False, "return_dict": True, "block_size": self.family.block_size}
        arguments |= {name: value for name, value in wanted.items() if name in taken and value is not None}
        if past_key_values is not None and self.family.cache is not None:
            arguments |= {self._cache_argument: past_key_values, "use_cache": True, self.family.cache: True}
        place = at
        if at is not None:
            place = at[0], at[1] + window.start if isinstance(window, slice) else window[at[1]]
        indices = (LAST,) if hidden_states is True else hidden_states or ()
        if attentions is not None and (self._stock or "output_attentions" in taken):
            arguments["output_attentions"] = True
        logits, hidden, maps = self._call(input_ids[:, columns], arguments, self.layer_numbers(indices), place)
        if attentions is not None:
            attentions.append(mean_attention(base_of(self.model), maps)[:, window, start:])
        seen = torch.cat([states[:, window] for states in hidden], -1) if hidden else None
        return logits if place else logits[:, window], seen

    def layer_numbers(self, indices: Sequence[int]) -> tuple[int, ...]:
        """What `hidden_states` of a call may be, made unique; raises `ValueError` where the model has no such ones."""
        return layer_numbers(base_of(self.model), indices) if indices else ()

    def _call(
        self,
        input_ids: Tensor,
        arguments: dict[str, Any],
        numbers: tuple[int, ...],
        place: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, list[Tensor], Sequence[Tensor] | None]:
        """Logits of every place of the sequence, or of those at `place` only, the hidden states of these numbers, and
        the attention maps that the model returns.

        All hidden states together can be as large as the logits: only those that are wanted are kept.
        """
        head, trunk, last = self.model.get_output_embeddings(), self._trunk, LAST in numbers
        seen = Seen(shape=input_ids.shape, place=place if self._cuts else None)
        returned = numbers if self._compiled else last and trunk is None and not self.family.head_input
        if returned:
            arguments = {**arguments, "output_hidden_states": True}
        with ExitStack() as hooks:
            if head is not None and not self._compiled:
                hooks.enter_context(head.register_forward_pre_hook(seen.before_head))
            for number in () if self._compiled else set(numbers) - {LAST}:
                layer = layers_of(base_of(self.model))[number]
                hooks.enter_context(layer.register_forward_pre_hook(seen.before_layer(number), with_kwargs=True))
            if last and trunk is not None and not self._compiled:
                hooks.enter_context(trunk.register_forward_hook(seen.after_trunk))
            output = self.model(input_ids=input_ids, **arguments)
        maps = getattr(output, "attentions", None)
        logits = output.logits  # of a model that is spread over devices hidden states are elsewhere
        hidden = [self._hidden(number, seen, output).to(logits.device) for number in numbers]
        if place is None:
            return logits, hidden, maps
        if not seen.cut:
            return logits[place], hidden, maps
        if logits.shape[:-1] != (1, len(place[0])):  # the model does more with them than return them
            self._cuts = False
            return self._call(input_ids, arguments, numbers, place)
        return logits[0], hidden, maps

    def _hidden(self, number: int, seen: Seen, output: Any) -> Tensor:
        if self._compiled:
            if getattr(output, "hidden_states", None) is None:
                raise ValueError(
                    "model must not be compiled with a scorer that sees hidden states: "
                    f"{type(self.model).__name__} returns none"
                )
            return output.hidden_states[number]
        if number == LAST:
            return (seen.trunk or seen.head)[0] if seen.trunk or self.family.head_input else output.hidden_states[-1]
        expected, states = (*seen.shape, self.hidden_size), seen.layers[number]
        if [tuple(getattr(state, "shape", ())) for state in states] != [expected]:
            raise ValueError(
                f"hidden_layers must be None or [-1] with {type(self.model).__name__}: its layer {number} is not given "
                f"hidden states {list(expected)} once a call"
            )
        return states[0]

    @property
    def _trunk(self) -> nn.Module | None:
        """What comes before the head, in transformers' own classes: its output is the last hidden state."""
        base = base_of(self.model)
        return base.base_model if self._stock and base.base_model is not base else None

    @property
    def takes_cache(self) -> bool:
        """Whether keys and values of some columns can be handed to the model instead of their tokens."""
        return self.family.takes_cache and self._cache_argument in self._parameters_taken

    def _attention(self, attention_mask: Tensor, positions: Tensor, columns: slice) -> dict[str, Any]:
        """Who sees whom, in the layout that the family takes; the `columns` see, and are those that the model gets."""
        layout, block_size = self.family.attention, self.family.block_size
        if layout == "none":
            if not attention_mask.all():
                raise ValueError(
                    f"attention_mask must be 1 everywhere: {type(self.model).__name__} takes none, "
                    "so the prompts of one batch must have the same length"
                )
            return {}
        if layout == "2d":
            return {"attention_mask": attention_mask}
        seen = attention_mask.bool()[:, None, :].expand(-1, columns.stop - columns.start, -1)
        if block_size is not None:
            blocks = positions // block_size
            seen = seen & (blocks[:, None, :] <= blocks[:, columns, None])
        return self._mask(seen)  # padding sees what the first token sees, so no softmax is over nothing

    def _mask(self, seen: Tensor) -> dict[str, Any]:
        """bool [batch, columns, length], who sees whom, as the model takes it."""
        seen = seen[:, None]
        # transformers' eager attention adds a bool mask to its scores instead of masking with it
        eager = self._stock and getattr(self.model.config, "_attn_implementation", None) == "eager"
        if self.family.attention == "additive" or eager:
            nothing = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
            return {"attention_mask": nothing.masked_fill(~seen, -torch.inf)}
        return {"attention_mask": seen}
