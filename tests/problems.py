"""Tiny problems whose best bound is known, with denoisers that compute every conditional exactly."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

MASK = 2


class ExactPairs(nn.Module):
    """p(x^i | x_t) for x^i = x^{i+n}, independent fair bits. Optimum: T = 1 gives -2n log 2, T >= 2 gives -n log 2.

    Called as a `Denoiser`; its hidden states are the position and the state of the partner, one-hot.
    """

    mask_token_id, vocab_size = MASK, 3

    def __init__(self, n: int):
        super().__init__()
        self.n = n
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


class Scripted(nn.Module):
    """Says what a script makes of the prompt's last token and of the canvas. Called as a `Denoiser`.

    The script gets both as Python numbers and returns, for each position, the token and its probability; the rest of
    the probability goes to `OTHER`. As a function of the canvas it is the same however often it is called.
    """

    OTHER, WRONG, RIGHT = 0, 1, 3
    mask_token_id = MASK
    vocab_size = 100  # of prompts; it says 0 to 3
    max_length = None
    family = SimpleNamespace(shift=0)

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
