"""The tokens and the order of a slow rule in fewer calls: a mode of the decoding loop.

One call of the denoiser says which position the slow rule takes now, and lets a drafter guess which ones it takes next
and with which tokens. The next call is about k canvases that may follow, as a batch. Each says what the slow rule does
there, so its path is followed from the first canvas on, which is right, for as long as it leads to another canvas of
the batch. Nothing else is kept: whatever is drafted, the response is that of the slow rule, and a better draft only
saves calls. What holds for one token a step holds for a rule that takes more.

What is drafted is not one chain. Tokens are guessed well, the order of positions of like confidence is not, and a chain
ends at the first that comes out of turn. So beside the first j positions of the draft, canvases with the first j - 1
and a later one are looked at, the likeliest of both kinds (`branches`): a path that takes two neighbours in the other
order goes through one of these and is back on the chain a step later.

Sources: Free Draft-and-Verification, arXiv 2510.00294, which drafts one chain with the slow rule itself on the last
predictions (here: `sampler` and `verify` are the same rule); Self Speculative Decoding, arXiv 2510.04147; Spiffy,
arXiv 2509.18085.

Symbols: k canvases a call, R rows, n canvases of all rows.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_positive
from hf_learned_order.decoding.canvas import Canvas
from hf_learned_order.decoding.samplers.base import Sampler, State
from hf_learned_order.decoding.stopping import Stopping
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import at_least_one

CANVASES = 8  # k, where it is not given


def branches(count: int) -> list[tuple[int, int]]:
    """(j, d) of the `count` canvases: the first j - 1 positions of the draft, and the one d places behind these.

    (0, 0) is the canvas that is known; (j, 0) are a chain. They come by rising j + d, the chain first.
    """
    return [(0, 0), *((total - d, d) for total in range(1, count + 1) for d in range(total))][:count]


class Verification:
    """Drafts and follows a slow rule through one window after the other.

    Args:
        canvas: the batch.
        stopping: what ends its rows.
        rule: the slow rule.
        drafter: its `preference` says which positions are guessed first.
        count: k, the most canvases of a row in one call; with 1 nothing is drafted.

    Attributes:
        calls: int [batch], calls that each row took part in.
        canvases: int [batch], canvases of each row in these.
    """

    def __init__(self, canvas: Canvas, stopping: Stopping, *, rule: Sampler, drafter: Sampler, count: int = CANVASES):
        self.canvas, self.stopping = canvas, stopping
        self.rule, self.drafter, self.count = rule, drafter, count
        self.calls, self.canvases = torch.zeros_like(canvas.steps), torch.zeros_like(canvas.steps)

    def open(self, rows: Tensor, window: slice, steps: int) -> None:
        """Before the first call of a window, which is about `rows` as they are; the slow rule may take `steps`."""
        self.rows, self.window = rows, window
        self.steps_left = torch.full_like(rows, steps)  # of the slow rule
        self.state: State | None = None
        self.drafts = self.canvas.tokens[rows, window][:, None]  # [R, k, window]
        self.there = torch.ones_like(self.drafts[:, :, 0], dtype=torch.bool)  # [R, k], which of these there are

    def trials(self) -> tuple[Canvas, Tensor]:
        """What the next call is about: n canvases, those of one row together, and the rows they are of."""
        owner, slot = self.there.nonzero(as_tuple=True)
        rows, tokens = self.rows[owner], self.drafts[owner, slot]
        seen = self.canvas.select(rows)
        seen.tokens[:, self.window] = tokens
        seen.masked[:, self.window] &= tokens == seen.mask_token_id
        self.calls[self.rows] += 1
        self.canvases[self.rows] += self.there.sum(-1)
        return seen, rows

    def follow(self, step: Step) -> None:
        """Writes the slow rule's steps, as far as the n canvases of `step` show them."""
        number = self.there.flatten().cumsum(0).view_as(self.there) - 1  # of a draft among the n
        self.node = node = number[:, 0].clone()  # int [R], the last of the n canvases that its path led to
        walking = torch.arange(len(self.rows), device=self.rows.device)
        tokens = step.predictions.tokens
        log_probs = step.predictions.log_prob(tokens)
        while len(walking):
            rows, here = self.rows[walking], node[walking]
            unmask = self._slow(step, walking, here)
            nothing = torch.zeros_like(unmask)
            self.canvas.write(rows, self.window, tokens[here], log_probs[here], unmask, nothing)
            self.stopping.update(self.canvas)
            now = self.canvas.tokens[rows, self.window]
            same = (self.drafts[walking] == now[:, None]).all(-1) & self.there[walking]
            goes_on = same.any(-1) & self.canvas.masked[rows, self.window].any(-1)
            found = number[walking].gather(-1, same.to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1)
            walking = walking[goes_on]
            node[walking] = found[goes_on]

    def _slow(self, step: Step, walking: Tensor, here: Tensor) -> Tensor:
        """bool [walking, window]: what the slow rule unmasks, as its own loop would have it."""
        canvas, at, left = self.canvas, (self.rows[walking], self.window), self.steps_left[walking, None]
        own = replace(
            step,
            predictions=step.predictions.select(here),
            masked=canvas.masked[at],
            steps_left=cast(int, left),
            unmasked=canvas.order[at] > 0,
            canvas=canvas.tokens[at],
            token_log_probs=canvas.token_log_probs[at],
            rows=at[0],
            hidden_states=None,
            attentions=None,
            padding=None if canvas.padding is None else canvas.padding[at],
        )
        if self.state is None:  # the first call of a window is about all its rows
            self.state = self.rule.init_state(own)
        unmask, state, _ = self.rule.propose(own, tuple(part[walking] for part in self.state))
        for part, new in zip(self.state, state, strict=True):
            part[walking] = new
        unmask = torch.where(left == 1, own.masked, unmask)
        self.steps_left[walking] -= 1
        return at_least_one(unmask, own.masked, own.predictions.confidence)

    def draft(self, step: Step, going_on: Tensor) -> None:
        """What the next call is about, for the rows `going_on` among the R: a guess from where their paths ended."""
        self.rows, self.steps_left = self.rows[going_on], self.steps_left[going_on]
        self.state = None if self.state is None else tuple(part[going_on] for part in self.state)
        now = self.canvas.tokens[self.rows, self.window]
        masked = self.canvas.masked[self.rows, self.window]
        if self.count == 1 or len(self.rows) == 0:
            self.drafts, self.there = now[:, None], torch.ones_like(masked[:, :1])
            return
        last = step.select(self.node[going_on])
        first = self.drafter.preference(last).masked_fill(~masked, -torch.inf)
        # stable twice: where the drafter is undecided, the surer position goes first
        order = last.predictions.confidence.masked_fill(~masked, -torch.inf).argsort(
            dim=-1, descending=True, stable=True
        )
        order = order.gather(-1, first.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
        rank, left = order.argsort(-1)[:, None], masked.sum(-1, keepdim=True)
        j, d = torch.tensor(branches(self.count), device=rank.device).mT
        filled = masked[:, None] & ((rank < j[:, None] - 1) | (rank == (j + d)[:, None] - 1))
        self.drafts = torch.where(filled, last.predictions.tokens[:, None], now[:, None])
        self.there = (j < left) & (j + d <= left)  # a canvas without a mask asks nothing


def verification_of(
    verify: Sampler | None,
    num_assistant_tokens: int | None,
    *,
    canvas: Canvas,
    stopping: Stopping,
    drafter: Sampler,
    temperature: float,
    **not_given: object,
) -> Verification | None:
    """`Verification`, or None where no slow rule is given.

    Raises:
        ValueError: the slow rule draws, remasks, or reads hidden states or attention; the drafter remasks; tokens are
            drawn; k is below 1 or is given without a slow rule; or one of `not_given` is given.
    """
    if verify is None:
        if num_assistant_tokens is not None:
            raise ValueError(f"num_assistant_tokens must be None without verify, got {num_assistant_tokens!r}")
        return None
    for argument, rule in (("verify", verify), ("sampler", drafter)):
        if rule.remasks:
            raise ValueError(f"{argument} must not remask in a verified decoding, got {type(rule).__name__}")
    name = type(verify).__name__
    if verify.is_random:
        raise ValueError(f"verify must be a rule that draws nothing, got {name}: no call could confirm a draw")
    if verify.needs_hidden_states or verify.needs_attentions:
        raise ValueError(f"verify must be a rule that looks at predictions only, got {name}")
    if temperature > 0:
        raise ValueError(f"temperature must be 0 with verify, got {temperature!r}: no call could confirm a drawn token")
    for argument, value in not_given.items():
        if value is not None:
            raise ValueError(f"{argument} must be None with verify, which decodes with one step for each position")
    count = CANVASES if num_assistant_tokens is None else num_assistant_tokens
    check_positive("num_assistant_tokens", count)
    return Verification(canvas, stopping, rule=verify, drafter=drafter, count=count)
