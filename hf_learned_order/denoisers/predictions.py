"""What the denoiser believes at each position of a canvas, computed once for rules and scorer; a step of decoding.

Only the logits are as wide as the vocabulary, and they are kept as the denoiser gave them. Everything else is computed
from them a few positions at a time, so that no second tensor of their size comes to be.

Symbols: `c` confidence, `m` margin, `H` entropy in nats; all from p_theta(x^i | x_t) with the mask token ruled out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Numbers in one piece: on a CPU what a core's cache holds, elsewhere enough to be worth the launch of a kernel.
CPU_PIECE, PIECE = 2**18, 2**24
SMALLEST_LOG = -200.0  # exp of it is 0 in float32
AT_POSITIONS, OF_THOSE_ASKED = ("confidence", "margin", "entropy", "tokens"), ("logits", "index", "log_peak")


def piece_of(logits: Tensor) -> int:
    """How many positions of `logits` [n, vocab] are looked at together."""
    numbers = CPU_PIECE * torch.get_num_threads() if logits.device.type == "cpu" else PIECE
    return max(1, numbers // logits.shape[-1])


def pieces(count: int, logits: Tensor) -> list[slice]:
    """Cuts `count` positions of `logits` [n, vocab] into pieces of a bounded size; one empty piece where count is 0."""
    size = piece_of(logits)
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Token ids [n], drawn from the softmax of `scores` [n, vocab] by one uniform number each, [n]: its quantile."""
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.double)
    wanted = uniform.double()[:, None] * cumulative[:, -1:]
    # the first whose sum exceeds it: a token of no probability adds nothing. What nan gives, the loop refuses later
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Beliefs of the denoiser about positions of a canvas: all of them, or those that it was asked about.

    Attributes:
        confidence: [batch, canvas], the highest probability; nan where it was not asked, as margin and entropy.
        margin: [batch, canvas], the highest minus the second highest probability.
        entropy: [batch, canvas], nats.
        tokens: int [batch, canvas], the most likely token, the first of equals; 0 where it was not asked.
        logits: [n, vocab], as the denoiser gave them, for the n positions that it was asked about.
        index: int [n], where these stand in the flattened [batch, canvas].
        log_peak: [n], log-probability of the most likely token.
        mask_token_id: the token that is ruled out, None for none.
    """

    confidence: Tensor
    margin: Tensor
    entropy: Tensor
    tokens: Tensor
    logits: Tensor
    index: Tensor
    log_peak: Tensor
    mask_token_id: int | None

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        mask_token_id: int | None = None,
        *,
        at: tuple[Tensor, Tensor] | None = None,
        shape: tuple[int, int] | None = None,
    ) -> "Predictions":
        """Predictions from raw logits, in float32 whatever the dtype of the logits.

        A denoiser may predict the mask token itself; decoding never may, so its logit is out of the softmax. None
        where the model has no mask token.

        Args:
            logits: [batch, canvas, vocab]; with `at`, [n, vocab].
            mask_token_id: what is ruled out.
            at: int [n] twice, the row and the position in the canvas of each.
            shape: (batch, canvas), with `at`.
        """
        batch, length = shape or logits.shape[:2]
        logits = logits.reshape(-1, logits.shape[-1])
        index = torch.arange(batch * length, device=logits.device) if at is None else at[0] * length + at[1]
        # split, because the gradient of each slice would be as large as the logits
        beliefs = [_beliefs(part, mask_token_id) for part in logits.split(piece_of(logits))]
        log_peak, margin, entropy, tokens = (torch.cat(parts) for parts in zip(*beliefs, strict=True))

        defaults = ((log_peak.exp(), torch.nan), (margin, torch.nan), (entropy, torch.nan), (tokens, 0))
        at_positions = [_place(values, index, (batch, length), default) for values, default in defaults]
        return cls(*at_positions, logits=logits, index=index, log_peak=log_peak, mask_token_id=mask_token_id)

    @property
    def log_probs(self) -> Tensor:
        """[batch, canvas, vocab], nats; `-inf` for the mask token, nan where the denoiser was not asked.

        Made anew, as large as the logits and in float32: for rules that have to remember it.
        """
        shape = (self.tokens.numel(), self.logits.shape[-1])
        values = torch.full(shape, torch.nan, device=self.logits.device)
        return self.write_log_probs(values.view(*self.tokens.shape, -1))

    def write_log_probs(self, values: Tensor) -> Tensor:
        """`log_probs` put into `values` [batch, canvas, vocab], which keep what they hold where it was not asked."""
        places = values.view(-1, values.shape[-1])
        for piece in pieces(len(self.index), self.logits):
            places[self.index[piece]] = self._log_probs(piece)
        return values

    def draw(
        self,
        among: Tensor | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        warp: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Token ids [batch, canvas]: the most likely ones at temperature 0, else drawn from p^(1/temperature).

        Args:
            among: int [k], which of the n positions to draw at; the others keep their most likely token.
            temperature: 0 or more.
            generator: source of randomness.
            uniform: in its place numbers in [0, 1), one for each position that is drawn at, [k].
            warp: changes log p / temperature [j, vocab] of j of the n positions before the draw.
        """
        if temperature == 0.0:
            return self.tokens
        among = torch.arange(len(self.index), device=self.index.device) if among is None else among
        if uniform is None:
            uniform = torch.rand(len(among), device=among.device, generator=generator)
        tokens = self.tokens.flatten()
        for piece in pieces(len(among), self.logits):
            scores = self._log_probs(among[piece]) / temperature
            if warp is not None:
                scores = warp(scores, among[piece])
            tokens = tokens.index_copy(0, self.index[among[piece]], draw(scores, uniform[piece]))
        return tokens.view_as(self.tokens)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p_theta of `tokens` [batch, canvas] at their positions, [batch, canvas]; nan where it was not asked."""
        both = torch.stack([of.flatten()[self.index] for of in (tokens, self.tokens)], -1)
        wanted, best = self.logits.gather(-1, both).float().unbind(-1)
        # in the order in which log_softmax subtracts, or large logits would lose what is left of them
        values = wanted - best + self.log_peak
        if self.mask_token_id is not None:
            values = values.masked_fill(both[:, 0] == self.mask_token_id, -torch.inf)
        return _place(values, self.index, self.tokens.shape, torch.nan)

    def kl(self, log_probs: Tensor, *, losses_below: float | None = None) -> Tensor:
        """KL(these beliefs || `log_probs` [batch, canvas, vocab]), nats, [batch, canvas]; nan where not asked.

        With `losses_below` only tokens count that have lost, each at most so many nats.
        """
        others, values = log_probs.flatten(0, 1), []
        for piece in pieces(len(self.index), self.logits):
            mine, other = self._log_probs(piece), others[self.index[piece]]
            lost = mine - other if losses_below is None else (mine - other).clamp(0.0, losses_below)
            # the mask token has log-probability -inf in both: 0 * (inf - inf) counts 0
            values.append((mine.exp() * lost).nan_to_num(0.0, torch.inf, -torch.inf).sum(-1))
        return _place(torch.cat(values), self.index, self.tokens.shape, torch.nan)

    def repeated(self, times: int | Tensor) -> "Predictions":
        """Each row `times` times, or as often as int [batch] says; the denoiser was asked about every position."""
        batch, length = self.tokens.shape
        at_positions = {name: getattr(self, name).repeat_interleave(times, 0) for name in AT_POSITIONS}
        return replace(
            self,
            **at_positions,
            logits=self.logits.view(batch, length, -1).repeat_interleave(times, 0).flatten(0, 1),
            index=torch.arange(at_positions["tokens"].numel(), device=self.index.device),
            log_peak=self.log_peak.view(batch, length).repeat_interleave(times, 0).flatten(),
        )

    def select(self, rows: Tensor) -> "Predictions":
        """Those of these rows, int [n], all different, in their order."""
        length = self.tokens.shape[-1]
        place = torch.full((len(self.tokens),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        place = place[self.index // length]
        kept = (place >= 0).nonzero().squeeze(-1)
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in AT_POSITIONS},
            logits=self.logits[kept],
            index=place[kept] * length + self.index[kept] % length,
            log_peak=self.log_peak[kept],
        )

    def without_logits(self) -> "Predictions":
        """The same, for where no token's own probability is asked for any more: logits are what takes the memory."""
        return replace(self, **{name: getattr(self, name)[:0].clone() for name in OF_THOSE_ASKED})

    def detach(self) -> "Predictions":
        """The same beliefs outside the graph."""
        return replace(self, **{name: getattr(self, name).detach() for name in (*AT_POSITIONS, *OF_THOSE_ASKED)})

    def _log_probs(self, piece: slice | Tensor) -> Tensor:
        return _ruled_out(self.logits[piece], self.mask_token_id).log_softmax(-1)


