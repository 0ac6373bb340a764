"""`hf-learned-order calibrate` and `evaluate --risk`: from prompts to a setting that is saved, used and shown."""

import json
import shutil

import pytest
from files import save_all
from transformers.utils import logging

from hf_learned_order.cli.main import main
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.interface.attach import attach
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.cards import Card, card_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A denoiser, a scorer, train.jsonl, test.jsonl. The denoiser gets nothing right, so nothing is worse than it."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("files")
    save_all(folder)
    yield folder
    logging.enable_progress_bar()


def calibrate(folder, *more: str) -> int:
    files = ["--train_file", str(folder / "train.jsonl"), "--model", str(folder / "denoiser")]
    small = ["--canvas_length", "32", "--prompts", "4", "--points", "3", "--confidence", "0.5"]
    return main(["calibrate", *files, *small, *more])


def error(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_saved_used_and_on_the_card(folder, tmp_path, capsys):
    scorer = tmp_path / "scorer"
    shutil.copytree(folder / "scorer-0", scorer)
    assert calibrate(folder, "--scorer", str(scorer), "--risk", "0.5") == 0
    assert 'generate(sampler="equations@0.5")' in capsys.readouterr().out
    saved = json.loads((scorer / "generation_config.json").read_text())["guarantees"]["equations@0.5"]
    assert (saved["risk"], saved["confidence"], saved["prompts"], saved["against"]) == (
        0.5,
        0.5,
        3,
        "top_prob",
    )  # one of four does not fit the canvas
    assert saved["options"] == {"bias": 6.0}  # the fastest, for nothing is worse than a slow rule that is always wrong
    tokenizer = load_tokenizer(folder / "denoiser")
    model = attach(load_denoiser(folder / "denoiser"), scorer=scorer)
    inputs = tokenizer("1+2;a*3", return_tensors="pt")
    options = {"max_new_tokens": 16, "seed": 0}
    by_name = model.generate(**inputs, sampler="equations@0.5", **options)
    by_hand = model.generate(**inputs, sampler="learned_order", sampler_config={"bias": 6.0}, **options)
    assert by_name.tolist() == by_hand.tolist()
    with pytest.raises(ValueError, match="sampler_config and max_denoising_steps must be None with the guarantee"):
        model.generate(**inputs, sampler="equations@0.5", max_denoising_steps=3, **options)
    OrderScorer.from_pretrained(scorer).save_pretrained(tmp_path / "again")
    assert OrderScorer.from_pretrained(tmp_path / "again").guarantees == {"equations@0.5": saved}
    card = card_files(scorer, "user/name", Card())["README.md"].decode()
    assert "| `equations@0.5` | 0.5 | 0.5 | wrong where `top_prob`, one token a step, is right | 0 of 3" in card


def test_elsewhere_on_average_and_without_a_scorer(folder, tmp_path, capsys):
    more = ("--sampler", "threshold", "--risk", "0.3", "--on_average", "--output_dir", str(tmp_path))
    assert calibrate(folder, *more) == 0
    saved = json.loads((tmp_path / "generation_config.json").read_text())["guarantees"]["equations@0.3/threshold"]
    assert (saved["confidence"], saved["method"]) == (None, "conformal_risk_control")
    assert "Saved in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--risk", "1.5"], "risk must be a number above 0 and below 1, got 1.5"),
        (["--risk", "0.02"], "prompts must be at least 35 to promise a risk of 0.02 with confidence 0.5, got 4"),
        (["--risk", "0.02", "--on_average"], "prompts must be at least 49 to promise a risk of 0.02 on average, got 4"),
        (["--risk", "0.5"], 'sampler "learned_order" needs --scorer'),
        (["--risk", "0.5", "--sampler", "top_prob"], "sampler must be a rule with a knob, one of threshold"),
        (["--risk", "0.5", "--sampler", "factor", "--points", "1"], "points must be 2 or more, got 1"),
        (
            ["--risk", "0.5", "--sampler", "factor", "--against", "judge"],
            "risk 0.5 cannot be promised of factor: even its slowest setting is bad for 3 of 3 prompts (wrong)",
        ),
    ],
)
def test_bad_input(folder, tmp_path, capsys, more, message):
    assert calibrate(folder, "--output_dir", str(tmp_path), *more) == 2
    assert message in error(capsys)


def test_somewhere_to_save_it_is_needed(folder, capsys):
    assert calibrate(folder, "--risk", "0.5") == 2
    assert "--output_dir must be given without --scorer" in error(capsys)
    assert calibrate(folder, "--risk", "0.5", "--scorer", "user/name") == 2
    assert "--output_dir must be given with a scorer of the Hub, user/name" in error(capsys)


def test_evaluate_at_a_risk(folder, tmp_path, capsys):
    files = ["--train_file", str(folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
    small = ["--canvas_length", "32", "--limit", "4", "--tuning_limit", "4", "--points", "2", "--confidence", "0.5"]
    model = ["--model", str(folder / "denoiser"), "--scorer", str(folder / "scorer-0"), "--output_dir", str(tmp_path)]
    rules = ["--samplers", "factor", "top_prob", "learned_order", "--risk", "0.5"]
    assert main(["evaluate", *model, *files, *small, *rules]) == 0
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [(row[0], row[2], row[3].split()[0]) for row in rows] == [
        ("factor", "0 of 3", "0"),
        ("learned_order", "0 of 3", "0"),
    ]
    assert main(["evaluate", *model, *files, *small, *rules, "--against", "judge"]) == 0
    assert capsys.readouterr().out.count("none keeps the risk") == 2
