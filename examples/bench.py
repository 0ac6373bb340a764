"""What a rule costs beside the denoiser, as ratios measured side by side in one run.

    make bench

For each sampler: the time of decoding over the time of as many bare denoiser calls on the same rows. 1.00 would be a
rule and a loop that cost nothing. Absolute times are not shown: they belong to the machine.
"""

import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hf_learned_order.denoisers import Denoiser, load_denoiser, load_tokenizer
from hf_learned_order.generation import decode
from hf_learned_order.samplers import SAMPLERS, make_sampler
from hf_learned_order.scorer import OrderScorer

HERE = Path(__file__).parent
STEPS, CANVAS, ROUNDS = 8, 64, 5


@torch.no_grad()
def main() -> None:
    tokenizer = load_tokenizer(HERE / "denoiser")
    denoiser = Denoiser(load_denoiser(str(HERE / "denoiser")).eval())
    scorer = OrderScorer.from_pretrained(HERE / "scorer-0").eval()
    prompt = tokenizer("16-3-4;a*2;b+100", return_tensors="pt")
    view = Table("sampler", *(f"batch {batch}" for batch in (1, 8, 32)), title="decoding / bare denoiser calls")
    for name in SAMPLERS:
        sampler = make_sampler(name, scorer=scorer)
        ratios = []
        for batch in (1, 8, 32):
            ids, mask = (prompt[key].repeat(batch, 1) for key in ("input_ids", "attention_mask"))
            canvas = torch.cat([ids, ids.new_full((batch, CANVAS), denoiser.mask_token_id)], 1)
            full = torch.ones_like(canvas)
            pairs = []
            for _ in range(ROUNDS + 1):  # the first is a warm-up
                start = time.perf_counter()
                output = decode(denoiser, ids, mask, sampler=sampler, max_new_tokens=CANVAS, max_denoising_steps=STEPS)
                middle = time.perf_counter()
                for number in range(int(output.nfe.max())):
                    rows = int((output.nfe > number).sum())  # rows that had finished were not decoded either
                    denoiser(canvas[:rows], full[:rows], ids.shape[1], hidden_states=sampler.needs_hidden_states)
                pairs.append((middle - start) / (time.perf_counter() - middle))
            ratios.append(f"{statistics.median(pairs[1:]):.2f}")
        view.add_row(name, *ratios)
    Console().print(view)


if __name__ == "__main__":
    main()
