"""A Space: pick a rule and a budget, watch the canvas fill beside the learned order.

    python examples/space/app.py [--dtype bfloat16] [--device_map auto]

Runs on the shipped denoiser and scorer, from their folders beside this file or one folder up; nothing is downloaded. On
the accelerator, if there is one.
"""

import argparse
import html
import sys
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
from hf_learned_order.common.processes import device_for
from hf_learned_order.denoisers.loading import load_tokenizer
from hf_learned_order.evaluation.order_maps import OrderMap, page, visible
from hf_learned_order.sharing.markdown import code

HERE = Path(__file__).resolve().parent
FOLDER = HERE if (HERE / "denoiser").is_dir() else HERE.parent
CANVAS_LENGTH = 64
PAUSE = 0.15  # seconds that each canvas is shown; decoding does not wait for it
EXAMPLES = {  # and the right responses, by which the order map marks what is wrong
    "3*4;a/2;4+a+b": "3*4=12 12/2=6 4+12+6=22 #22",
    "24*1/6;a*2;b+6;24-c": "24*1/6=4 4*2=8 8+6=14 24-14=10 #10",
    "16*0.75;a*2": "16*0.75=12 12*2=24 #24",
    "12*5;a+30;b/9": "12*5=60 60+30=90 90/9=10 #10",
}
LETTERS = "abcdefghijkl"  # of the results of earlier calculations
ALLOWED = (
    f"A prompt is one to {len(LETTERS)} calculations with `;` between them, made of numbers and `+ - * / ( )`. "
    f"In later ones `a` is the first result, `b` the second, and so on. Example: `{next(iter(EXAMPLES))}`"
)
RULES = [name for name in SAMPLERS if name != "learned_order"]

parser = argparse.ArgumentParser(description="The Space, here.", allow_abbrev=False)
parser.add_argument("--dtype", default="auto", help="of the denoiser; auto: as it was saved")
parser.add_argument("--device_map", help="where it goes: auto, cpu, cuda:1, ...; by default the accelerator")
given = parser.parse_args(sys.argv[1:] if __name__ == "__main__" else [])
place = {} if given.device_map is None else {"device_map": given.device_map}

tokenizer = load_tokenizer(FOLDER / "denoiser")
model: Any = load_denoiser(str(FOLDER / "denoiser"), attn_implementation="eager", dtype=given.dtype, **place)
if (device := device_for(None, given.device_map)) is not None:
    model = model.to(device)
model = attach(model, scorer=FOLDER / "scorer-0")


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


def refused(prompt: str) -> str:
    """What is wrong with a prompt; empty for one that the denoiser was trained on the like of."""
    parts = prompt.split(";")
    if len(parts) > len(LETTERS):
        return f"There are {len(parts)} calculations."
    for number, part in enumerate(parts, start=1):
        if not part:
            return f"Calculation {number} is empty."
        if unknown := sorted(set(part) - set("0123456789.+-*/()") - set(LETTERS[: number - 1])):
            return f"Calculation {number} cannot have {code(' '.join(unknown))} in it."
    return ""


def generate(prompt: str, sampler: str, budget: int, **options: Any) -> Any:
    return model.generate(
        **tokenizer(prompt, return_tensors="pt"),
        sampler=sampler,
        max_new_tokens=CANVAS_LENGTH,
        max_denoising_steps=budget,
        seed=0,
        return_dict_in_generate=True,
        **options,
    )


def decode(prompt: str, sampler: str, budget: int, canvases: Canvases) -> tuple[OrderMap, str]:
    """The map of one response, and a line about it."""
    right = EXAMPLES.get(prompt)
    start = time.perf_counter()
    try:
        output = generate(prompt, sampler, budget, streamer=canvases)
    finally:
        canvases.end()  # whoever waits for the next canvas does not wait for ever
    seconds = time.perf_counter() - start
    text = tokenizer.decode(output.sequences[0, -CANVAS_LENGTH:], skip_special_tokens=True)
    expected = None if right is None else tokenizer([right], add_special_tokens=False)["input_ids"]
    (shown,) = OrderMap.of(output, tokenizer, label=sampler, expected=expected)
    return shown, f"**{sampler}**: `{text}`, {shown.nfe} denoiser calls, {1000 * seconds:.0f} ms"


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
    prompt = "".join(prompt.split())
    if why := refused(prompt):
        yield "", f"{why} {ALLOWED}"  # in the place of the last result
        return
    maps, lines, finished = [], [], ""
    for name in (sampler, "learned_order"):  # whoever comes first would pay for what is set up once
        generate(prompt, name, 1)
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
    style = "border: 0; height: 70vh; min-height: 420px; width: 100%"
    frame = f'<iframe title="Order maps" srcdoc="{document}" style="{style}"></iframe>'
    yield frame, "\n\n".join(lines)


with gradio.Blocks(title="Learned unmasking orders", analytics_enabled=False) as demo:
    gradio.Markdown(
        "# Learned unmasking orders\n"
        "A masked diffusion model, the denoiser, works out a chain of calculations: `3*4;a/2;4+a+b` asks for 3·4, then "
        "half of that (`a`), then 4 plus both results. Each call of the denoiser fills some positions; which ones, a "
        "fixed rule decides, or the learned order. **What is learned:** a network of "
        f"{sum(weight.numel() for weight in model.order_scorer.parameters()):,} parameters, which reads what the "
        "denoiser predicts and picks the positions to fill next; the denoiser stays as it is."
    )
    with gradio.Row():
        prompt_box = gradio.Textbox(next(iter(EXAMPLES)), label="Prompt", max_length=60)
        rule_box = gradio.Dropdown(RULES, value="top_prob", label="Rule to compare with")
        budget_box = gradio.Slider(1, CANVAS_LENGTH, value=6, step=1, label="Denoiser calls, at most")
    gradio.Examples(list(EXAMPLES), prompt_box)
    button = gradio.Button("Decode", variant="primary")
    results = gradio.Markdown(elem_id="results")
    frame_box = gradio.HTML()
    button.click(compare, [prompt_box, rule_box, budget_box], [frame_box, results])

if __name__ == "__main__":
    demo.launch()
