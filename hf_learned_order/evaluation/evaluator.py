"""A sampler measured: task accuracy, NFE of each sequence, held-out bound; its settings tuned to a target NFE.

NFE is counted for each sequence (denoiser calls while it still had a masked position) and averaged over sequences,
never over batches. The bound is the log-likelihood of the published response, decoded in the order that the rule
gives when every unmasked token is the true one (`decode(clean=...)`), in nats a response.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_learned_order.common import files
from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.results import Result
from hf_learned_order.tasks.answers import Response
from hf_learned_order.tasks.collator import CanvasCollator

COLUMNS = ("prompt_ids", "response_ids", "answer")


class Evaluator:
    """Decodes a data set with any sampler.

    Args:
        denoiser: the model.
        tokenizer: its tokenizer.
        dataset: rows of `prompt_ids`, `response_ids` (without EOS), `answer` (`hf_learned_order.tasks.data`).
        canvas_length: positions of a response.
        batch_size: rows decoded at once; results do not depend on it unless something is drawn.
        is_right: from a response and the row's `answer`; by default the number behind `#` is compared (`tasks`).
        temperature: 0 takes the most likely tokens, otherwise they are drawn.
        score: from a `Response` to a number in [0, 1], instead of `is_right` (`tasks.table.Task.score`).
        processes: accelerate's `PartialState`: its processes share the batches, and must make the same calls. What is
            measured is the same with any number of them.

    Raises:
        ValueError: the data set has no row, or lacks one of these columns.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        *,
        canvas_length: int,
        batch_size: int = 128,
        is_right: Callable[[str, str], bool] | None = None,
        temperature: float = 0.0,
        score: Callable[[Response], float] | None = None,
        processes: Any = None,
    ):
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one row, but it is empty")
        missing = [name for name in COLUMNS if name not in dataset.column_names]
        if missing:
            raise ValueError(f"dataset must have the columns {', '.join(COLUMNS)}, but lacks {', '.join(missing)}")
        self.denoiser = denoiser
        self.tokenizer = tokenizer
        lengths = [len(p) + len(r) for p, r in zip(dataset["prompt_ids"], dataset["response_ids"], strict=True)]
        # rows of like length together: less padding
        # pyrefly: ignore[bad-assignment] (a Dataset's selection is a Dataset)
        self.dataset: Dataset = dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))
        self.canvas_length = canvas_length
        self.batch_size = batch_size
        self.judgement = {} if is_right is None else {"is_right": is_right}
        self.temperature = temperature
        self.score = score
        self.processes = processes
        self.collator = CanvasCollator(tokenizer=tokenizer, canvas_length=canvas_length)
        self._measured: dict[tuple[Sampler, int | None], Result] = {}  # searches for several targets meet

    def outputs(
        self, sampler: Sampler, *, max_denoising_steps: int | None = None, seed: int = 0, clean: bool = False
    ) -> Iterator[tuple[LearnedOrderOutput, list[dict]]]:
        """Batches of decoded (or, with `clean`, scored) rows and the rows themselves, of this process."""
        rank, world = (0, 1) if self.processes is None else (self.processes.process_index, self.processes.num_processes)
        for at in range(rank * self.batch_size, len(self.dataset), world * self.batch_size):
            generator = torch.Generator(self.denoiser.device).manual_seed(_seed_of(seed, at))
            # pyrefly: ignore[missing-attribute]
            rows = self.dataset.select(range(at, min(at + self.batch_size, len(self.dataset)))).to_list()
            batch = {name: value.to(self.denoiser.device) for name, value in self.collator(rows).items()}
            beginning = start(
                batch["input_ids"],
                batch["attention_mask"],
                batch["clean"],
                batch.get("given"),
                mask_token_id=self.denoiser.mask_token_id,
            )
            whole = torch.cat([batch["input_ids"], batch["clean"]], 1) if "given" in batch else batch["clean"]
            output = decode(
                self.denoiser,
                **beginning,
                sampler=sampler,
                temperature=self.temperature,
                max_denoising_steps=max_denoising_steps,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                generator=generator,
                clean=whole if clean else None,
            )
            yield output, rows

    def measure(
        self,
        sampler: Sampler,
        *,
        name: str,
        max_denoising_steps: int | None = None,
        seed: int = 0,
        with_bound: bool = True,
    ) -> Result:
        """Accuracy, NFE, orders and bound of one sampler at one budget."""
        from hf_learned_order.evaluation.metrics import AnswerAccuracy, OrderMetrics

        batches = []
        for output, rows in self.outputs(sampler, max_denoising_steps=max_denoising_steps, seed=seed):
            responses = output.sequences[:, -self.canvas_length :]
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            numbers = (self.order_of(output).tolist(), output.nfe.tolist(), output.tokens_per_forward.tolist())
            right = map(self._judged, texts, responses.tolist(), rows)
            batches.append(list(zip(right, texts, [row["answer"] for row in rows], *numbers, strict=True)))
        right, texts, answers, orders, nfe, tokens = map(list, zip(*self._of_all(batches), strict=True))
        if self.score is None:
            metric = AnswerAccuracy(keep_in_memory=True)
            # pyrefly: ignore[unsupported-operation] (None is for processes that are not the first)
            right = metric.compute(predictions=texts, references=answers, **self.judgement)["right"]
        bound = None
        if with_bound and not sampler.remasks:
            scored = self.outputs(sampler, max_denoising_steps=max_denoising_steps, seed=seed, clean=True)
            bound = torch.tensor(self._of_all([output.log_likelihood.tolist() for output, _ in scored])).mean().item()
        return Result(
            sampler=name,
            budget=max_denoising_steps or self.canvas_length,
            accuracy=sum(right) / len(right),
            nfe=sum(nfe) / len(nfe),
            nfe_min=min(nfe),
            nfe_max=max(nfe),
            bound=bound,
            count=len(right),
            scores=[float(x) for x in right],
            calls=[float(x) for x in nfe],
            texts=texts,
            tokens_per_forward=sum(tokens) / len(tokens),
            **OrderMetrics(keep_in_memory=True).compute(predictions=orders),  # pyrefly: ignore[bad-unpacking]
        )

    def _judged(self, text: str, ids: list[int], row: dict[str, Any]) -> float | None:
        """What `score` says of a decoded canvas; None without one."""
        if self.score is None:
            return None
        expected, given = row["response_ids"], row.get("given")
        if given is not None:  # a row that is shorter than the canvas stands on its right, else EOS fill it up
            ids = ids[len(ids) - len(given) :][: len(expected)]
            given = given[: len(expected)]
        return self.score(Response(text=text, ids=ids, expected=expected, given=given, answer=row["answer"]))

    def _of_all(self, batches: list[list]) -> list:
        """What belongs to the rows, from the batches of all processes, in the order of the data set."""
        if self.processes is not None:
            from accelerate.utils import gather_object

            rank, world = self.processes.process_index, self.processes.num_processes
            numbered = [(rank + world * number, batch) for number, batch in enumerate(batches)]
            batches = [batch for _, batch in sorted(gather_object(numbered), key=lambda pair: pair[0])]
        return [row for batch in batches for row in batch]

    def order_of(self, output: LearnedOrderOutput) -> Tensor:
        """int [batch, canvas]: the order of each response up to its first EOS, 0 behind it."""
        if "given" in self.dataset.column_names:
            return output.order[:, -self.canvas_length :]  # no EOS ends a row
        position = torch.arange(self.canvas_length, device=output.order.device)
        return output.order.masked_fill(position >= output.length[:, None], 0)

    def fingerprint(self) -> str:
        """Of the rows, for a `Sweep` to know them again."""
        return hashlib.sha256(json.dumps(self.dataset.to_list()).encode()).hexdigest()[:16]

    def quick(self, sampler: Sampler, max_denoising_steps: int | None = None) -> Result:
        """`measure` without the bound, remembered."""
        key = (sampler, max_denoising_steps)
        if key not in self._measured:
            self._measured[key] = self.measure(
                sampler, name="", max_denoising_steps=max_denoising_steps, with_bound=False
            )
        return self._measured[key]

    def tune_knob(
        self,
        make: Callable[[float], Sampler],
        target_nfe: float,
        *,
        max_denoising_steps: int | None = None,
        high: float = 1.0,
        rounds: int = 10,
    ) -> float:
        """The setting in [0, high] whose mean NFE here is nearest to `target_nfe`, by bisection.

        `make(0)` must take the most steps and `make(high)` the fewest. The best setting that was tried is returned.
        """
        best, low = (float("inf"), high), 0.0
        for _ in range(rounds):
            middle = (low + high) / 2
            nfe = self.quick(make(middle), max_denoising_steps).nfe
            best = min(best, (abs(nfe - target_nfe), middle))
            if abs(nfe - target_nfe) <= 0.02 * target_nfe:
                break
            low, high = (middle, high) if nfe > target_nfe else (low, middle)
        return best[1]

    def tune_both(
        self,
        make: Callable[[float], Sampler],
        target_nfe: float,
        *,
        budgets: Sequence[int],
        points: int = 9,
        rounds: int = 2,
    ) -> tuple[float, int]:
        """The setting in [0, 1] and the step budget that get most right here within the target, by search.

        Each budget is tried with `points` settings, from fast to slow until the mean NFE is more than 2 % above
        `target_nfe`, then in `rounds` with the settings halfway between the best one and its neighbours. Where no
        setting is fast enough it is the fastest, with the least budget.
        """
        best = (-1.0, 0.0, 1.0, min(budgets))

        def value(found: tuple[float, float, float, int]) -> tuple[float, float]:
            # of those that get as much right the fastest; where nothing is right, the one that has most calls to do it
            return found[0], found[1] if found[0] > 0 else -found[1]

        for budget in sorted(budgets):
            gap = 1 / (points - 1)
            wanted = [1 - gap * number for number in range(points)]
            mine = (-1.0, 0.0, 1.0, budget)
            for _ in range(rounds + 1):
                for setting in wanted:
                    result = self.quick(make(setting), budget)
                    if result.nfe > 1.02 * target_nfe:
                        break
                    mine = max(mine, (result.accuracy, -result.nfe, setting, budget), key=value)
                gap /= 2
                wanted = [x for x in (mine[2] + gap, mine[2] - gap) if 0 <= x <= 1]
            best = max(best, mine, key=value)
        return best[2:]

    def tune_budget(self, sampler: Sampler, target_nfe: float) -> int:
        """The step budget whose mean NFE here is nearest to `target_nfe` (an early EOS makes it less)."""
        best, budget, last = (float("inf"), 1), min(self.canvas_length, max(1, round(target_nfe))), 0.0
        while budget <= self.canvas_length:
            nfe = self.quick(sampler, budget).nfe
            best = min(best, (abs(nfe - target_nfe), budget))
            if nfe >= target_nfe or nfe == last:  # `dilated` has a number of steps of its own: more budget is no more
                break
            budget, last = budget + 1, nfe
        return best[1]


def _seed_of(seed: int, at: int) -> int:
    """Of the batch that begins with row `at`: whichever process decodes it, the same is drawn."""
    return int(np.random.SeedSequence((seed, at)).generate_state(1, np.uint64)[0])


def fingerprint(model: nn.Module) -> str:
    """Of a model's weights and configuration, for a `Sweep` to know it again."""
    return files.fingerprint(model.state_dict(), str(getattr(model, "config", "")))
