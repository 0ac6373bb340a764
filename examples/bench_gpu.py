"""What decoding and training cost on one GPU, in at most eight minutes: tables, and all of it in runs/gpu.json.

    make gpu
    make gpu ARGS="--size tiny --device cpu --backend eager"

A random denoiser in the layout of LLaDA (1.1 billion parameters, bfloat16) and an untrained scorer. The first table
compares the device with the CPU, in float32, on a small denoiser that is sure of what it says.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from pages import markdown
from torch import Tensor

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.checkpoints import LAYOUTS, native_config
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.inside.layers import layers_of
from hf_learned_order.orders.configuration import LAWS
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Objective
from hf_learned_order.training.objectives.table import OBJECTIVES, make_objective

LAYOUT = "LLaDAModelLM"
SIZES: dict[str, dict[str, int]] = {  # as a published config.json names them
    "1B": {"d_model": 2048, "mlp_hidden_size": 5632, "n_layers": 12, "n_heads": 16, "embedding_size": 126_464},
    "tiny": {"d_model": 32, "mlp_hidden_size": 64, "n_layers": 2, "n_heads": 2, "embedding_size": 200},
}
RULES = ("top_prob", "threshold", "learned_order")
CACHES = (None, "prefix", "dual")
UPDATE = {"max_denoising_steps": 4, "num_chains": 4}
ROUNDS = 2
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of prompts and canvas: tokens of the prompt, of the canvas, of a block, steps, rows of an update."""

    prompt: int
    canvas: int
    block: int
    steps: int
    rows: int


SHAPES = {
    "1B": Shape(prompt=128, canvas=128, block=32, steps=32, rows=4),
    "tiny": Shape(prompt=4, canvas=8, block=4, steps=4, rows=2),
}


class Timed(Denoiser):
    """Adds up the seconds that its calls take, once `timing` is set: each call then waits for the device."""

    seconds, calls, timing = 0.0, 0, False

    def forward(self, *args, **kwargs):
        if not self.timing:
            return super().forward(*args, **kwargs)
        start = clock(self.device)
        output = super().forward(*args, **kwargs)
        self.seconds += clock(self.device) - start
        self.calls += 1
        return output


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gib(device: torch.device, call: Callable[[], object]) -> float | None:
    """Memory that a call takes beside what was there before, at most; None on a CPU, which does not count it."""
    if device.type != "cuda":
        call()
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / GIB


def llada(size: str, device: torch.device, dtype: torch.dtype, *, spread: float = 0.02) -> Timed:
    """A random denoiser; `spread` is the standard deviation of its weights."""
    raw = {**SIZES[size], "n_kv_heads": SIZES[size]["n_heads"], "max_sequence_length": 4096, "rms_norm_eps": 1e-5}
    raw |= {"rope_theta": 500_000.0, "weight_tying": False, "mask_token_id": raw["embedding_size"] - 1}
    config = native_config(raw, LAYOUT)
    config.initializer_range, config.dtype = spread, dtype
    torch.manual_seed(0)
    with torch.device("cpu" if spread > 0.02 else device):  # to compare devices, the same weights
        model = LAYOUTS[LAYOUT].model_class(config)  # pyrefly: ignore[bad-argument-type]
    return Timed(model.eval().requires_grad_(False)).to(device=device, dtype=dtype)


