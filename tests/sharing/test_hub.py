"""A scorer's repository: pushed to and loaded from a Hub on this machine."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import huggingface_hub
import pytest
import torch
import yaml
from conftest import HOME
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from huggingface_hub.errors import OfflineModeIsEnabled
from loopback import USERS
from models import EOS, MASK, tiny_model, tiny_tokenizer
from peft import LoraConfig, PeftModel
from test_trainer import PROBLEMS, arguments
from transformers import AutoModel, AutoTokenizer, GenerationConfig, TextIteratorStreamer
from transformers.utils import logging

from hf_learned_order.cli.main import main
from hf_learned_order.common.files import fingerprint
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser
from hf_learned_order.evaluation.results import Result, save_results
from hf_learned_order.interface.attach import LearnedOrderGenerationMixin, attach
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.sharing.card_tables import read_results, table_rows
from hf_learned_order.sharing.cards import MARK, Card
from hf_learned_order.sharing.hub import push_folder
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows
from hf_learned_order.training.rows import example_of
from hf_learned_order.training.trainer import OrderTrainer

GUEST = next(token for token, name in USERS.items() if name == "guest")
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars and no reports of loading."""
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def scorer_of(seed: int = 0, **config) -> OrderScorer:
    denoiser = Denoiser(tiny_model("llama"), mask_token_id=MASK)
    torch.manual_seed(seed)  # behind the denoiser, which has a seed of its own
    options = {"base_model_name_or_path": "user/base", **SMALL, **config}
    scorer = OrderScorer(OrderScorer.config_class(**{**OrderScorer.for_denoiser(denoiser).config.to_dict(), **options}))
    torch.nn.init.normal_(scorer.network.head.weight, std=0.1)
    return scorer.eval()


def assert_same(loaded: OrderScorer, scorer: OrderScorer) -> None:
    assert type(loaded) is OrderScorer
    for name, value in scorer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def result(sampler: str, target: float, accuracy: float, **options) -> Result:
    shape = {"budget": 5, "nfe": target + 0.123456, "nfe_min": 1, "nfe_max": 9, "bound": -16.3, "count": 40}
    return Result(sampler=sampler, target=target, accuracy=accuracy, **{**shape, **options})


RESULTS = [
    result("iid", 4.0, 0.2, runs=3, spread=0.01, bound=None),
    result("learned_order", 4.0, 0.3, setting="bias=0.5"),
    result("learned_order", 8.0, 0.35, runs=2, spread=0.02),
    result("threshold", 8.0, 0.4, setting="threshold=0.5"),
    result("threshold", 16.0, 0.4),
    result("learned_order", 16.0, 0.4),
]


@pytest.fixture
def measured(tmp_path) -> Card:
    save_results(RESULTS, tmp_path / "evaluation")
    (tmp_path / "plot.png").write_bytes(PNG)
    return Card(
        results=tmp_path / "evaluation" / "results.json",
        plot=tmp_path / "plot.png",
        data="GSM8K chains",
        command="python examples/train.py --law regret",
        seeds=(0, 1),
        license="apache-2.0",
        prompt="w5 w6",
    )


@pytest.fixture
def base(hub) -> str:
    """The denoiser on the Hub, with its tokenizer."""
    tiny_model("llama", max_position_embeddings=128).push_to_hub("user/base")
    tiny_tokenizer().push_to_hub("user/base")
    return "user/base"


# ---- push and load -----------------------------------------------------------------------------------------------


def test_push_and_load(hub):
    scorer = scorer_of(max_denoising_steps=5)
    pushed = scorer.push_to_hub("user/scorer", commit_message="First")
    files = hub.repositories["user/scorer"].files()
    assert set(files) == {
        "README.md",
        "config.json",
        "custom_generate/generate.py",
        "custom_generate/requirements.txt",
        "generation_config.json",
        "model.safetensors",
    }
    assert pushed.oid == hub.repositories["user/scorer"].branches["main"]
    assert len(hub.repositories["user/scorer"].commits) == 2  # the empty one and this
    for loaded in (OrderScorer.from_pretrained("user/scorer"), AutoModel.from_pretrained("user/scorer")):
        assert_same(loaded, scorer)
    assert loaded.config.base_model_name_or_path == "user/base"
    assert GenerationConfig.from_pretrained("user/scorer").max_denoising_steps == 5
    attached = attach(tiny_model("llama"), scorer="user/scorer", mask_token_id=MASK)
    assert_same(attached.order_scorer, scorer)


def test_name_without_a_user(hub):
    scorer_of().push_to_hub("scorer")
    files = hub.repositories["user/scorer"].files()
    assert b"'user/scorer'" in files["custom_generate/generate.py"]
    assert b'scorer="user/scorer"' in files["README.md"]


