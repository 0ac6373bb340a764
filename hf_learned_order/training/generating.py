"""`GeneratingTrainer`: what the scorer generates as it is, in training and behind it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.hooks import evaluating
from hf_learned_order.training.checkpointing import CheckpointingTrainer
from hf_learned_order.training.objectives.judging import Judge
from hf_learned_order.training.objectives.rollouts import OrderByRow
from hf_learned_order.training.objectives.updates import Draws, seeds_of
from hf_learned_order.training.rows import rows_of

CALIBRATION_ROWS = 256


class GeneratingTrainer(CheckpointingTrainer):
    """Decodes batches, and the first rows of a data set, as `generate` does, on all processes together."""

    if TYPE_CHECKING:
        denoiser: Denoiser
        judge: Judge

    @torch.no_grad()
    def _decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        clean: Tensor,
        given: Tensor | None,
        seeds: Tensor,
        bias: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Responses [batch, canvas] and NFE [batch] of the scorer as it is, by generation with no knob but a bias.

        Of `clean` it sees what is `given`. Tokens are drawn at the `temperature` of the training.
        """
        length, steps = clean.shape[1], self.scorer.config.max_denoising_steps
        draws = Draws(seeds, rows=len(clean), device=clean.device)
        with evaluating(self.denoiser):
            output = decode(
                self.denoiser,
                **start(input_ids, attention_mask, clean, given, mask_token_id=self.denoiser.mask_token_id),
                sampler=OrderByRow(scorer=self.scorer, draws=draws, bias=bias),
                max_denoising_steps=None if steps is None else min(steps, length),
                eos_token_id=self.processing_class.eos_token_id,
                temperature=self.args.temperature,
                generator=draws.generators(1),
            )
        return output.sequences[:, -length:], output.nfe

    def _first_rows(
        self, dataset: Any, count: int = CALIBRATION_ROWS
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, int]]:
        """This process's share of the first `count` rows, in batches, their seeds, and how many of each batch count.

        Each process has as many as the others, filled up with rows from the front: weights that FSDP has split are
        gathered by all together.
        """
        world, size = self.args.world_size, self.args.eval_batch_size
        rows = list(itertools.islice(rows_of(dataset), count))
        seeds = seeds_of(self.args.seed, self.state.global_step, first=0, rows=len(rows))
        mine = range(self.args.process_index, math.ceil(len(rows) / world) * world, world)
        for at in range(0, len(mine), size):
            numbers = mine[at : at + size]
            places = [number % len(rows) for number in numbers]
            batch = self._prepare_inputs(self.data_collator([rows[place] for place in places]))
            yield batch, seeds[places], sum(number < len(rows) for number in numbers)

    def _mean_nfe(self, batches: list[tuple[dict[str, Tensor], Tensor, int]]) -> float:
        """Of generation without a knob, over the rows of all processes."""
        (nfe,) = self._means([(self._generated(batch, seeds)[1][:count],) for batch, seeds, count in batches])
        return nfe

    def _calls_and_share(
        self, batches: list[tuple[dict[str, Tensor], Tensor, int]], bias: float
    ) -> tuple[float, float]:
        """NFE and the share of right responses of generation with a bias, over the rows of all processes."""
        found = []
        for batch, seeds, count in batches:
            responses, nfe = self._generated(batch, seeds, bias=bias)
            found.append((nfe[:count], self.judge.right(responses, batch["clean"], batch["answer"])[:count]))
        nfe, share = self._means(found)
        return nfe, share

    def _means(self, parts: Sequence[tuple[Tensor, ...]]) -> list[float]:
        """Of columns [rows] that come in parts, over the rows of all processes."""
        columns = torch.stack([torch.cat(column).float() for column in zip(*parts, strict=True)])
        sums = torch.cat([columns.sum(1), torch.full((1,), float(columns.shape[1]), device=columns.device)])
        summed: Any = self.accelerator.reduce(sums, "sum")
        *totals, count = summed.tolist()
        return [total / count for total in totals]

    def _generated(self, batch: dict[str, Tensor], seeds: Tensor, *, bias: float = 0.0) -> tuple[Tensor, Tensor]:
        prompt = batch["input_ids"], batch["attention_mask"]
        return self.whole(self._decode, *prompt, batch["clean"], given=batch.get("given"), seeds=seeds, bias=bias)