def prompts(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.randint(4, 100, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def scorer_of(denoiser: Denoiser, **options: Any) -> OrderScorer:
    return OrderScorer.for_denoiser(denoiser, **options).to(denoiser.device)  # pyrefly: ignore[bad-argument-type]


def sampler_of(name: str, denoiser: Denoiser, **options: Any) -> Any:
    torch.manual_seed(0)
    return make_sampler(name, options, scorer=scorer_of(denoiser).eval() if name == "learned_order" else None)


def equality(device: torch.device) -> Iterator[dict[str, Any]]:
    """Of each rule that does not draw: whether the device gives the CPU's tokens and order, and how far it is off."""
    shape, cpu = SHAPES["tiny"], torch.device("cpu")
    denoisers = [llada("tiny", where, torch.float32, spread=0.4) for where in (cpu, device)]
    for denoiser in denoisers:
        denoiser.model.set_attn_implementation("eager")  # one of the rules reads attention maps
    for name, rule in SAMPLERS.items():
        options = {"greedy": True} if name == "learned_order" else {}
        if rule.is_random and not options:
            continue
        outputs = [
            decode(
                denoiser,
                prompts(8, shape.prompt, denoiser.device),
                sampler=sampler_of(name, denoiser, **options),
                max_new_tokens=4 * shape.canvas,
                max_denoising_steps=2 * shape.canvas,
            )
            for denoiser in denoisers
        ]
        ours, theirs = ({key: value.cpu() for key, value in output.items()} for output in outputs)
        yield {
            "rule": name,
            "same_tokens": (ours["sequences"] == theirs["sequences"]).all(-1).float().mean().item(),
            "same_order": (ours["order"] == theirs["order"]).all(-1).float().mean().item(),
            "largest_difference": (ours["token_log_probs"] - theirs["token_log_probs"]).abs().max().item(),
        }


def decoding(denoiser: Timed, shape: Shape, rule: str, batch: int, cache: str | None) -> dict[str, Any]:
    """Seconds, tokens a second, the share of the loop and of the rule in them, and the memory of one decoding."""
    ids, options = (
        prompts(batch, shape.prompt, denoiser.device),
        dict[str, Any](kv_cache=cache, block_length=shape.block),
    )
    options |= {"max_new_tokens": shape.canvas, "max_denoising_steps": shape.steps}
    sampler, found = sampler_of(rule, denoiser), []

    def run() -> Any:
        torch.manual_seed(0)  # the same calls each time, where the rule draws
        return decode(denoiser, ids, sampler=sampler, **options)

    start = clock(denoiser.device)
    output = run()
    first = clock(denoiser.device) - start
    for _ in range(ROUNDS):
        start = clock(denoiser.device)
        run()
        found.append(clock(denoiser.device) - start)
    denoiser.seconds, denoiser.calls, denoiser.timing = 0.0, 0, True
    peak = peak_gib(denoiser.device, run)
    denoiser.timing, seconds = False, statistics.median(found)
    return {
        "seconds": seconds,
        "first_seconds": first,  # with what was compiled
        "tokens_per_second": batch * shape.canvas / seconds,
        "nfe": output.nfe.float().mean().item(),
        "calls": denoiser.calls,
        "call_ms": 1000 * denoiser.seconds / denoiser.calls,
        "beside_ms": 1000 * (seconds - denoiser.seconds) / denoiser.calls,  # loop and rule, a call
        "peak_gib": peak,
    }


def objective_of(name: str, denoiser: Denoiser) -> tuple[Objective, OrderScorer]:
    """The objective, and a scorer with the first law that it takes."""
    refused = []
    for law in LAWS:
        scorer = scorer_of(denoiser, law=law)
        try:
            return make_objective(name, denoiser, scorer, **UPDATE), scorer
        except ValueError as error:
            refused.append(str(error))
    raise ValueError(f"objective must be one that takes one of the laws {', '.join(LAWS)}, got {name!r}: {refused}")


def updating(denoiser: Timed, shape: Shape, name: str) -> dict[str, Any]:
    """Seconds of an update of the scorer, what the denoiser's calls take of them, and its memory."""
    torch.manual_seed(0)
    objective, scorer = objective_of(name, denoiser)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-3)
    ids = prompts(shape.rows, shape.prompt + shape.canvas, denoiser.device)
    batch = {"input_ids": ids[:, : shape.prompt], "clean": ids[:, shape.prompt :]}

    def update() -> None:
        loss = objective(**batch, attention_mask=torch.ones_like(batch["input_ids"]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    update()  # a warm-up
    denoiser.seconds, denoiser.calls, denoiser.timing = 0.0, 0, True
    start = clock(denoiser.device)
    peak = peak_gib(denoiser.device, update)
    seconds, denoiser.timing = clock(denoiser.device) - start, False
    share = denoiser.seconds / seconds
    return {"law": scorer.config.law, "seconds": seconds, "denoiser": share, "calls": denoiser.calls, "peak_gib": peak}


class Bench:
    """Runs cases while there is time.

    Attributes:
        results: table -> its rows, in the order in which they were made.
        left_out: the cases that no time was left for.
    """

    def __init__(self, minutes: float):
        self.end = time.perf_counter() + 60 * minutes
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.left_out: list[str] = []

    def case(self, table: str, measure: Callable[[], dict[str, Any]], **names: Any) -> None:
        if time.perf_counter() > self.end:
            self.left_out.append(" ".join([table, *(f"{key}={value}" for key, value in names.items())]))
            return
        try:
            row = measure()
        except (RuntimeError, torch.OutOfMemoryError) as error:  # one that does not run on this card hides no other
            row = {"error": f"{type(error).__name__}: {error}"[:200]}
        self.results.setdefault(table, []).append({**names, **row})

    def run(self, denoiser: Timed, size: str, batches: list[int], backend: str | None) -> None:
        shape = SHAPES[size]

        def decodings(compiled: bool, caches: Sequence[str | None]) -> None:
            for batch, rule, cache in product(batches, RULES, caches):
                measure = partial(decoding, denoiser, shape, rule, batch, cache)
                self.case("decoding", measure, rule=rule, batch=batch, cache=cache, compiled=compiled)

        decodings(False, CACHES)
        for name in OBJECTIVES:
            self.case("training", partial(updating, denoiser, shape, name), objective=name)
        if backend is not None:
            for layer in layers_of(denoiser.model):
                layer.compile(backend=backend, dynamic=True)  # or each batch and window would be compiled anew
            decodings(True, (None,))  # a cache is Python's, of which each layer would make a graph of its own


def table(title: str, rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return f"{title}\n\n{markdown(columns, [[_cell(row.get(column)) for column in columns] for row in rows])}\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1B", choices=SIZES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--backend", default="inductor", help="of torch.compile; none: nothing is compiled")
    parser.add_argument("--minutes", type=float, default=7.0, help="no case starts later than this")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("device must be one that is here, got cuda: PyTorch sees no GPU; --device cpu --size tiny runs")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    bench = Bench(options.minutes)
    bench.results["equality with the CPU in float32"] = list(equality(device))
    denoiser = llada(options.size, device, torch.bfloat16)
    bench.run(denoiser, options.size, options.batches, None if options.backend == "none" else options.backend)
    about = {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}
    about |= {"size": options.size, "parameters": sum(p.numel() for p in denoiser.parameters())}
    about |= {"shape": asdict(SHAPES[options.size]), "left_out": bench.left_out}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, **bench.results}, indent=1) + "\n")
    print(*(table(f"{title}; {options.size}, {card}", rows) for title, rows in bench.results.items()), sep="\n")
    print(f"{len(bench.left_out)} cases left out for want of time", *bench.left_out, sep="\n")


if __name__ == "__main__":
    main()