def test_revision_and_branch(hub):
    old, new, other = scorer_of(0), scorer_of(1), scorer_of(2)
    first = old.push_to_hub("user/scorer")
    new.push_to_hub("user/scorer")
    other.push_to_hub("user/scorer", revision="dev")
    assert_same(OrderScorer.from_pretrained("user/scorer", revision=first.oid), old)
    assert_same(OrderScorer.from_pretrained("user/scorer"), new)
    assert_same(OrderScorer.from_pretrained("user/scorer", revision="dev"), other)
    with pytest.raises(OSError, match="nowhere is not a valid git identifier"):
        OrderScorer.from_pretrained("user/scorer", revision="nowhere")


def test_subfolder(hub, tmp_path):
    scorer = scorer_of()
    scorer.save_pretrained(tmp_path)
    HfApi().create_repo("user/many")
    HfApi().upload_folder(repo_id="user/many", folder_path=tmp_path, path_in_repo="scorers/0")
    assert_same(OrderScorer.from_pretrained("user/many", subfolder="scorers/0"), scorer)
    for loaded in (OrderScorer, OrderScorer.config_class):
        with pytest.raises(OSError, match=r"user/many must hold a scorer, but it has no config.json"):
            loaded.from_pretrained("user/many")


def test_cache_and_offline(hub, tmp_path):
    scorer = scorer_of()
    scorer.push_to_hub("user/scorer")
    cache = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        OrderScorer.from_pretrained("user/scorer", local_files_only=True, **cache)
    OrderScorer.from_pretrained("user/scorer", **cache)
    hub.requests.clear()
    assert_same(OrderScorer.from_pretrained("user/scorer", local_files_only=True, **cache), scorer)
    assert hub.requests == []


@pytest.mark.slow  # the one before it, by an environment variable
def test_offline_in_a_fresh_process(hub):
    scorer = scorer_of()
    scorer.push_to_hub("user/fresh")
    OrderScorer.from_pretrained("user/fresh")  # into the cache
    hub.requests.clear()
    code = "from hf_learned_order import OrderScorer as S; print(S.from_pretrained('user/fresh').dtype)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": HOME}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "torch.float32", done.stderr
    assert hub.requests == []


@pytest.mark.parametrize("name", ["folder/nope", "user/never"])
def test_what_is_nowhere_is_named(hub, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=name):
        OrderScorer.from_pretrained(name)


def test_revision_of_the_denoiser(base, hub):
    denoiser = load_denoiser(base)
    scorer = OrderScorer.for_denoiser(Denoiser(denoiser, mask_token_id=MASK), **SMALL)
    assert scorer.config.base_model_name_or_path == base
    assert scorer.config.base_model_revision == hub.repositories[base].branches["main"]
    attach(denoiser, scorer, mask_token_id=MASK)  # no warning
    scorer.config.base_model_revision = "0" * 40
    with pytest.warns(UserWarning, match="scorer was trained with revision 0{40} of user/base, but this model is of"):
        attach(denoiser, scorer, mask_token_id=MASK)


# ---- what is refused and what breaks -----------------------------------------------------------------------------


def test_private_repository(hub, tmp_path):
    scorer = scorer_of()
    scorer.push_to_hub("user/secret", private=True)
    assert hub.repositories["user/secret"].private
    assert_same(OrderScorer.from_pretrained("user/secret"), scorer)
    for token in (GUEST, False):
        with pytest.raises(OSError, match="user/secret is not a local folder"):
            OrderScorer.from_pretrained("user/secret", token=token, cache_dir=tmp_path)


def test_missing_repository_and_wrong_token(hub):
    with pytest.raises(OSError, match="user/nothing is not a local folder"):
        OrderScorer.from_pretrained("user/nothing")
    with pytest.raises(OSError, match="401"):
        scorer_of().push_to_hub("user/scorer", token="hf_wrong")
    with pytest.raises(OSError, match="403"):
        scorer_of().push_to_hub("user/scorer", token=GUEST)
    assert hub.repositories == {}


