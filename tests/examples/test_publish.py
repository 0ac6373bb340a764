"""docs/publish.md as a new user would follow it: from an empty folder to a card that another process reproduces."""

import json
import re

import pytest
import yaml
from files import write_rows
from huggingface_hub import ModelCard, parse_eval_result_entries
from loopback import Repository
from test_docs import ROOT, run_page

from hf_learned_order.sharing.card_tables import read_results, table_rows

PAGE = ROOT / "docs" / "publish.md"
DATA = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
---
"""


@pytest.fixture
def gsm8k(hub, tmp_path_factory):
    """Problems of ours under GSM8K's name."""
    folder, files = tmp_path_factory.mktemp("gsm8k"), {"README.md": DATA.encode()}
    for split, count in (("train", 410), ("test", 12)):
        write_rows(folder / f"{split}.jsonl", count, len(files))
        files[f"main/{split}.jsonl"] = (folder / f"{split}.jsonl").read_bytes()
    hub.repositories["datasets/openai/gsm8k"] = Repository(private=False)
    hub.repositories["datasets/openai/gsm8k"].commit("main", files)


@pytest.mark.slow  # ten processes; each step by itself: test_train, test_cli.py, test_hub.py, test_docs.py
def test_a_new_user(hub, gsm8k, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT", str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    assert len(run_page(PAGE, tmp_path)) == 6
    pushed = hub.repositories["user/scorer"].files()
    text = pushed["README.md"].decode()
    # the card's table is that of the rows that were measured again
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:4] == "| 4 "]
    again = read_results(tmp_path / "elsewhere" / "runs" / "evaluation" / "results.json")
    assert cells == [list(row.values()) for row in table_rows(again)]
    assert {row.sampler for row in again} == {"iid", "top_prob", "learned_order", "learned_order, tuned"}
    # whatever the card can know it says
    assert "not stated" not in text
    assert "| seeds | 42 |" in text
    assert "| updates | 3 |" in text
    assert re.search("^python .*examples/train.py --model_name_or_path user/denoiser ", text, re.MULTILINE)
    assert pushed["trade_off.png"].startswith(b"\x89PNG")
    assert "(trade_off.png)" in text
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("user/denoiser", ["openai/gsm8k"])
    entries = parse_eval_result_entries(yaml.safe_load(pushed[".eval_results/gsm8k.yaml"]))
    learned = [round(100 * row.accuracy, 2) for row in again if row.sampler.startswith("learned_order")]
    assert [entry.value for entry in entries] == [one.metric_value for one in data.eval_results] == learned
    # another folder, the same rows: nothing but the scorer's name differs
    ours, theirs = (
        json.loads((tmp_path / folder / "runs/evaluation/settings.json").read_text()) for folder in (".", "elsewhere")
    )
    assert {name for name in ours if ours[name] != theirs[name]} == {"command", "scorer"}
    assert theirs["scorer"] == ["user/scorer"]
