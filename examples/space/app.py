"""A Space: pick a rule and a budget, watch the canvas fill beside the learned order.

    python examples/space/app.py

Runs on the shipped denoiser and scorer, from their folders beside this file or one folder up; nothing is downloaded.
"""

import html
import time
from pathlib import Path
from typing import Any

import gradio

from hf_learned_order import SAMPLERS, attach, load_denoiser
from hf_learned_order.denoisers import load_tokenizer
from hf_learned_order.order_maps import OrderMap, page

HERE = Path(__file__).resolve().parent
FOLDER = HERE if (HERE / "denoiser").is_dir() else HERE.parent
CANVAS_LENGTH = 64
EXAMPLES = ["12*5;a+30;b/9", "16-3-4;a*2", "48/2;48+a", "20*4;35*2;a+b"]
RULES = [name for name in SAMPLERS if name != "learned_order"]

tokenizer = load_tokenizer(FOLDER / "denoiser")
model: Any = attach(load_denoiser(str(FOLDER / "denoiser")), scorer=FOLDER / "scorer-0")


def decode(prompt: str, sampler: str, budget: int) -> tuple[OrderMap, str]:
    """The map of one response, and a line about it."""
    inputs = tokenizer(prompt, return_tensors="pt")
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        sampler=sampler,
        max_new_tokens=CANVAS_LENGTH,
        max_denoising_steps=budget,
        seed=0,
        return_dict_in_generate=True,
    )
    seconds = time.perf_counter() - start
    text = tokenizer.decode(output.sequences[0, -CANVAS_LENGTH:], skip_special_tokens=True)
    (shown,) = OrderMap.of(output, tokenizer, label=sampler)
    return shown, f"**{sampler}**: `{text}`, NFE {shown.nfe}, {1000 * seconds:.0f} ms"


def compare(prompt: str, sampler: str, budget: int) -> tuple[str, str]:
    """The page with both maps, which fill as it opens, and a line about each."""
    if not prompt.strip():
        raise gradio.Error("The prompt is empty.")
    if unknown := sorted(set(prompt) - set(tokenizer.get_vocab())):
        raise gradio.Error(f"This denoiser does not know {' '.join(unknown)}")
    maps, lines = zip(*(decode(prompt, name, int(budget)) for name in (sampler, "learned_order")), strict=True)
    document = html.escape(page(maps, title=prompt, play=True))
    frame = f'<iframe title="Order maps" srcdoc="{document}" style="border: 0; height: 420px; width: 100%"></iframe>'
    return frame, "\n\n".join(lines)


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