@pytest.mark.parametrize("request_part", ["/repos/create", "/commit/"])  # others are tried again for half a minute
def test_broken_push_leaves_everything(hub, tmp_path, request_part):
    old = scorer_of(0)
    old.push_to_hub("user/scorer")
    before = hub.repositories["user/scorer"].files()
    scorer_of(1).save_pretrained(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    hub.drop = request_part
    with pytest.raises(OSError, match="user/scorer: the push broke off, and the repository is as it was"):
        push_folder(tmp_path, "user/scorer")
    hub.drop = ""
    assert hub.repositories["user/scorer"].files() is before
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == saved
    assert_same(OrderScorer.from_pretrained("user/scorer"), old)


def test_broken_download(hub, tmp_path):
    scorer = scorer_of()
    scorer.push_to_hub("user/scorer")
    hub.drop = "download"
    with pytest.raises(OSError, match=r"user/scorer"):
        OrderScorer.from_pretrained("user/scorer", cache_dir=tmp_path)
    hub.drop = ""
    assert_same(OrderScorer.from_pretrained("user/scorer", cache_dir=tmp_path), scorer)


def test_folder_without_a_scorer(hub, tmp_path):
    with pytest.raises(ValueError, match=f"folder must be one that a scorer was saved to, but {tmp_path} has no conf"):
        push_folder(tmp_path, "user/scorer")
    assert hub.repositories == {}


def test_folder_with_something_else(hub, tmp_path):
    scorer_of().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match=r"folder must hold a scorer, but .*config.json is of model_type 'bert'"):
        push_folder(tmp_path, "user/scorer")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: must hold a dict, got list"):
        push_folder(tmp_path, "user/scorer")
    scorer = scorer_of()
    scorer.network.head.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"its weights must be finite, but network.head.bias holds nan or inf"):
        scorer.push_to_hub("user/scorer")
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["user/名前", "user/a b", "user/x/y", "user/", "../scorer"])
def test_names_that_cannot_be(hub, name):
    with pytest.raises(ValueError, match="Repo id must"):
        scorer_of().push_to_hub(name)
    with pytest.raises(OSError, match=r"must be a folder or the name of a Hub repository, but it is none, and can be"):
        OrderScorer.from_pretrained(name)
    assert hub.repositories == {}


def test_push_in_offline_mode(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="user/scorer: nothing was pushed: no connection, or HF_HUB_OFFLINE is set"):
        scorer_of().push_to_hub("user/scorer")
    assert hub.requests == []


def test_a_folder_that_is_not_there_is_told_before_the_hub_is_asked(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"folder must be one .*, but .*nope has no config.json"):
        push_folder(tmp_path / "nope", "user/scorer")


def test_save_and_push_at_once(tmp_path):
    with pytest.raises(ValueError, match="push_to_hub must be False, got True"):
        scorer_of().save_pretrained(tmp_path, push_to_hub=True)


# ---- the card ----------------------------------------------------------------------------------------------------


def readme(hub, name: str = "user/scorer") -> str:
    return hub.repositories[name].files()["README.md"].decode()


def test_card_without_measurements(hub):
    scorer_of().push_to_hub("user/scorer")
    text = readme(hub)
    assert "Nothing was measured: this card makes no claim about quality or speed." in text
    assert "The command was not stated." in text
    data = ModelCard(text).data
    assert data.base_model == "user/base"
    assert data.eval_results is None
    assert {"order-scorer", "arxiv:2602.23968"} <= set(data.tags)


def test_card_of_a_local_denoiser(hub, tmp_path):
    (tmp_path / "base").mkdir()
    scorer = scorer_of(base_model_name_or_path=str(tmp_path / "base"), base_model_revision="0" * 40)
    with pytest.warns(UserWarning, match=r"its denoiser is named by a folder, .*base, which nobody else has: push"):
        scorer.push_to_hub("user/scorer")
    assert ModelCard(readme(hub)).data.base_model is None
    assert f"language model `{tmp_path / 'base'}`" in readme(hub)
    scorer.push_to_hub("user/scorer", card=Card(base_model="user/base"))
    assert ModelCard(readme(hub)).data.base_model == "user/base"
    config = OrderScorer.config_class.from_pretrained("user/scorer")
    assert (config.base_model_name_or_path, config.base_model_revision) == ("user/base", None)


