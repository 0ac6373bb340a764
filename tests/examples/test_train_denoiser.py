"""`examples/train_denoiser.py`: its masks, its order of the rows, widening; a short run that is resumed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from files import write_rows
from train_denoiser import EquationTrainer, curriculum, main, widen
from transformers import BertForMaskedLM, ModernBertForMaskedLM

from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.data import equation_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def masks(response: str, rows: int, share: float, canvas_length: int = 40) -> tuple[list[str], list[str], str]:
    """What is hidden and what is scored in many copies of a response, as text with `_` at those positions."""
    tokenizer = equation_tokenizer()
    collator = CanvasCollator(tokenizer=tokenizer, canvas_length=canvas_length)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    clean = collator([{"prompt_ids": [3], "response_ids": ids}] * rows)["clean"]
    trainer = SimpleNamespace(processing_class=tokenizer, args=SimpleNamespace(arithmetic_share=share))
    hidden, scored = EquationTrainer.hidden_and_scored(trainer, clean, torch.zeros_like(clean, dtype=torch.bool))
    text = response + "~" * (canvas_length - len(response))

    def show(rows: torch.Tensor) -> list[str]:
        return ["".join("_" if m else c for m, c in zip(row, text, strict=True)) for row in rows.tolist()]

    return show(hidden), show(scored), text


def test_masks_hide_all_results_or_all_that_follows():
    torch.manual_seed(0)
    hidden, scored, text = masks("12*15=180 30/6=5 #5", 400, share=1.0)
    results = {
        "12*15=___ 30/6=_ #_" + "_" + text[20:],
        "12*15=1__ 30/6=5 #_" + "_" + text[20:],
        "12*15=18_ 30/6=5 #_" + "_" + text[20:],
    }
    seen = set()
    for row, loss in zip(hidden, scored, strict=True):
        if row in results:
            assert loss == row
            seen.add(row)
            continue
        first, last = row.index("_"), row.rindex("_") + 1
        assert row == text[:first] + "_" * (last - first) + text[last:]
        assert last >= 20  # at least the whole response and its EOS
        assert loss == text[:first] + "_" * min(12, last - first) + text[min(first + 12, last) :]
        seen.add(first)
    assert results < seen
    assert {6, 7, 8, 15, 16, 17} < seen  # result digits, and
    assert 0 in seen  # anywhere


def test_other_rows_keep_their_masks():
    hidden, scored, text = masks("5=5 #5", 50, share=0.0)
    assert set(hidden) == set(scored) == {text}


def test_curriculum_is_an_order_of_all_rows_with_the_short_ones_first():
    lengths = torch.randint(5, 60, (3000,), generator=torch.Generator().manual_seed(0)).tolist()
    order = curriculum(lengths, batch_size=10, ramp=1000, seed=0)
    assert sorted(order) == list(range(3000))
    start, end = ([lengths[i] for i in part] for part in (order[:500], order[500:1000]))
    assert max(start) <= min(end)
    batches = [[lengths[i] for i in order[k : k + 10]] for k in range(1000, 3000, 10)]
    assert sum(max(batch) - min(batch) <= 3 for batch in batches) > 0.9 * len(batches)
    means = [sum(batch) for batch in batches[:50]]
    assert means != sorted(means)


@pytest.mark.parametrize("extra", [0, 24])
def test_a_widened_model_is_the_same_function(extra):
    model = ModernBertForMaskedLM.from_pretrained(EXAMPLES / "denoiser").eval()
    config = type(model.config).from_pretrained(EXAMPLES / "denoiser")
    config.intermediate_size += extra
    wide = widen(model, ModernBertForMaskedLM(config)).eval()
    assert wide.num_parameters() - model.num_parameters() == 3 * extra * config.hidden_size * config.num_hidden_layers
    ids = torch.randint(5, config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_it_trains_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_file = tmp_path / "train.jsonl"
    write_rows(train_file, 420, 0)
    command = [
        *("train_denoiser.py", "--train_file", train_file, "--output_dir", tmp_path / "out"),
        *("--num_problems", "64", "--hidden_size", "16", "--num_hidden_layers", "1", "--intermediate_size", "16"),
        *("--num_attention_heads", "2", "--per_device_train_batch_size", "8", "--ramp_problems", "16"),
        *("--torch_compile", "false", "--save_steps", "2", "--eval_strategy", "no", "--disable_tqdm", "true"),
    ]
    for steps in (2, 3, 3):  # finished, it goes on no further
        monkeypatch.setattr(sys, "argv", [*map(str, command), "--max_steps", str(steps)])
        main()
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert ModernBertForMaskedLM.from_pretrained(tmp_path / "out").config.hidden_size == 16


def test_it_trains_on_a_grid(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    command = [
        *("train_denoiser.py", "--task", "sudoku", "--architecture", "bert", "--disable_tqdm", "true"),
        *("--num_problems", "16", "--hidden_size", "16", "--num_hidden_layers", "1", "--intermediate_size", "16"),
        *("--num_attention_heads", "2", "--per_device_train_batch_size", "8", "--max_steps", "2"),
        *("--torch_compile", "false", "--eval_strategy", "no", "--output_dir", tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    main()
    config = BertForMaskedLM.from_pretrained(tmp_path / "out").config
    assert (config.vocab_size, config.max_position_embeddings) == (11, 36)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "words"], "task must be one with a tokenizer of its own, got 'words'"),
        (["--task", "copy", "sudoku"], "tasks must share a tokenizer, but copy and sudoku do not"),
        (
            ["--task", "copy", "--architecture", "bert", "--model_name_or_path", "x", "--num_problems", "8"],
            "architecture must be modernbert to go on from a model, got bert",
        ),
    ],
)
def test_what_the_script_refuses(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("train_denoiser.HELD_OUT", 2)
    monkeypatch.setattr(sys, "argv", ["train_denoiser.py", *arguments, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=message):
        main()
