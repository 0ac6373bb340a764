"""What decoding costs beside the denoiser and what a KV cache saves, as ratios measured side by side in one run.

    make bench
    make bench ARGS="time --batches 1 8 --models tiny"

Absolute times are not shown: they belong to the machine. The models are random, and what they say does not matter; only
the effect of an approximate cache on tokens is that of a small model trained here, on texts of a Markov chain.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.families import Family
from hf_learned_order.orders.scorer import OrderScorer

BATCHES = [1, 8, 32]
PROMPTS, CANVAS, STEPS = (8, 24), 32, 4  # shortest and longest prompt
ROUNDS = {1: 3, 8: 1, 32: 1}
MASK = 3
LOOP, SCORER, PEAK = 0.03, 0.05, 1.3  # targets
LAWS = ("regret", "non_empty")  # the first is that of the shipped scorers
CACHED: dict[str, Any] = {"max_new_tokens": 64, "block_length": 16, "max_denoising_steps": 16}  # four steps a block
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
MODELS: dict[str, tuple[dict[str, Any], int]] = {"tiny": (TINY, 1000), "100M": (BASE, 32_000)}
WORDS, FOLLOWING, TEXT = 24, 3, (8, 32)  # of the small model: words, successors of each, lengths of prompt and canvas
TRAINING = 400  # steps
RULES = [("top_prob", {}), ("threshold", {"threshold": 0.3})]
BLOCKS = (8, 16)
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


def denoiser_of(size: dict[str, Any], vocab_size: int, *, block_size: int | None = None) -> Timed:
    """A random Llama, called as the denoisers are that were tuned from it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, vocab_size=vocab_size)).eval()
    return Timed(model, mask_token_id=MASK, family=Family(attention="4d", block_size=block_size))


def sampler_of(name: str, denoiser: Denoiser) -> Sampler:
    """A rule; a learned one by the name and its law."""
    name, _, law = name.partition(" ")
    options = {"bound": 1.0} if law in ("", "regret") else {}
    scorer = (
        OrderScorer.for_denoiser(denoiser, law=law or LAWS[0], **options).eval() if name == "learned_order" else None
    )
    return make_sampler(name, scorer=scorer)


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
    names = ("needs_hidden_states", "needs_attentions", "reads_unmasked", "remasks")
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


def time_table(models: list[str], batches: list[int]) -> Table:
    title = f"share of the denoiser's own calls: loop (target {LOOP:.0%} at 100M) + rule (target {SCORER:.0%} at 100M)"
    view = Table("model", "rule", *(f"batch {batch}" for batch in batches), "met", title=title)
    for model in models:
        denoiser = denoiser_of(*MODELS[model])
        shares(denoiser, "top_prob", 1, rounds=1)  # a warm-up
        for name in ("top_prob", *(f"learned_order {law}" for law in LAWS)):
            found = [shares(denoiser, name, batch, rounds=ROUNDS[batch]) for batch in batches]
            cells = [f"{loop:.1%} + {rule:.1%}, bare {bare:.2f}" for rule, loop, bare in found]
            met = all(rule <= SCORER and loop <= LOOP for rule, loop, _ in found)
            view.add_row(model, name, *cells, "-" if model == "tiny" else "yes" if met else "no")
    return view


def memory_table(batches: list[int]) -> Table:
    title = f"peak memory over that of one forward pass, 150,000 tokens in the vocabulary (target {PEAK})"
    view = Table("rule", *(f"batch {batch}" for batch in batches), "met", title=title)
    denoiser = denoiser_of(TINY, 150_000)
    denoiser.model.set_attn_implementation("eager")  # one of the rules reads attention maps
    single = {batch: peak(lambda batch=batch: denoiser(*canvases(batch), PROMPTS[1])) for batch in batches}
    for name in SAMPLERS:
        options = {"sampler": sampler_of(name, denoiser), "max_new_tokens": CANVAS, "max_denoising_steps": 3}
        found = [
            peak(lambda batch=batch, options=options: decode(denoiser, *prompts(batch), **options)) / single[batch]
            for batch in batches
        ]
        view.add_row(name, *(f"{ratio:.2f}" for ratio in found), "yes" if max(found) <= PEAK else "no")
    return view


def cached(denoiser: Timed, batch: int, cache: str | None) -> tuple[float, int]:
    """Seconds and denoiser calls of one decoding."""
    (ids, mask), options = prompts(batch), dict(CACHED)
    if denoiser.family.block_size is not None:  # it has its blocks, on a grid that the prompts must end on
        ids, mask = ids[:, : CACHED["block_length"]], mask[:, -CACHED["block_length"] :].fill_(1)
    start = CLOCK()
    output = decode(denoiser, ids, mask, sampler=make_sampler("top_prob"), kv_cache=cache, **options)
    return CLOCK() - start, int(output.nfe.sum())