def test_card_with_measurements(hub, measured):
    scorer_of(law="non_empty").push_to_hub("user/scorer", card=measured)
    files, text = hub.repositories["user/scorer"].files(), readme(hub)
    # the table, losing cells included
    assert "| 4 | `learned_order` | `bias=0.5` | 4.12 (1-9) | **30.0** | 1 | -16.30 |" in text
    assert "| 4 | `iid` | `T=5` | 4.12 (1-9) | 20.0 ± 1.0 | 3 |  |" in text
    assert "| 8 | `threshold` | `threshold=0.5` | 8.12 (1-9) | **40.0** | 1 | -16.30 |" in text
    assert "| 8 | `learned_order` | `T=5` | 8.12 (1-9) | 35.0 ± 2.0 | 2 | -16.30 |" in text
    assert "ahead of the best heuristic at a target NFE of 4 (`iid`)." in text
    assert "behind the best heuristic at a target NFE of 8 (`threshold`)." in text
    assert "level with the best heuristic at a target NFE of 16 (`threshold`)." in text
    assert "40 problems of `openai/gsm8k`" in text
    assert "| seeds | 0, 1 |" in text
    assert "python examples/train.py --law regret" in text
    assert "variational" in text
    # what backs it up
    rows = [{name: value for name, value in asdict(result).items() if name != "texts"} for result in RESULTS]
    assert json.loads(files["results.json"]) == rows
    assert files["trade_off.png"] == PNG
    assert "(trade_off.png)" in text
    card = ModelCard(text)
    assert [r.metric_value for r in card.data.eval_results] == [30.0, 35.0, 40.0]
    assert card.data.model_name == "scorer"
    assert (card.data.datasets, card.data.license) == (["openai/gsm8k"], "apache-2.0")
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/gsm8k.yaml"]))
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("openai/gsm8k", "equations", value) for value in (30.0, 35.0, 40.0)
    ]
    assert entries[1].notes == "learned_order, 8.12 denoiser calls on average (1-9), mean of 2 runs"


def test_rows_tuned_in_both_are_the_learned_order_too(hub, tmp_path):
    both = result("learned_order, tuned", 4.0, 0.51234, setting="bias=0 T=6")
    save_results([*RESULTS[:2], both, result("threshold, tuned", 4.0, 0.4)], tmp_path)
    scorer_of().push_to_hub("user/scorer", card=Card(results=tmp_path / "results.json"))
    files, text = hub.repositories["user/scorer"].files(), readme(hub)
    assert "ahead of the best heuristic at a target NFE of 4 (`threshold, tuned`)." in text
    assert [r.metric_value for r in ModelCard(text).data.eval_results] == [30.0, 51.23]
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/gsm8k.yaml"]))
    assert [entry.notes.split(",")[:2] for entry in entries] == [
        ["learned_order", " 4.12 denoiser calls on average (1-9)"],
        ["learned_order", " tuned"],
    ]


def settings_beside(card: Card, measured: OrderScorer, *scorers: str, **more) -> dict:
    """The `settings.json` that `evaluate` writes beside the results."""
    command = ["hf-learned-order", "evaluate", "--model", "user/base", "--scorer", *scorers, "--limit", "4 0"]
    settings = {
        "command": command,
        **{"hf_learned_order": "0.1.0", "torch": "2.14.1", "device": "cpu", "dataset_name": "user/sums"},
        "scorer": list(scorers),
        "scorer_weights": [fingerprint(measured.state_dict())],
        **more,
    }
    (card.results.parent / "settings.json").write_text(json.dumps(settings))
    return settings


def test_card_holds_the_command_that_made_its_table(hub, measured):
    scorer = scorer_of()
    settings = settings_beside(measured, scorer, "runs/mine")
    (measured.results.parent / "trade_off.png").write_bytes(PNG + b"beside")
    scorer.push_to_hub("user/scorer", card=replace(measured, plot=None))
    files, text = hub.repositories["user/scorer"].files(), readme(hub)
    assert "\nhf-learned-order evaluate --model user/base --scorer user/scorer --limit '4 0'\n" in text
    assert "(`hf_learned_order 0.1.0`, `torch 2.14.1`, `device cpu`)" in text
    assert json.loads(files["settings.json"]) == settings
    assert files["trade_off.png"] == PNG + b"beside"
    assert ModelCard(text).data.datasets == ["user/sums"]
    assert "40 problems of `user/sums`" in text
    assert ".eval_results/sums.yaml" in files
    settings_beside(measured, scorer, "runs/mine", "runs/other")
    scorer.push_to_hub("user/scorer", card=replace(measured, dataset="user/named"))
    assert "--scorer runs/mine runs/other" in readme(hub)
    assert ModelCard(readme(hub)).data.datasets == ["user/named"]


def test_results_of_other_weights_are_refused(hub, measured):
    settings_beside(measured, scorer_of(1), "runs/mine")
    with pytest.raises(
        ValueError, match=r"results must be those of the scorer that is pushed, but .* of runs/mine, wh"
    ):
        scorer_of(0).push_to_hub("user/scorer", card=measured)
    assert hub.repositories == {}
    settings_beside(measured, scorer_of(1), scorer_weights=[])  # heuristics alone
    scorer_of(0).push_to_hub("user/scorer", card=measured)


def edit(hub, change) -> None:
    HfApi().upload_file(repo_id="user/scorer", path_in_repo="README.md", path_or_fileobj=change(readme(hub)).encode())


