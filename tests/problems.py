"""Tiny problems whose best bound is known, with denoisers that compute every conditional exactly."""

import math
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hf_learned_order.denoisers.families import ENCODER

MASK = 2


class ExactPairs(nn.Module):
    """p(x^i | x_t) for x^i = x^{i+n}, independent fair bits. Optimum: T = 1 gives -2n log 2, T >= 2 gives -n log 2.

    Called as a `Denoiser`; its hidden states are the position and the state of the partner, one-hot.
    """

    mask_token_id, vocab_size = MASK, 3
    max_length = None
    family = ENCODER

    def __init__(self, n: int):
        super().__init__()
        self.n, self.length = n, 2 * n
        self.hidden_size = 2 * n + 3
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=3, hidden_size=self.hidden_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, start: int, *, hidden_states=False, at=None):
        canvas = input_ids[:, start:]
        partner = canvas.roll(self.n, -1)
        known = nn.functional.one_hot(partner, 3).float()
        logits = torch.where((partner == MASK)[..., None], torch.zeros(3), known.log())
        position = torch.eye(2 * self.n).expand(len(canvas), -1, -1)
        return logits if at is None else logits[at], torch.cat([position, known], -1)

    @staticmethod
    def draw(n: int, batch: int, generator: torch.Generator) -> Tensor:
        bits = torch.randint(2, (batch, n), generator=generator)
        return torch.cat([bits, bits], 1)

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Empty prompts and clean responses."""
        return torch.zeros(batch, 0, dtype=torch.long), self.draw(self.n, batch, generator)

    def optimum(self, steps: int) -> float:
        """The best bound, nats."""
        return -self.n * math.log(2) * (2 if steps == 1 else 1)

    def regret(self, prompt: Tensor, clean: Tensor, order: Tensor, steps: int) -> Tensor:
        """[batch], nats: what an order loses, on average over the responses: log 2 for each pair unmasked at once."""
        first, second = order.view(-1, 2, self.n).unbind(1)
        return math.log(2) * ((first == second) & (steps > 1)).sum(-1)


class ExactTable(nn.Module):
    """Every conditional of a joint distribution over bits, p = `table` [2] * length, by summing over the table.

    Called as a `Denoiser`; its hidden states are the position and the canvas token, one-hot.
    """

    mask_token_id, vocab_size = MASK, 3

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = (table / table.sum()).flatten()
        self.length = table.dim()
        self.rows = torch.cartesian_prod(*[torch.arange(2)] * self.length).view(-1, self.length)
        self.hidden_size = self.length + 3
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=3, hidden_size=self.hidden_size))

    @classmethod
    def random(cls, length: int, *, seed: int) -> "ExactTable":
        """A joint distribution far from independent."""
        return cls(torch.randn([2] * length, generator=torch.Generator().manual_seed(seed)).mul(2).exp())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, start: int, *, hidden_states=False, at=None):
        canvas = input_ids[:, start:]
        agrees = ((canvas[:, None] == self.rows) | (canvas[:, None] == MASK)).all(-1).float() * self.table
        weights = torch.einsum("bs,siv->biv", agrees, nn.functional.one_hot(self.rows, 3).float())
        position = torch.eye(self.length).expand(len(canvas), -1, -1)
        logits = weights.log()
        return logits if at is None else logits[at], torch.cat([position, nn.functional.one_hot(canvas, 3).float()], -1)


class ExactWords(nn.Module):
    """A response of n words to a prompt of words, for the problems of ParallelBench (arXiv 2510.04767).

    Called as a `Denoiser`; its hidden states are the position and the canvas token, one-hot. A subclass says what is
    drawn, what is believed, and what `step` nats k positions unmasked at once are worth when m are masked.
    """

    WORDS = 12
    mask_token_id, vocab_size = WORDS, WORDS + 1
    max_length = None
    family = ENCODER

    def __init__(self, n: int):
        super().__init__()
        self.n = self.length = n
        self.hidden_size = n + self.vocab_size
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=self.vocab_size, hidden_size=self.hidden_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, start: int, *, hidden_states=False, at=None):
        canvas = input_ids[:, start:]
        position = torch.eye(self.n).expand(len(canvas), -1, -1)
        logits = self.probs(input_ids[:, :start], canvas).log()
        return logits if at is None else logits[at], torch.cat([position, self.one_hot(canvas)], -1)

    def one_hot(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, self.vocab_size).float()

    def words(self, batch: int, count: int, generator: torch.Generator) -> Tensor:
        """[batch, count], all different."""
        return torch.rand(batch, self.WORDS, generator=generator).argsort(-1)[:, :count]

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Prompts and clean responses."""
        raise NotImplementedError

    def probs(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        """Exact conditionals [batch, n, vocab]."""
        raise NotImplementedError

    def optimum(self, steps: int) -> float:
        """The best bound of an order that does not see the response, nats."""
        return self._best(self.n, steps)

    def regret(self, prompt: Tensor, clean: Tensor, order: Tensor, steps: int) -> Tensor:
        """[batch], nats: what the numbers of positions lose against the best ones, on average over the responses.

        Its mean is how far the mean log-likelihood is from the optimum, without the noise of the responses drawn: the
        best that is possible behind a step takes their place.
        """
        found = []
        for row, last in zip(order.tolist(), self.decided(prompt, clean, order).tolist(), strict=True):
            masked = [sum(t >= number for t in row) for number in range(1, last + 2)]
            values = [self._values(m, steps - number) for number, m in enumerate(masked[:-1])]
            taken = [m - after for m, after in pairwise(masked)]
            found.append(sum(max(value.values()) - value[k] for value, k in zip(values, taken, strict=True)))
        return torch.tensor(found, dtype=torch.float)

    def decided(self, prompt: Tensor, clean: Tensor, order: Tensor) -> Tensor:
        """[batch], the last step whose number of positions matters."""
        return order.amax(-1)

    @lru_cache  # noqa: B019 (a handful of problems)
    def _values(self, masked: int, steps: int) -> dict[int, float]:
        """How many to unmask with `steps` left -> the most that can follow, nats, while nothing is settled for good."""
        counts = [masked] if steps == 1 else range(1, masked + 1)
        return {k: self.step(masked, k) + self.open(masked, k) * self._best(masked - k, steps - 1) for k in counts}

    def _best(self, masked: int, steps: int) -> float:
        return max(self._values(masked, steps).values()) if masked else 0.0

    def step(self, masked: int, k: int) -> float:
        """Mean log-likelihood of k of the masked positions, nats."""
        return 0.0

    def open(self, masked: int, k: int) -> float:
        """Probability that the rest is not certain afterwards."""
        return 1.0


class ExactCopy(ExactWords):
    """The response is the prompt. Nothing is ever lost."""

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        words = self.words(batch, self.n, generator)
        return words, words

    def probs(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        return self.one_hot(prompt)


class ExactReplaceAt(ExactWords):
    """Prompt: n words, an index, another word; the response has it at the index. Nothing is ever lost."""

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        words = self.words(batch, self.n + 1, generator)
        index = torch.randint(self.n, (batch, 1), generator=generator)
        prompt = torch.cat([words[:, : self.n], index, words[:, self.n :]], 1)
        return prompt, words[:, : self.n].scatter(1, index, words[:, self.n :])

    def probs(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        return self.one_hot(prompt[:, : self.n].scatter(1, prompt[:, self.n, None], prompt[:, self.n + 1 :]))


class ExactReplaceRandom(ExactWords):
    """Prompt: n words and another one; the response has it at a random place. All at once loses (n-1) log(n/(n-1))."""

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        prompt = self.words(batch, self.n + 1, generator)
        index = torch.randint(self.n, (batch, 1), generator=generator)
        return prompt, prompt[:, : self.n].scatter(1, index, prompt[:, self.n :])

    def probs(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        found = (canvas == prompt[:, self.n :]).any(-1, keepdim=True)
        new = torch.where(found, 0.0, 1 / (canvas == self.mask_token_id).sum(-1, keepdim=True).clamp(min=1))[..., None]
        return new * self.one_hot(prompt[:, self.n :]) + (1 - new) * self.one_hot(prompt[:, : self.n])

    def step(self, masked: int, k: int) -> float:
        old = math.log((masked - 1) / masked) if masked > 1 else 0.0
        return k / masked * (math.log(1 / masked) + (k - 1) * old) + (1 - k / masked) * k * old

    def open(self, masked: int, k: int) -> float:
        return 1 - k / masked

    def decided(self, prompt: Tensor, clean: Tensor, order: Tensor) -> Tensor:
        return order[clean == prompt[:, self.n :]]


class ExactShuffle(ExactWords):
    """The response is the prompt's n words in random order. All at once loses n log n - log n!."""

    def examples(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        words = self.words(batch, self.n, generator)
        order = torch.rand(batch, self.n, generator=generator).argsort(-1)
        return words, words.gather(1, order)

    def probs(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        left = ~(prompt[:, :, None] == canvas[:, None]).any(-1)
        probs = (self.one_hot(prompt) * left[..., None]).sum(1) / left.sum(-1, keepdim=True).clamp(min=1)
        return probs[:, None].expand(-1, self.n, -1).clamp(min=0.0)

    def step(self, masked: int, k: int) -> float:
        return -k * math.log(masked)


class Scripted(nn.Module):
    """Says what a script makes of the prompt's last token and of the canvas. Called as a `Denoiser`.

    The script gets both as Python numbers and returns, for each position, the token and its probability; the rest of
    the probability goes to `OTHER`. As a function of the canvas it is the same however often it is called.
    """

    OTHER, WRONG, RIGHT = 0, 1, 3
    mask_token_id = MASK
    vocab_size = 100  # of prompts; it says 0 to 3
    max_length = None
    family = ENCODER

    def __init__(self, script):
        super().__init__()
        self.script = script

    def forward(self, input_ids: Tensor, attention_mask: Tensor, start: int, *, hidden_states=False, at=None):
        probs = torch.zeros(len(input_ids), input_ids.shape[1] - start, 4)
        for row, ids in enumerate(input_ids.tolist()):
            for i, (token, probability) in enumerate(self.script(ids[start - 1], ids[start:])):
                probs[row, i, self.OTHER] = 1 - probability
                probs[row, i, token] = probability
        logits = probs.log()
        return logits if at is None else logits[at], None
