"""Random numbers by row, so that a row draws the same alone and in a batch."""

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


class RowDraws:
    """A source of uniform numbers for each row of a batch.

    A row's is seeded by one number for the whole call and by the tokens of its prompt; rows with the same prompt are
    counted, so that they differ. So neither the other rows nor padding matter, nor the device: numbers are drawn on the
    CPU.

    Args:
        input_ids, attention_mask: [batch, prompt].
        generator: where the number of the call comes from; None: torch's global one. A sequence: one for each row, in
            the place of all this.

    Raises:
        ValueError: there are not as many generators as rows.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ):
        if not isinstance(generator, Sequence):
            generator = _by_prompt(input_ids, attention_mask, generator)
        elif len(generator) != len(input_ids):
            raise ValueError(
                f"generator must be one, or one for each of the {len(input_ids)} rows, got {len(generator)}"
            )
        self._own = generator

    def uniform(self, rows: Tensor, width: int, more: int, padding: Tensor | None) -> Tensor:
        """[len(rows), width + more] in [0, 1): a number for each position of these rows, and `more` behind them.

        Args:
            rows: int [n], which of the batch.
            width: how many positions each has.
            more: numbers beside those of positions.
            padding: bool [n, width], positions on the left that are none of the row and get 0; None: there are none.
        """
        numbers = torch.zeros(len(rows), width + more)
        skipped = [0] * len(rows) if padding is None else padding.sum(-1).tolist()
        for place, (row, skip) in enumerate(zip(rows.tolist(), skipped, strict=True)):
            numbers[place, skip:] = torch.rand(width + more - skip, generator=self._own[row])
        return numbers.to(rows.device)


def _by_prompt(input_ids: Tensor, attention_mask: Tensor, generator: torch.Generator | None) -> list[torch.Generator]:
    """One for each row, whatever the other rows and the padding."""
    device = "cpu" if generator is None else generator.device
    call = int(torch.randint(2**62, (), generator=generator, device=device))
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for ids, real in zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True):
        prompt = tuple(token for token, is_real in zip(ids, real, strict=True) if is_real)
        seed = random.Random(f"{call} {prompt} {seen[prompt]}").getrandbits(62)
        found.append(torch.Generator().manual_seed(seed))
        seen[prompt] += 1
    return found