def test_what_was_written_into_the_card_stays(hub, measured):
    scorer_of(0).push_to_hub("user/scorer")
    first = readme(hub)
    assert first.endswith(MARK)
    scorer_of(0).push_to_hub("user/scorer")
    assert readme(hub) == first
    edit(
        hub,
        lambda text: text.replace("---\n", "---\nlanguage: de\nlicense: mit\n", 1).replace("tags:", "tags:\n- mine"),
    )
    edit(hub, lambda text: text.replace("## Use", "## Old") + "\nAsk me.\n\n## More\n")
    scorer_of(1).push_to_hub("user/scorer", card=replace(measured, license=None))
    text, data = readme(hub), ModelCard(readme(hub)).data
    assert text.endswith(f"{MARK}\n\nAsk me.\n\n## More\n")
    assert "## Old" not in text
    assert (data.language, data.license, data.base_model) == ("de", "mit", "user/base")
    assert data.tags == ["order-scorer", *data.tags[1:-1], "mine"]
    assert [r.metric_value for r in data.eval_results] == [30.0, 35.0, 40.0]
    scorer_of(0).push_to_hub("user/scorer", card=Card(license="apache-2.0"))
    assert ModelCard(readme(hub)).data.license == "apache-2.0"
    assert ModelCard(readme(hub)).data.eval_results is None
    assert readme(hub).count("Ask me.") == 1


def test_a_card_that_cannot_be_read_stops_the_push(hub, monkeypatch):
    """Not even one that is in the cache stands in for it: somebody may have written into it since."""
    scorer_of(0).push_to_hub("user/scorer")
    HfApi().hf_hub_download("user/scorer", "README.md")
    edit(hub, lambda text: f"{text}\nAsk me.\n")
    before = hub.repositories["user/scorer"].files()

    def unreachable(*args, **kwargs):  # as a time-out is handled; what is asked behind it is answered
        raise OfflineModeIsEnabled("no answer")

    monkeypatch.setattr(huggingface_hub.file_download, "get_hf_file_metadata", unreachable)
    with pytest.raises(OSError, match="user/scorer: nothing was pushed: no connection"):
        scorer_of(1).push_to_hub("user/scorer")
    monkeypatch.undo()
    hub.drop = "README.md"
    with pytest.raises(OSError, match="user/scorer: the push broke off, and the repository is as it was"):
        scorer_of(1).push_to_hub("user/scorer")
    assert hub.repositories["user/scorer"].files() is before


def test_a_card_of_somebody_else_stays_whole(hub, tmp_path):
    HfApi().create_repo("user/scorer")
    HfApi().upload_file(repo_id="user/scorer", path_in_repo="README.md", path_or_fileobj=b"# Mine\n\nWords.\n")
    scorer_of().push_to_hub("user/scorer", revision="dev")  # a new branch starts from main
    dev = hub.repositories["user/scorer"].files("dev")["README.md"].decode()
    assert dev.endswith(f"{MARK}\n\n# Mine\n\nWords.\n")
    assert readme(hub) == "# Mine\n\nWords.\n"
    scorer_of().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("The folder's.\n")
    push_folder(tmp_path, "user/scorer")
    assert readme(hub).endswith(f"{MARK}\n\nThe folder's.\n")
    assert "Words." not in readme(hub)


@pytest.mark.parametrize("metadata", ["- a", "a: [", "a: b: c"])
def test_metadata_that_cannot_be_read(hub, tmp_path, metadata):
    scorer_of().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(
        ValueError, match=r"README.md: its metadata must be a YAML mapping: mend it, or delete the file"
    ):
        push_folder(tmp_path, "user/scorer")
    assert hub.repositories == {}


def test_table_is_that_of_the_results(measured):
    assert len(table_rows(read_results(measured.results))) == len(RESULTS)


def test_push_again_drops_what_no_longer_holds(hub, measured):
    settings_beside(measured, scorer_of(0), dataset_name=None)
    figures = {"results.json", "settings.json", "trade_off.png", ".eval_results/gsm8k.yaml"}
    for branch in ("dev", "main"):  # what is on the one says nothing of the other
        scorer_of(0).push_to_hub("user/scorer", card=measured, revision=branch)
        HfApi().upload_file(repo_id="user/scorer", path_in_repo="notes.txt", path_or_fileobj=b"mine", revision=branch)
        assert figures <= set(hub.repositories["user/scorer"].files(branch))
        scorer_of(1).push_to_hub("user/scorer", revision=branch)
        files = hub.repositories["user/scorer"].files(branch)
        assert not figures & set(files)
        assert files["notes.txt"] == b"mine"
        assert b"Nothing was measured" in files["README.md"]


