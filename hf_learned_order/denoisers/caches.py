"""KV caches: keys and values that one call of the denoiser leaves to the next, window by window.

- `exact`, for block-causal models: the keys and values of finished blocks. No block sees one behind it, so they are
  what another call would compute again. The first call of a block also encodes the block before it; no call is made for
  the cache alone. With a causal context this is the causal reading of a block, as part of the context.
- `prefix` and `dual`, for windowed decoding of models that attend in both directions: what stands before the window, or
  on both sides of it, as the first call of the window saw it. It goes stale while tokens of the window become known, so
  this is an approximation. Source: Fast-dLLM, arXiv 2505.22618, section 3.2.

A column of the sequence is kept or it is sent to the model, with its position id and its row of the attention mask. The
logits of a window of a shifted model, and of the first token with a causal context, are one column before it, so that
column is always sent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hf_learned_order.denoisers.denoiser import Denoiser

CACHES = ("exact", "prefix", "dual")
Pair = tuple[Tensor, Tensor]  # keys and values of one layer, [batch, heads, columns, size]


class KeptCache(DynamicCache):
    """Keys and values of chosen columns. A call gets them with its own among them and adds nothing by itself.

    Args:
        repeats: a row may come more than once in a call.

    Attributes:
        rows: int [n], which rows of the canvas it is of.
        window: the column where the window begins that it was kept for.
        before, behind: columns [0, before) and from `behind` on are kept.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        super().__init__()
        self.repeats = repeats
        self.rows = torch.empty(0, dtype=torch.long)
        self.window, self.before, self.behind = -1, 0, 0
        self.kept: dict[int, Pair] = {}  # by layer
        self.written: dict[int, Pair] = {}  # by the last call
        self.index: Tensor | None = None  # which of the rows the call is about; None for all

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Pair:
        """What the model's attention calls in each layer: all keys and values, in the order of the sequence."""
        self.written[layer_idx] = key_states, value_states
        return self.joined(layer_idx)

    def joined(self, layer: int) -> Pair:
        """What is kept and what the call wrote."""
        if layer not in self.kept:
            return self.written[layer]
        keys, values = (
            torch.cat([part[..., : self.before, :], new, part[..., self.before :, :]], -2)
            for part, new in zip(map(self._chosen, self.kept[layer]), self.written[layer], strict=True)
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns are kept."""
        return self.kept[layer_idx][0].shape[-2] if layer_idx in self.kept else 0

    def call(self, rows: Tensor) -> None:
        """Before a call about `rows`, some of those that it is of, in their order."""
        self.written = {}
        whole = len(self.kept) == 0 or (len(rows) == len(self.rows) and not self.repeats)
        self.index = None if whole else torch.searchsorted(self.rows, rows)

    def keep(self, rows: Tensor, window: int, before: int, behind: int) -> None:
        """After the first call of a window, which was about `rows`: keep columns [0, before) and from `behind` on."""
        kept = {}
        for layer in self.written:
            keys, values = (
                torch.cat([part[..., :before, :], part[..., behind:, :]], -2) for part in self.joined(layer)
            )
            kept[layer] = keys, values
        self.kept, self.written = kept, {}
        self.rows, self.window, self.before, self.behind = rows, window, before, behind

    def _chosen(self, part: Tensor) -> Tensor:
        return part if self.index is None else part.index_select(0, self.index)


class WindowedDenoiser:
    """A denoiser that is asked about one window of a canvas after the other.

    Args:
        denoiser: the model.
        cache: one of `CACHES`, or None for none.
        block_length: of the windows, None where there is one.
        repeats: a row may come more than once in a call.

    Raises:
        ValueError: the cache is unknown, or does not fit the model or the windows.
    """

    def __init__(
        self, denoiser: Denoiser, cache: str | None = None, *, block_length: int | None = None, repeats: bool = False
    ):
        self.denoiser, self.cache, self.repeats = denoiser, cache, repeats
        self.kept: dict[int, KeptCache] = {}  # by group
        if cache is not None:
            _check(cache, denoiser, block_length)

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        window: slice,
        *,
        rows: Tensor,
        group: int,
        at: tuple[Tensor, Tensor],
        hidden_states: bool | Sequence[int] = False,
        attentions: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [n, vocab] of n positions and, if wanted, hidden states [batch, window, hidden].

        Args:
            input_ids, attention_mask: [batch, length], of the rows that are asked about.
            window: columns of these.
            rows: int [batch], their numbers, rising. The first call of a window is about all rows that later ones are.
            group: as in `Part`; each has its own cache.
            at: int [n] twice, the row among these and the position in the window.
            hidden_states: as in `Denoiser.forward`.
            attentions: gets the attention [batch, window, window], as in `Denoiser.forward`.

        Raises:
            ValueError: attention is wanted with a cache; the model does not write to the cache that it is given.
        """
        if self.denoiser.family.block_size is not None:  # no block sees those behind it
            input_ids, attention_mask = input_ids[:, : window.stop], attention_mask[:, : window.stop]
        options: dict[str, Any] = {"hidden_states": hidden_states, "at": at}
        if attentions is not None:
            options["attentions"] = attentions
        if self.cache is None:
            logits, hidden = self.denoiser(input_ids, attention_mask, window.start, **options)
        else:
            logits, hidden = self._with_cache(input_ids, attention_mask, window, rows, group, options)
        width = window.stop - window.start
        if attentions is not None:
            attentions[:] = [maps[:, :width, :width] for maps in attentions]
        return logits, None if hidden is None else hidden[:, :width]

    def _with_cache(
        self, ids: Tensor, mask: Tensor, window: slice, rows: Tensor, group: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        cache, length = self.kept.get(group), ids.shape[1]
        opening = cache is None or cache.window != window.start
        if cache is None or (opening and self.cache != "exact"):
            cache = self.kept[group] = KeptCache(repeats=self.repeats)
        cache.call(rows)
        columns = slice(cache.before, cache.behind if self.cache == "dual" and not opening else length)
        output = self.denoiser(ids, mask, window.start, columns=columns, past_key_values=cache, **options)
        expected = len(ids), columns.stop - columns.start
        if not cache.written or any((len(k), k.shape[-2]) != expected for k, _ in cache.written.values()):
            raise ValueError(
                f"kv_cache must be None with {type(self.denoiser.model).__name__}: it did not write the keys and "
                f"values of each column it got to the cache that it was given ({self.denoiser.family.cache}=True)"
            )
        if opening:
            behind = window.stop if self.cache == "dual" else length
            cache.keep(rows, window.start, self._before(mask, window.start), behind)
        return output

    def _before(self, mask: Tensor, start: int) -> int:
        """How many columns before a window are kept."""
        family = self.denoiser.family
        before = start - family.tokens_before
        if family.block_size is None or family.causal_context:
            return before
        # the window may be the rest of a block that a prompt began, and that is not finished
        place = mask[:, : start + 1].sum(-1) - 1
        return min(before, start - int((place % family.block_size).max()))


def _check(cache: str, denoiser: Denoiser, block_length: int | None) -> None:
    name, block_size = type(denoiser.model).__name__, denoiser.family.block_size
    if cache not in CACHES:
        raise ValueError(f"kv_cache must be None or one of {', '.join(CACHES)}, got {cache!r}")
    if denoiser.hint:  # their classes keep keys and values in forms of their own
        raise ValueError(f"kv_cache must be None with the authors' own {name}, got {cache!r}{denoiser.hint}")
    if not denoiser.takes_cache:
        raise ValueError(
            f"kv_cache must be None with {name}, got {cache!r}: it takes no keys and values of another call in the "
            "place of tokens"
        )
    if (block_size is None) == (cache == "exact"):
        allowed = "None, prefix or dual" if block_size is None else "None or exact"
        how = "attends in both directions" if block_size is None else "is block-causal"
        raise ValueError(f"kv_cache must be {allowed} with {name}, which {how}, got {cache!r}")
    if cache != "exact" and block_length is None:
        raise ValueError(f"block_length must be given with kv_cache={cache!r}, got None")
