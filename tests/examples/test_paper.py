"""The paper's table in small, by its own command."""

import json

import bench_paper
from files import save_all, scorer_of

from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.loading import load_denoiser


class Measured:
    """An evaluator with a share of right responses for each bias."""

    def __init__(self):
        self.asked = []

    def quick(self, sampler, steps):
        self.asked.append((sampler.bias, steps))
        return type("Result", (), {"accuracy": 1 - abs(sampler.bias + 2)})

    def measure(self, sampler, *, name, max_denoising_steps, with_bound):
        return sampler, name, max_denoising_steps


def test_a_knob_is_set_on_held_out_problems(tmp_path):
    save_all(tmp_path)
    law_that_draws = scorer_of(load_denoiser(tmp_path / "denoiser"), seed=0, law="non_empty")
    regret = scorer_of(load_denoiser(tmp_path / "denoiser"), seed=0, law="regret")
    held_out = Measured()
    sampler, name, steps = bench_paper.learned_row("mine", regret, 5, held_out, Measured())
    assert (sampler.bias, name, steps) == (-2.0, "mine", 5)
    assert held_out.asked == [(bias, 5) for bias in bench_paper.BIASES]
    sampler, *_ = bench_paper.learned_row("mine", law_that_draws, 5, held_out, Measured())
    assert sampler == LearnedOrderSampler(scorer=law_that_draws)
    assert len(held_out.asked) == len(bench_paper.BIASES)


def test_a_small_table(tmp_path):
    save_all(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: paper -->\n<!-- end of paper -->\n")
    command = [f"--{split}_file={tmp_path / split}.jsonl" for split in ("train", "test")]
    command += ["--model", str(tmp_path / "denoiser"), "--scorer", f"mine={tmp_path / 'scorer-0'}", "--page", str(page)]
    command += ["--limit", "4", "--held_out", "4", "--budgets", "3", "--output_dir", str(tmp_path / "out")]
    bench_paper.main(command)
    rows = json.loads((tmp_path / "out" / "paper.json").read_text())
    assert rows[0]["name"] == "mine"
    assert rows[0]["nfe"] <= rows[0]["nfe_max"] <= 3
    budgets = {3, round(rows[0]["nfe"])}
    assert [row["name"] for row in rows[1:]] == [rule for rule in bench_paper.RULES for _ in budgets]
    assert {row["nfe_max"] for row in rows[1:]} <= budgets
    assert "| T | order | right, % | mean steps | [min, max] |" in page.read_text()
