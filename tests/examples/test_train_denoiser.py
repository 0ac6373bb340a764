"""`examples/train_denoiser.py`: its masks, its order of the rows, widening; a short run that is resumed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from denoiser_models import DenoiserArguments, model_of, tokenizer_of, widen
from files import write_rows
from models import BOS, EOS, tiny_model, tiny_tokenizer
from train_denoiser import DenoiserTrainer, EquationTrainer, curriculum, main
from transformers import BertForMaskedLM, ModernBertForMaskedLM

from hf_learned_order.tasks.collator import CanvasCollator
from hf_learned_order.tasks.data import equation_tokenizer
from hf_learned_order.tasks.table import find_task

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
        half = tmp_path / "out" / "checkpoint-9"  # what a kill left, which is passed over
        half.mkdir(exist_ok=True)
        (half / "trainer_state.json").write_text('{"global_step": 9, "log_')
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-9"}
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
        (["--task", "words"], "tokenizer_name or model_name_or_path must be given with task 'words', which has no"),
        (["--task", "copy", "sudoku"], "tasks must share a tokenizer, but copy and sudoku do not"),
        (["--task", "copy", "--drills=1"], "--drills must be left out with --task copy, which does not read them"),
        (["--task", "copy", "--model_name_or_path", "x", "--hidden_size", "8"], "--hidden_size must be left out with"),
    ],
)
def test_what_the_script_refuses(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("train_denoiser.HELD_OUT", 2)
    monkeypatch.setattr(sys, "argv", ["train_denoiser.py", *arguments, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=message):
        main()


def bert_of_ones_own(folder: Path) -> Path:
    """A small BERT with a tokenizer that has neither EOS nor our special tokens."""
    tokenizer = tiny_tokenizer(eos_token=None, sep_token="[EOS]")
    tokenizer.save_pretrained(folder)
    tiny_model("bert", vocab_size=len(tokenizer)).float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["responses", "infill"])
def test_ones_own_model_tokenizer_and_data(task, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = bert_of_ones_own(tmp_path / "bert")
    rows = [f"w{4 + number % 30} w5,w{6 + number % 9} w7{' w8' * (number % 4)}" for number in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["ask,say", *rows]))
    columns = (
        ["--prompt_column", "ask", "--response_column", "say"] if task == "responses" else ["--text_column", "say"]
    )
    command = [
        *("train_denoiser.py", "--task", task, "--model_name_or_path", model, "--train_file", tmp_path / "rows.csv"),
        *(*columns, "--canvas_length", "8", "--per_device_train_batch_size", "8", "--max_steps", "2"),
        *("--torch_compile", "false", "--eval_steps", "1", "--disable_tqdm", "true", "--output_dir", tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    main()
    trained, before = (BertForMaskedLM.from_pretrained(folder) for folder in (tmp_path / "out", model))
    assert trained.config.mask_token_id == tiny_tokenizer().mask_token_id
    assert not torch.equal(
        trained.bert.embeddings.word_embeddings.weight, before.bert.embeddings.word_embeddings.weight
    )


def test_special_tokens_and_padding_of_texts_are_never_hidden():
    tokenizer = tiny_tokenizer(cls_token="[BOS]", sep_token="[EOS]")
    rows = [
        {"prompt_ids": [], "response_ids": ids, "given": [True] * len(ids)}
        for ids in ([BOS, 5, 6, EOS], [BOS, 7, 8, 9, 10, EOS])
    ]
    batch = CanvasCollator(tokenizer=tokenizer, canvas_length=6)(rows)
    trainer = SimpleNamespace(processing_class=tokenizer)
    fixed = DenoiserTrainer._fixed(trainer, batch)
    assert (~fixed).tolist() == [[False, False, False, True, True, False], [False, True, True, True, True, False]]
    assert DenoiserTrainer._fixed(trainer, {"clean": batch["clean"]}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 99}, "intermediate_size must be left out but for a ModernBERT, got BertForMaskedLM"),
        ({"length": 999}, r"model_name_or_path must be a model of 999 positions or more, got .* of 64"),
        ({"words": 50}, r"model_name_or_path must be a model of 90 tokens or more, got .* of 40"),
    ],
)
def test_a_model_that_does_not_do(changes, message, tmp_path):
    options = dict(changes)
    length, words = options.pop("length", 16), options.pop("words", 0)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"more{number}" for number in range(words)])
    arguments = DenoiserArguments(model_name_or_path=str(bert_of_ones_own(tmp_path)), **options)
    with pytest.raises(ValueError, match=message):
        model_of(arguments, tokenizer, length)


def test_a_tokenizer_without_a_mask_token(tmp_path):
    tiny_tokenizer(mask_token=None).save_pretrained(tmp_path)
    arguments = DenoiserArguments(task=["responses"], tokenizer_name=str(tmp_path))
    with pytest.raises(ValueError, match="tokenizer_name must be a tokenizer with a mask token, got"):
        tokenizer_of(arguments, [find_task("responses")])
