"""A Space: pick a rule and a budget, watch the canvas fill beside the learned order.

    python examples/space/app.py

Runs on the shipped denoiser and scorer, from their folders beside this file or one folder up; nothing is downloaded.
"""

import html
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import gradio
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from hf_learned_order import SAMPLERS, attach, load_denoiser
from hf_learned_order.denoisers.loading import load_tokenizer
from hf_learned_order.evaluation.order_maps import OrderMap, page, visible

HERE = Path(__file__).resolve().parent
FOLDER = HERE if (HERE / "denoiser").is_dir() else HERE.parent
CANVAS_LENGTH = 64
PAUSE = 0.15  # seconds that each canvas is shown; decoding does not wait for it
EXAMPLES = ["12*5;a+30;b/9", "16-3-4;a*2", "48/2;48+a", "20*4;35*2;a+b"]
RULES = [name for name in SAMPLERS if name != "learned_order"]

tokenizer = load_tokenizer(FOLDER / "denoiser")
model: Any = attach(load_denoiser(str(FOLDER / "denoiser"), attn_implementation="eager"), scorer=FOLDER / "scorer-0")


class Canvases(BaseStreamer):
    """The canvas after each step, in a queue that ends with None."""

    def __init__(self):
        self.settled: list[int] = []
        self.queue: Queue[list[int] | None] = Queue()
        self._prompt_was_put = False

    def put(self, value: Tensor) -> None:
        if self._prompt_was_put:
            self.settled = self.settled + value[0].tolist()
        self._prompt_was_put = True

    def put_draft(self, value: Tensor) -> None:
        self.queue.put(self.settled + value[0].tolist())

    def end(self) -> None:
        self.queue.put(None)


def decode(prompt: str, sampler: str, budget: int, canvases: Canvases) -> tuple[OrderMap, str]:
    """The map of one response, and a line about it."""
    inputs = tokenizer(prompt, return_tensors="pt")
    start = time.perf_counter()
    try:
        output = model.generate(
            **inputs,
            sampler=sampler,
            max_new_tokens=CANVAS_LENGTH,
            max_denoising_steps=budget,
            seed=0,
            streamer=canvases,
            return_dict_in_generate=True,
        )
    finally:
        canvases.end()  # whoever waits for the next canvas does not wait for ever
    seconds = time.perf_counter() - start
    text = tokenizer.decode(output.sequences[0, -CANVAS_LENGTH:], skip_special_tokens=True)
    (shown,) = OrderMap.of(output, tokenizer, label=sampler)
    return shown, f"**{sampler}**: `{text}`, NFE {shown.nfe}, {1000 * seconds:.0f} ms"


def drawn(label: str, canvas: list[int], before: list[int]) -> str:
    """A canvas up to its first EOS; what was masked `before` is marked, what still is is a dot."""
    mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
    cells = []
    for token, old in zip(canvas, before, strict=False):
        text = "·" if token == mask else html.escape(visible(str(tokenizer.decode([token]))))
        cells.append(f"<mark>{text}</mark>" if token != mask and old == mask else text)
        if token == eos:
            break
    return f'<p class="canvas"><b>{html.escape(label)}</b><br><code>{"".join(cells)}</code></p>'


def compare(prompt: str, sampler: str, budget: int) -> Iterator[tuple[str, str]]:
    """The canvas after each step while it is decoded, then the page with both maps; and a line about each."""
    if not prompt.strip():
        raise gradio.Error("The prompt is empty.")
    if unknown := sorted(set(prompt) - set(tokenizer.get_vocab())):
        raise gradio.Error(f"This denoiser does not know {' '.join(unknown)}")
    maps, lines, finished = [], [], ""
    with ThreadPoolExecutor(1) as other:
        for name in (sampler, "learned_order"):  # one after the other: the times are those of either alone
            canvases, canvas = Canvases(), [tokenizer.mask_token_id] * CANVAS_LENGTH
            yield finished + drawn(name, canvas, canvas), "\n\n".join(lines)
            decoding = other.submit(decode, prompt, name, int(budget), canvases)
            for step, after in enumerate(iter(canvases.queue.get, None), 1):
                yield finished + drawn(f"{name}, step {step}", after, canvas), "\n\n".join(lines)
                canvas = after
                time.sleep(PAUSE)
            shown, line = decoding.result()
            maps.append(shown)
            lines.append(line)
            finished += drawn(name, canvases.settled, canvas)
            yield finished, "\n\n".join(lines)
            time.sleep(PAUSE)
    document = html.escape(page(maps, title=prompt, play=True))
    frame = f'<iframe title="Order maps" srcdoc="{document}" style="border: 0; height: 420px; width: 100%"></iframe>'
    yield frame, "\n\n".join(lines)


with gradio.Blocks(title="Learned unmasking orders", analytics_enabled=False) as demo:
    gradio.Markdown(
        "# Learned unmasking orders\n"
        "A masked diffusion model writes out a chain of sums: `12*5;a+30;b/9` asks for 12·5, then that plus 30, then "
        "that by 9. A rule decides which tokens each step unmasks. NFE counts the calls of the model."
    )
    with gradio.Row():
        prompt_box = gradio.Textbox(EXAMPLES[0], label="Prompt", max_length=60)
        rule_box = gradio.Dropdown(RULES, value="top_prob", label="Sampler")
        budget_box = gradio.Slider(1, CANVAS_LENGTH, value=6, step=1, label="Step budget")
    gradio.Examples(EXAMPLES, prompt_box)
    button = gradio.Button("Decode", variant="primary")
    results = gradio.Markdown(elem_id="results")
    frame_box = gradio.HTML()
    button.click(compare, [prompt_box, rule_box, budget_box], [frame_box, results])

if __name__ == "__main__":
    demo.launch()