def _ruled_out(logits: Tensor, mask_token_id: int | None) -> Tensor:
    scores = logits.to(torch.float, copy=True)
    if mask_token_id is not None:
        scores[:, mask_token_id] = -torch.inf
    return scores


def _beliefs(logits: Tensor, mask_token_id: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log c, m, H and the most likely token, each [k], from logits [k, vocab].

    For a gradient they are computed a second time: what it needs would be several tensors as large as the logits.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return checkpoint(_beliefs_once, logits, mask_token_id, use_reentrant=False, preserve_rng_state=False)
    return _beliefs_once(logits, mask_token_id)


def _beliefs_once(logits: Tensor, mask_token_id: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = _ruled_out(logits, mask_token_id)
    peak, token = scores.max(-1, keepdim=True)
    scores.sub_(peak)
    weights = scores.exp()
    total = weights.sum(-1)
    # p log p is 0 at p = 0, where the product of 0 and -inf would be nan, in the gradient too
    entropy = total.log() - torch.linalg.vecdot(weights, scores.clamp_(min=SMALLEST_LOG)) / total
    # in place, unless a gradient needs them
    others = weights.scatter(-1, token, 0.0) if weights.requires_grad else weights.scatter_(-1, token, 0.0)
    return -total.log(), (1 - others.amax(-1)) / total, entropy.clamp(min=0.0), token.squeeze(-1)


def _place(values: Tensor, index: Tensor, shape: tuple[int, ...], default: float) -> Tensor:
    """`values` [n] at `index` of a flattened tensor [*shape], `default` elsewhere."""
    return values.new_full((math.prod(shape),), default).index_copy(0, index, values).view(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a rule may look at.

    Attributes:
        predictions: the denoiser's beliefs.
        masked: bool [batch, canvas].
        steps_left: steps of the budget that are left, this one included; int [batch, 1] where rows are not equally far:
            a rule is verified, or rows have budgets of their own.
        unmasked: bool [batch, canvas], what earlier steps unmasked; a rule that remasks may choose among these. In
            decoding only.
        canvas: int [batch, canvas], the tokens; the mask token where `masked`. In decoding only.
        token_log_probs: [batch, canvas], log p_theta of each token when it was unmasked, nats; 0 where `masked`. In
            decoding only.
        rows: int [batch], which rows of the whole batch these are: the others have finished. In decoding only.
        hidden_states: [batch, canvas, hidden], for rules with `needs_hidden_states`; those of several layers are side
            by side, [batch, canvas, layers * hidden].
        attentions: [batch, canvas, canvas], how much the place that position i is predicted at attends to position j,
            for rules with `needs_attentions`: the mean over the heads of the last 30 % of the layers.
        padding: bool [batch, canvas], positions that are no part of their row (`canvas.Canvas`); None: none are.
        generator: source of randomness that rows share; `uniform` gives each its own.
        numbers: what `uniform` calls, in decoding.
    """

    predictions: Predictions
    masked: Tensor
    steps_left: int
    # decoding always sets these four; training asks no rule that reads them
    unmasked: Tensor = None  # pyrefly: ignore[bad-assignment]
    canvas: Tensor = None  # pyrefly: ignore[bad-assignment]
    token_log_probs: Tensor = None  # pyrefly: ignore[bad-assignment]
    rows: Tensor = None  # pyrefly: ignore[bad-assignment]
    hidden_states: Tensor | None = None
    attentions: Tensor | None = None
    padding: Tensor | None = None
    generator: torch.Generator | None = None
    numbers: Callable[[int], Tensor] | None = None

    def uniform(self, more: int = 0) -> Tensor:
        """[batch, canvas + more] in [0, 1), for a rule that draws. In decoding a row gets the same in any batch."""
        if self.numbers is not None:
            return self.numbers(more)
        shape = (*self.masked.shape[:-1], self.masked.shape[-1] + more)
        return torch.rand(shape, device=self.masked.device, generator=self.generator)

    def select(self, rows: Tensor) -> "Step":
        """What a rule may look at in these rows, int [n], all different, in their order."""
        tensors = ("masked", "unmasked", "canvas", "token_log_probs", "rows", "hidden_states", "attentions", "padding")
        chosen = {name: value[rows] for name in tensors if (value := getattr(self, name)) is not None}
        return replace(self, predictions=self.predictions.select(rows), numbers=None, **chosen)

    @property
    def quota(self) -> Tensor:
        """K = ceil(n / steps left), int [batch, 1]: the even share of a fixed-count rule."""
        count = self.masked.sum(-1, keepdim=True)
        return (count + self.steps_left - 1) // self.steps_left
