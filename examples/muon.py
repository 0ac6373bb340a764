"""Muon for the matrices inside a model, AdamW for the rest, as one optimizer."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the model, AdamW for embeddings, norms and biases, as one optimizer."""

    def __init__(self, model: torch.nn.Module, *, lr: float):
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.parts = {
            "muon": Muon(matrices, lr=lr, weight_decay=0.01),
            "adamw": torch.optim.AdamW(rest, lr=0.15 * lr, betas=(0.9, 0.98), weight_decay=0.0),
        }
        super().__init__([{"params": matrices, "lr": lr}, {"params": rest, "lr": 0.15 * lr}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # A learning rate schedule writes into `param_groups`: they have to be the parts' own.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure=None):  # pyrefly: ignore[bad-override]
        loss = closure() if closure else None
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict):
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal, in the precision of the matrices.

    `torch.optim.Muon` does it in bfloat16 wherever it runs. A CPU without instructions for that emulates them, which
    took two thirds of an update here. Source: Jordan, https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):  # pyrefly: ignore[bad-override] (a closure is `MuonAdamW`'s)
        for group in self.param_groups:
            for matrix in (p for p in group["params"] if p.grad is not None):
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(average, group["momentum"]))  # Nesterov's
                height, width = matrix.shape
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1, height / width)))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with singular values near 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
