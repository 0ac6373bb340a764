"""What decoding costs beside the denoiser, as ratios measured side by side in one run: time and memory.

    make bench

Absolute times are not shown: they belong to the machine. The models are random; what they say does not matter here.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from hf_learned_order.denoisers import Denoiser
from hf_learned_order.generation import decode
from hf_learned_order.samplers import SAMPLERS, Sampler, make_sampler
from hf_learned_order.scorer import OrderScorer

BATCHES = (1, 8, 32)
PROMPTS, CANVAS, STEPS = (8, 24), 32, 4  # shortest and longest prompt
ROUNDS = {1: 7, 8: 3, 32: 1}
MASK = 3
LOOP, SCORER, PEAK = 0.03, 0.05, 1.3  # targets
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
# on one thread, what others run on the machine is not counted
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


class Timed(Denoiser):
    """Adds up the seconds that its calls take."""

    seconds = 0.0

    def forward(self, *args, **kwargs):
        start = CLOCK()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.seconds += CLOCK() - start


def denoiser_of(size: dict[str, Any], vocab_size: int) -> Timed:
    """A random Llama, called as the denoisers are that were tuned from it."""
    torch.manual_seed(0)
    return Timed(LlamaForCausalLM(LlamaConfig(**size, vocab_size=vocab_size)).eval(), mask_token_id=MASK)


def sampler_of(name: str, denoiser: Denoiser) -> Sampler:
    law = "non_empty" if name.endswith("non_empty") else "dependent"
    scorer = OrderScorer.for_denoiser(denoiser, law=law).eval() if name.startswith("learned_order") else None
    return make_sampler(name.split()[0], scorer=scorer)


def prompts(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged rows, padded on the left."""
    lengths = torch.linspace(PROMPTS[1], PROMPTS[0], batch).long()
    mask = (torch.arange(PROMPTS[1]) >= PROMPTS[1] - lengths[:, None]).long()
    return torch.randint(4, 100, mask.shape, generator=torch.Generator().manual_seed(0)), mask


def canvases(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts with their masked canvas, and the attention mask."""
    ids, mask = prompts(batch)
    canvas = ids.new_full((batch, CANVAS), MASK)
    return torch.cat([ids, canvas], 1), torch.cat([mask, torch.ones_like(canvas)], 1)


@dataclass(frozen=True, kw_only=True)
class Watched(Sampler):
    """Another rule, and the seconds that its proposals took."""

    sampler: Sampler
    spent: list[float] = field(default_factory=list)

    def init_state(self, step):
        return self.sampler.init_state(step)

    def propose(self, step, state):
        start = CLOCK()
        proposal = self.sampler.propose(step, state)
        self.spent.append(CLOCK() - start)
        return proposal


def watching(sampler: Sampler) -> Watched:
    names = ("needs_hidden_states", "reads_unmasked", "remasks")
    traits = type("Traits", (Watched,), {name: getattr(sampler, name) for name in names})
    return traits(sampler=sampler)


def shares(denoiser: Timed, name: str, batch: int, *, rounds: int) -> tuple[float, float, float]:
    """Medians, as shares of the denoiser calls of the same decoding: what the rule proposes with; the rest of the loop;
    and bare calls of the model on the same rows, with logits of every position.
    """
    sampler = sampler_of(name, denoiser)
    (ids, mask), full, found = prompts(batch), canvases(batch), []
    for _ in range(rounds):
        watched, denoiser.seconds = watching(sampler), 0.0
        start = CLOCK()
        output = decode(denoiser, ids, mask, sampler=watched, max_new_tokens=CANVAS, max_denoising_steps=STEPS)
        total, inside, rule = CLOCK() - start, denoiser.seconds, sum(watched.spent)
        denoiser.seconds = 0.0
        for number in range(int(output.nfe.max())):
            rows = int((output.nfe > number).sum())  # rows that had finished were not decoded either
            denoiser(full[0][:rows], full[1][:rows], PROMPTS[1])
        found.append((rule / inside, (total - inside - rule) / inside, denoiser.seconds / inside))
    return tuple(statistics.median(values) for values in zip(*found, strict=True))


def peak(call: Callable[[], object]) -> int:
    """Bytes of tensors that are alive at once during a call, at most, beside those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    # pyrefly: ignore[missing-attribute] (there is one behind the context)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


def time_table() -> Table:
    title = f"share of the denoiser's own calls: loop (target {LOOP:.0%} at 100M) + rule (target {SCORER:.0%} at 100M)"
    view = Table("model", "rule", *(f"batch {batch}" for batch in BATCHES), "met", title=title)
    for model, size, vocab_size in (("tiny", TINY, 1000), ("100M", BASE, 32_000)):
        denoiser = denoiser_of(size, vocab_size)
        shares(denoiser, "top_prob", 1, rounds=1)  # a warm-up
        for name in ("top_prob", "learned_order", "learned_order non_empty"):
            found = [shares(denoiser, name, batch, rounds=ROUNDS[batch]) for batch in BATCHES]
            cells = [f"{loop:.1%} + {rule:.1%}, bare {bare:.2f}" for rule, loop, bare in found]
            met = all(rule <= SCORER and loop <= LOOP for rule, loop, _ in found)
            view.add_row(model, name, *cells, "-" if model == "tiny" else "yes" if met else "no")
    return view


def memory_table() -> Table:
    title = f"peak memory over that of one forward pass, 150,000 tokens in the vocabulary (target {PEAK})"
    view = Table("rule", *(f"batch {batch}" for batch in BATCHES), "met", title=title)
    denoiser = denoiser_of(TINY, 150_000)
    single = {batch: peak(lambda batch=batch: denoiser(*canvases(batch), PROMPTS[1])) for batch in BATCHES}
    for name in SAMPLERS:
        options = {"sampler": sampler_of(name, denoiser), "max_new_tokens": CANVAS, "max_denoising_steps": 3}
        found = [
            peak(lambda batch=batch, options=options: decode(denoiser, *prompts(batch), **options)) / single[batch]
            for batch in BATCHES
        ]
        view.add_row(name, *(f"{ratio:.2f}" for ratio in found), "yes" if max(found) <= PEAK else "no")
    return view


@torch.no_grad()
def main() -> None:
    console = Console()
    console.print(memory_table())
    console.print(time_table())


if __name__ == "__main__":
    main()
