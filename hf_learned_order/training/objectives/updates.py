"""What makes an update the same however it is split among processes: its random numbers, its means.

Each row of an update has a generator of its own, seeded by the seed of the run, the number of the update and the row's
place in it, and the update has one for what its rows share. So the same numbers are drawn by one process or several,
with or without gradient accumulation, on whatever device, and after a resumption.
"""

import random

import torch
import torch.distributed as dist
from torch import Tensor


def seeds_of(seed: int, update: int, *, first: int, rows: int) -> Tensor:
    """int [rows, 2]: of each of the rows `first`, `first + 1`, ... of an update its own seed, and the update's."""
    numbers = [random.Random(f"{seed} {update} {row}").getrandbits(62) for row in (*range(first, first + rows), "all")]
    return torch.tensor([[own, numbers[-1]] for own in numbers[:-1]]).view(rows, 2)


class Draws:
    """The random numbers of one batch.

    Args:
        seeds: `seeds_of` its rows, on any device; None takes torch's global generator.
        rows: how many rows it has.
        device: where the numbers are wanted. They are drawn on the CPU: a device has generators of its own.
    """

    def __init__(self, seeds: Tensor | None, *, rows: int, device: torch.device):
        self.rows, self.device = rows, device
        self._own: list[torch.Generator] | None = None
        self._shared: torch.Generator | None = None
        if seeds is not None:
            own, shared = seeds.T.tolist()
            self._own = [torch.Generator().manual_seed(number) for number in own]
            self._shared = torch.Generator().manual_seed(shared[0])

    def uniform(self, *shape: int) -> Tensor:
        """[rows, *shape], in [0, 1)."""
        return self._draw(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """[rows, *shape], standard normal."""
        return self._draw(torch.randn, shape)

    def integer(self, low: int, high: int) -> int:
        """One number for all rows, from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._shared))

    def number(self, low: float, high: float) -> float:
        """One number for all rows, in [low, high)."""
        return low + (high - low) * torch.rand((), generator=self._shared).item()

    def generators(self, number: int) -> list[torch.Generator]:
        """`number` for each row, one row's behind the other's: for a decoding that draws."""
        seeds = (self.uniform(number).double() * 2**24).long().flatten().tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _draw(self, law, shape: tuple[int, ...]) -> Tensor:
        if self._own is None:
            return law(self.rows, *shape, device=self.device)
        return torch.stack([law(shape, generator=generator) for generator in self._own]).to(self.device)


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """`total / count`, 0 where the count is 0, of all processes together: the mean of their results is that ratio.

    Where torch.distributed runs, each process has to call it as often as the others.
    """
    world = 1
    if dist.is_available() and dist.is_initialized():
        world, count = dist.get_world_size(), count.clone()
        dist.all_reduce(count)
    return total * world / count.clamp(min=1)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number that each process has, the same for all; not differentiable."""
    value = value.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
