"""The exact chain is exact, and the benchmark on it tells a right sampler from a wrong one."""

import itertools
import json
import math

import bench_markov
import pages
import pytest
import torch
from exact_chain import exact_chain

TINY = ["--states", "3", "--length", "6", "--rows", "400", "--updates", "1"]


def test_conditionals_are_those_of_all_sequences():
    chain, tokenizer = exact_chain(states=3, concentration=0.5)
    first, mask = chain.config.first_token, tokenizer.mask_token_id
    start, step = chain.stationary.tolist(), chain.transitions.tolist()
    weight = {
        s: start[s[0]] * math.prod(step[a][b] for a, b in itertools.pairwise(s))
        for s in itertools.product(range(3), repeat=4)
    }
    assert sum(weight.values()) == pytest.approx(1)
    for known in ({}, {0: 2}, {1: 0, 3: 1}, {2: 1}):
        ids = torch.tensor([[known[i] + first if i in known else mask for i in range(4)]])
        probs = chain(ids).logits.softmax(-1)[0, :, first:]
        agrees = {s: w for s, w in weight.items() if all(s[i] == token for i, token in known.items())}
        expected = [
            [sum(w for s, w in agrees.items() if s[i] == token) / sum(agrees.values()) for token in range(3)]
            for i in range(4)
        ]
        assert probs.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_pairs_are_those_of_all_sequences():
    chain, _ = exact_chain(states=3)
    assert chain.pairs(2).sum().item() == pytest.approx(1)
    assert chain.pairs(1)[1].tolist() == pytest.approx((chain.stationary[1] * chain.transitions[1]).tolist())
    assert chain.pairs(3).sum(0).tolist() == pytest.approx(chain.stationary.tolist())


def test_one_at_a_time_is_right_and_all_at_once_is_not(tmp_path, capsys):
    page, data = tmp_path / "page.md", tmp_path / "data" / "markov.json"
    page.write_text("# Title\n<!-- generated: markov -->\nold\n<!-- end of markov -->\nbehind\n")
    command = [*TINY, "--rules", "left_to_right", "random_sizes", "--laws", "--output", str(data), "--page", str(page)]
    bench_markov.main(command)
    points = json.loads(data.read_text())["points"]
    rows = {(row["rule"], row["setting"]): row for row in points}
    exact, slow, fast = (
        rows[key]["variation"]["1"]
        for key in ((bench_markov.EXACT, ""), ("left_to_right", "T=6"), ("left_to_right", "T=2"))
    )
    assert max(exact, slow) < 0.1
    assert fast > 0.2
    text = page.read_text()
    assert text.startswith("# Title\n<!-- generated: markov -->\n\nA chain of 3 states")
    assert text.endswith("<!-- end of markov -->\nbehind\n")
    assert "| left_to_right |" in text
    bench_markov.main(command)  # what is there is not measured again
    assert json.loads(data.read_text())["points"] == points
    with pytest.raises(SystemExit):
        bench_markov.main([*command, "--rows", "5"])
    assert "was measured with" in capsys.readouterr().err


@pytest.mark.parametrize("law", bench_markov.TRAINED)
def test_a_scorer_is_trained(law, tmp_path, capsys):
    bench_markov.main([*TINY, "--rules", "left_to_right", "--laws", law, "--output", str(tmp_path / "markov.json")])
    assert f"| learned order, {law} |" in capsys.readouterr().out


def test_a_page_without_its_part(tmp_path):
    (tmp_path / "page.md").write_text("# Title\n")
    with pytest.raises(ValueError, match=r"page\.md: must have a line <!-- generated: markov --> and, below it"):
        pages.replace_part(tmp_path / "page.md", "markov", "text")