def cache_time_table(models: list[str], batches: list[int]) -> Table:
    title = "decoding with a cache over decoding without, time; 64 tokens in blocks of 16, 4 steps a block"
    view = Table("model", "cache", *(f"batch {batch}" for batch in batches), "NFE", title=title)
    for model in models:
        for caches, block_size in ((("prefix", "dual"), None), (("exact",), CACHED["block_length"])):
            denoiser = denoiser_of(*MODELS[model], block_size=block_size)
            cached(denoiser, 1, None)  # a warm-up
            mine = batches if model == "tiny" else batches[:1]  # or it would take minutes
            found = {batch: {cache: cached(denoiser, batch, cache) for cache in (None, *caches)} for batch in mine}
            for cache in caches:
                pairs = [(runs[cache], runs[None]) for runs in found.values()]
                times = [f"{ours[0] / plain[0]:.2f}" for ours, plain in pairs] + ["-"] * (len(batches) - len(mine))
                view.add_row(model, cache, *times, f"{sum(m[1] for m, _ in pairs) / sum(p[1] for _, p in pairs):.2f}")
    return view


def successors() -> torch.Tensor:
    """bool [words, words]: which word may follow which in the texts of the small model, a few each."""
    order = torch.rand(WORDS, WORDS, generator=torch.Generator().manual_seed(0)).argsort(-1)
    return torch.zeros(WORDS, WORDS, dtype=torch.bool).scatter(1, order[:, :FOLLOWING], True)


def texts(count: int, generator: torch.Generator) -> torch.Tensor:
    """int [count, prompt + canvas], each word drawn among the successors of the one before."""
    may_follow = successors().float()
    columns = [torch.randint(WORDS, (count, 1), generator=generator)]
    while len(columns) < sum(TEXT):
        columns.append(torch.multinomial(may_follow[columns[-1].squeeze(-1)], 1, generator=generator))
    return torch.cat(columns, 1) + MASK + 1


def trained() -> Denoiser:
    """A tiny Llama that fills in such texts, trained on masked ones for a quarter of a minute."""
    denoiser, generator = denoiser_of(TINY, MASK + 1 + WORDS), torch.Generator().manual_seed(0)
    model, (prompt, canvas) = denoiser.model.train(), TEXT
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(TRAINING):
        ids = texts(64, generator)
        hidden = torch.rand(64, canvas, generator=generator) < torch.rand(64, 1, generator=generator)
        masked = ids.clone()
        masked[:, prompt:][hidden] = MASK
        logits, _ = denoiser(masked, torch.ones_like(ids), prompt)
        loss = torch.nn.functional.cross_entropy(logits[hidden], ids[:, prompt:][hidden])
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, step / 50) * (1 - step / TRAINING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return denoiser


def cache_token_table() -> Table:
    title = f"tokens that a cache changes, and words that may follow each other; a canvas of {TEXT[1]}"
    view = Table("rule", "blocks of", "cache", "differ", "NFE", "may follow", title=title)
    with torch.enable_grad():
        denoiser = trained()
    prompt, may_follow = texts(256, torch.Generator().manual_seed(1))[:, : TEXT[0]], successors()
    for (name, setting), block_length in itertools.product(RULES, BLOCKS):
        options: dict[str, Any] = {"sampler": make_sampler(name, setting), "max_new_tokens": TEXT[1]}
        options |= {"block_length": block_length}
        expected = decode(denoiser, prompt, **options)
        for cache in (None, "prefix", "dual"):
            output = decode(denoiser, prompt, kv_cache=cache, **options)
            differ = (output.sequences != expected.sequences)[:, TEXT[0] :].float().mean()
            nfe = output.nfe.sum() / expected.nfe.sum()
            words = output.sequences[:, TEXT[0] - 1 :] - MASK - 1
            right = may_follow[words[:, :-1].clamp(min=0), words[:, 1:].clamp(min=0)].float().mean()
            view.add_row(name, str(block_length), cache or "none", f"{differ:.1%}", f"{nfe:.2f}", f"{right:.1%}")
    return view


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["memory", "caches", "time"], help="memory, caches, time")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, choices=BATCHES)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options, console = parser.parse_args(arguments), Console()
    for name in options.tables:
        if name == "memory":
            console.print(memory_table(options.batches))
        elif name == "caches":
            console.print(cache_token_table())
            console.print(cache_time_table(options.models, sorted(options.batches)[:2]))
        elif name == "time":
            console.print(time_table(options.models, options.batches))
        else:
            parser.error(f"tables must be among memory, caches, time, got {name}")


if __name__ == "__main__":
    main()