def test_code_of_the_card_runs(hub, base, measured):
    scorer_of(max_denoising_steps=3).push_to_hub("user/scorer", card=measured)
    code = re.search(r"```python\n(.*?)```", readme(hub), re.DOTALL).group(1)
    assert "revision" not in code
    scope, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, scope)
    assert scope["out"].nfe.max() <= 3
    assert "w" in printed.getvalue()


def test_rows_of_another_task_are_left_out(tmp_path):
    rows = [replace(RESULTS[0], task=task, accuracy=i / 4) for i, task in enumerate(("words", "equations", ""))]
    save_results(rows, tmp_path)
    path = tmp_path / "results.json"
    assert [row.accuracy for row in read_results(path, "equations")] == [0.25, 0.5]
    assert [row.accuracy for row in read_results(path, "words")] == [0.0, 0.5]
    assert len(read_results(path)) == 3
    save_results(rows[:2], tmp_path)
    with pytest.raises(ValueError, match=r"task must be among those of .* \(equations, words\), got 'sums'"):
        read_results(path, "sums")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must hold a list, got dict"),
        ("[", "not a JSON file"),
        ("[]", "must hold at least one result"),
        ("[3]", "row 1: .* must be a mapping, not int"),
        (json.dumps([{**asdict(RESULTS[0]), "nfe": "4"}]), r"row 1: nfe must be of type int \| float, got '4'"),
    ],
)
def test_results_are_checked(hub, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        scorer_of().push_to_hub("user/scorer", card=Card(results=tmp_path / "results.json"))
    assert hub.repositories == {}


def test_plot_is_checked(hub, tmp_path):
    (tmp_path / "plot.png").write_text("<svg>")
    with pytest.raises(ValueError, match=r"results must be a results.json, which holds every score, got .*\.csv"):
        scorer_of().push_to_hub("user/scorer", card=Card(results=tmp_path / "results.csv"))
    with pytest.raises(ValueError, match=r"plot must be a PNG file, but .*plot.png is none"):
        scorer_of().push_to_hub("user/scorer", card=Card(plot=tmp_path / "plot.png"))


# ---- custom_generate ---------------------------------------------------------------------------------------------


def test_custom_generate(hub):
    scorer = scorer_of(max_denoising_steps=3)
    scorer.push_to_hub("user/scorer")
    model = tiny_model("llama")
    inputs = tiny_tokenizer()(["w5 w6 w7", "w8"], return_tensors="pt", padding=True)
    del inputs["token_type_ids"]
    options = {"max_new_tokens": 9, "seed": 3, "return_dict_in_generate": True, "eos_token_id": EOS}
    remote = {"custom_generate": "user/scorer", "trust_remote_code": True}
    out = model.generate(**inputs, **options, **remote)
    assert not isinstance(model, LearnedOrderGenerationMixin)
    assert not hasattr(model, "order_scorer")
    assert (out.nfe <= 3).all()  # from generation_config.json
    fast = model.generate(**inputs, **options, **remote, max_denoising_steps=1)
    assert (fast.nfe == 1).all()
    attached = attach(tiny_model("llama"), scorer, mask_token_id=MASK)
    same = attached.generate(**inputs, **options, sampler="learned_order", max_denoising_steps=3)
    assert torch.equal(out.sequences, same.sequences)
    assert torch.equal(out.order, same.order)
    assert not torch.equal(out.order, fast.order)
    by_position = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **options, **remote)
    assert torch.equal(by_position.sequences, out.sequences)


def test_custom_generate_takes_the_sampler_of_a_sampler_config(hub):
    scorer_of(max_denoising_steps=3).push_to_hub("user/scorer")
    model, prompt = tiny_model("llama"), torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 9, "return_dict_in_generate": True}
    config = {"sampler": "threshold", "threshold": 0.0}
    out = model.generate(
        prompt, custom_generate="user/scorer", trust_remote_code=True, sampler_config=config, **options
    )
    assert out.nfe == 1


def test_custom_generate_takes_a_revision(hub):
    first = scorer_of(0, max_denoising_steps=1).push_to_hub("user/scorer")
    scorer_of(0, max_denoising_steps=9).push_to_hub("user/scorer")
    options = {"custom_generate": "user/scorer", "trust_remote_code": True, "return_dict_in_generate": True}
    options["max_new_tokens"] = 9
    prompt = torch.tensor([[5, 6]])
    new, old = (tiny_model("llama").generate(prompt, **options, revision=r, seed=0) for r in (None, first.oid))
    assert old.nfe.tolist() == [1] != new.nfe.tolist()


def test_custom_generate_refuses(hub):
    scorer_of().push_to_hub("user/scorer")
    model, prompt = tiny_model("llama"), torch.tensor([[5, 6]])
    streamer = TextIteratorStreamer(equation_tokenizer(), timeout=60)
    options = {"custom_generate": "user/scorer", "trust_remote_code": True, "streamer": streamer}
    with pytest.raises(ValueError, match=r"with a sampler, generate must set only .*; got num_beams \(there are no"):
        model.generate(prompt, num_beams=2, **options)
    assert "".join(streamer) == ""  # the error has ended it
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        model.generate(prompt, custom_generate="user/scorer", trust_remote_code=False)


# ---- trainer and command line ------------------------------------------------------------------------------------


def trainer_of(folder, *, lora: bool = False, **options) -> OrderTrainer:
    tokenizer = equation_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    return OrderTrainer(
        model=tiny_model("modernbert", max_position_embeddings=96, **special).float(),
        args=arguments(folder, max_steps=1, **options),
        processing_class=tokenizer,
        train_dataset=equations(chains_of(read_rows(PROBLEMS))[0], tokenizer, canvas_length=32).select(range(4)),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type=None) if lora else None,
    )


def test_trainer_pushes_scorer_and_adapter(hub, tmp_path):
    trainer = trainer_of(tmp_path / "scorer", lora=True, hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub(card=Card(data="four chains"))
    files = hub.repositories["user/scorer"].files()
    assert hub.repositories["user/scorer"].private
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt")) or "posterior" in name or "saving" in name]
    assert json.loads(files["generation_config.json"])["max_new_tokens"] == 32
    assert_same(OrderScorer.from_pretrained("user/scorer"), trainer.scorer)
    plain = tiny_model("modernbert", max_position_embeddings=96).float()
    loaded = PeftModel.from_pretrained(plain, "user/scorer", subfolder="adapter").eval()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trainer.denoiser.model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained("user/scorer").mask_token_id == trainer.scorer.config.mask_token_id
    text = readme(hub)
    assert "with the adapter in `adapter/`, which `attach` loads" in text
    for row in ("| data | four chains |", "| updates | 1 |", "| chains of each | 2 |", "| step budget | 3 |"):
        assert row in text


def test_a_folder_knows_what_its_trainer_stated(hub, tmp_path):
    trainer = trainer_of(tmp_path / "scorer")
    trainer.card = Card(data="four |\nchains", command="python train.py ```", seeds=(7,))
    trainer.save_model()
    push_folder(tmp_path / "scorer", "user/scorer")
    said = ("| data | four &#124; chains |", "| seeds | 7 |", "| updates | 0 |", "````sh\npython train.py ```\n````")
    for text in said:
        assert text in readme(hub)
    assert '**tokenizer("your prompt", ' in readme(hub)
    push_folder(tmp_path / "scorer", "user/scorer", card=Card(data="others", limits="one\ntwo", prompt="1+1"))
    for text in ('**tokenizer("1+1", ', "| data | others |", "| seeds | 7 |", "- Stated by its author: one two\n"):
        assert text in readme(hub)


def test_nothing_of_the_training_data_is_shown(hub, tmp_path):
    """They may be private; whoever wants an example gives it."""
    trainer = trainer_of(tmp_path / "scorer")
    trainer.save_model()
    push_folder(tmp_path / "scorer", "user/scorer")
    prompts = trainer.processing_class.batch_decode(trainer.train_dataset["prompt_ids"][:], skip_special_tokens=True)
    files = [path for path in (tmp_path / "scorer").rglob("*") if path.suffix in (".md", ".json")]
    texts = [path.read_text() for path in files if path.name not in ("tokenizer.json", "tokenizer_config.json")]
    assert not [prompt for prompt in prompts for text in (readme(hub), *texts) if prompt in text]


def test_the_example_of_a_grid_has_masks(hub, tmp_path):
    trainer = trainer_of(tmp_path / "scorer")
    trainer.train_dataset = [{"prompt_ids": [], "response_ids": [5, 6, 7], "given": [True, False, True]}]
    text, infill = example_of(trainer.train_dataset[0], trainer.processing_class)
    assert (text[1:-1], infill) == (trainer.processing_class.mask_token, True)
    trainer.save_model()
    push_folder(tmp_path / "scorer", "user/scorer")
    assert json.loads((tmp_path / "scorer" / "training_args.json").read_text())["infill"]
    mask = trainer.processing_class.mask_token
    assert re.search(rf'tokenizer\("your text with {re.escape(mask)} in it", .*\n.*\n    infill=True,\n', readme(hub))
    assert "max_new_tokens" not in readme(hub).partition("```python")[2].partition("```")[0]


def test_what_is_not_made_of_gsm8k_names_no_dataset(hub, measured):
    save_results([replace(row, task="mine") for row in RESULTS], measured.results.parent)
    scorer_of().push_to_hub("user/scorer", card=replace(measured, task="mine"))
    text = readme(hub)
    assert "40 problems of task `mine`" in text
    assert "gsm8k" not in text.partition("## Training")[2].replace("GSM8K chains", "")
    assert ModelCard(text).data.datasets is None
    assert not [name for name in hub.repositories["user/scorer"].files() if name.startswith(".eval_results")]
    assert ModelCard(text).data.eval_results[0].dataset_name == "mine"


def test_tags_and_license_of_a_push(hub, tmp_path):
    scorer_of().push_to_hub("user/scorer", tags="mine")
    assert "mine" in ModelCard(readme(hub)).data.tags
    trainer = trainer_of(tmp_path / "scorer")
    trainer.push_to_hub(tags=["one", "two"], license="mit")
    data = ModelCard(readme(hub)).data
    assert {"one", "two", "mine", "order-scorer"} <= set(data.tags)
    assert data.license == "mit"
    with pytest.raises(TypeError, match=r"push_to_hub takes card, tags, .*, got max_shard_size: a scorer is one file"):
        scorer_of().push_to_hub("user/scorer", max_shard_size="1GB")


@pytest.mark.parametrize(
    ("law", "objective", "said", "unsaid"),
    [
        ("regret", None, "and pairs, from the denoiser itself |", "chains of each"),
        ("non_empty", "reward", "by reward on its own decodings |", "step budget in training | any"),
        ("regret", "new", "| objective | `new` |", "variational"),
    ],
)
def test_card_of_each_objective(hub, tmp_path, law, objective, said, unsaid):
    scorer_of(law=law).save_pretrained(tmp_path)
    training = {"objective": objective, "num_chains": 8, "max_denoising_steps": 12, "gradient_accumulation_steps": 2}
    (tmp_path / "training_args.json").write_text(json.dumps(training))
    push_folder(tmp_path, "user/scorer")
    assert said in readme(hub)
    assert unsaid not in readme(hub)
    assert "| batches an update | 2 |" in readme(hub)
    if law == "regret":
        assert "| step budget | any |" in readme(hub)
        assert "| largest step budget in training | 12 |" in readme(hub)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_was_trained_for_draws_is_said_and_is_the_default(hub, tmp_path, temperature):
    trainer_of(tmp_path / "scorer", temperature=temperature, objective="reward").push_to_hub()
    settings = json.loads(hub.repositories["user/scorer"].files()["generation_config.json"])
    assert (settings.get("do_sample"), settings.get("temperature")) == ((True, 0.7) if temperature else (None, None))
    text = readme(hub)
    assert ("    do_sample=True,\n    temperature=0.7,\n" in text) == (temperature > 0)
    assert ("| made for | tokens that are drawn, at temperature 0.7 |" in text) == (temperature > 0)


def test_trainer_pushes_at_the_end(hub, tmp_path):
    trainer = trainer_of(tmp_path / "run", push_to_hub=True, hub_model_id="user/named", train_denoiser=True)
    trainer.save_model()
    repository = hub.repositories["user/named"]
    assert "| seeds | 42 |" in readme(hub, "user/named")
    assert 'load_denoiser("user/named", subfolder="denoiser")' in readme(hub, "user/named")
    tuned = load_denoiser("user/named", subfolder="denoiser")
    assert type(tuned) is type(trainer.denoiser.model)
    commits = len(repository.commits)
    trainer.posterior = None
    trainer.scorer.network.head.bias.data.fill_(1.0)
    assert trainer.push_to_hub(blocking=False).result(30).oid == repository.branches["main"]
    assert len(repository.commits) == commits + 1
    with pytest.raises(TypeError, match=r"what it writes into the card from card=Card\(...\), got \['tasks'\]"):
        trainer.push_to_hub(tasks=["x"])


def test_push_command(hub, tmp_path, measured, capsys):
    scorer_of().save_pretrained(tmp_path / "scorer")
    arguments = ["push", str(tmp_path / "scorer"), "user/scorer", "--results", str(measured.results), "--private"]
    assert main([*arguments, "--plot", str(measured.plot), "--data", "chains"]) == 0
    assert capsys.readouterr().out == f"Pushed {tmp_path / 'scorer'} to user/scorer\n"
    assert hub.repositories["user/scorer"].private
    assert "| data | chains |" in readme(hub)
    assert main(["push", str(tmp_path), "user/scorer"]) == 2
    assert "has no config.json" in capsys.readouterr().err
