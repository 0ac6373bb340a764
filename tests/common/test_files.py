"""Saving leaves old files or new ones; damaged, foreign and newer files are told in one of our errors."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub.utils import WeakFileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hf_learned_order.common.files import replacing, saving
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "denoiser_hidden_size": 4}
ERRORS = (ValueError, TypeError, OSError)
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars and no reports of loading."""
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def scorer_of(seed: int = 0, **config) -> OrderScorer:
    torch.manual_seed(seed)
    return OrderScorer(OrderScorerConfig(**{**SMALL, **config})).eval()


@pytest.fixture
def saved(tmp_path) -> Path:
    scorer_of().save_pretrained(tmp_path / "scorer")
    return tmp_path / "scorer"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- saving ------------------------------------------------------------------------------------------------------


def test_interrupted_save_leaves_the_old_files(tmp_path):
    (tmp_path / "a").write_text("old")

    def interrupted():
        with replacing(tmp_path) as temporary:
            (temporary / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"a": b"old"}
    assert not list(tmp_path.glob(".saving-*"))


def test_saved_files_replace_the_old_ones_and_leave_others(tmp_path):
    for name in ("a", "mine"):
        (tmp_path / name).write_text("old")
    with replacing(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "adapter").mkdir()
        (temporary / "adapter" / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == (tmp_path / "adapter" / "b").read_text() == "new"
    assert (tmp_path / "mine").read_text() == "old"


def test_interrupted_save_of_a_scorer(saved, monkeypatch):
    before = contents(saved)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(OrderScorer, "state_dict", interrupted)  # the configuration has been written by then
    with pytest.raises(KeyboardInterrupt):
        scorer_of(1, law="regret").save_pretrained(saved)
    assert contents(saved) == before


LOOP = """
import sys
from pathlib import Path
from huggingface_hub.utils import WeakFileLock
from hf_learned_order.common.files import replacing
tag, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
print("started", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    with replacing(folder) as temporary:
        for name in "abcd":
            (temporary / name).write_text(tag * 1000)
    with WeakFileLock(folder / ".saving.lock"):  # while one replaces its files the other one does not
        if len({(folder / name).read_text() for name in "abcd"}) != 1:
            raise SystemExit("files of two")
"""


def save_in_a_loop(tag: str, folder: Path, rounds: int) -> subprocess.Popen:
    arguments = [sys.executable, "-c", LOOP, tag, str(folder), str(rounds)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def together(processes: list[subprocess.Popen]) -> None:
    """Lets them begin as soon as all are there: one may take seconds longer than another to start."""
    for process in processes:
        assert process.stdout.readline() == "started\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_killed_process_leaves_whole_files(tmp_path):
    process = save_in_a_loop("x", tmp_path, 10**9)
    together([process])
    while not (tmp_path / "d").exists():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert [contents(tmp_path)[name] for name in "abcd"] == [b"x" * 1000] * 4


@pytest.mark.slow  # the next one, with real processes
def test_two_processes_leave_the_files_of_one(tmp_path):
    processes = [save_in_a_loop(tag, tmp_path, 400) for tag in "xy"]
    together(processes)
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    values = {contents(tmp_path)[name] for name in "abcd"}
    assert values in ({b"x" * 1000}, {b"y" * 1000})


def test_a_save_waits_while_another_replaces(saved):
    before = contents(saved)
    with WeakFileLock(saved / ".saving.lock"):
        saving_it = Thread(target=scorer_of(1).save_pretrained, args=(saved,))
        saving_it.start()
        saving_it.join(0.3)
        assert saving_it.is_alive()
        assert contents(saved) == before
    saving_it.join(60)
    assert contents(saved)[WEIGHTS] != before[WEIGHTS]


def test_full_disk(saved):
    before = contents(saved)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # bytes a file: room for the configuration alone
    try:
        with pytest.raises(OSError, match=r"File too large"):
            scorer_of(1).save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert contents(saved) == before
    assert not list(saved.glob(".saving-*"))


def test_error_of_safetensors_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="scorer: the weights could not be written"), saving("scorer"):
        save_file({"a": torch.zeros(1)}, tmp_path / "nowhere" / "x.safetensors")


def test_read_only_folder():
    folder = Path(tempfile.mkdtemp())  # not under tmp_path, which nobody else may enter
    user = os.geteuid()
    try:
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=str(folder)):
            scorer_of().save_pretrained(folder)
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "scorer").write_text("mine")
    with pytest.raises(FileExistsError, match="scorer"):
        scorer_of().save_pretrained(tmp_path / "scorer")
    assert (tmp_path / "scorer").read_text() == "mine"


def test_folder_in_the_place_of_a_file(saved):
    before = contents(saved)
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).mkdir()
    with pytest.raises(IsADirectoryError, match=r"model.safetensors must be a file, but it is a folder"):
        scorer_of(1, law="regret").save_pretrained(saved)
    assert contents(saved) == {name: content for name, content in before.items() if name != WEIGHTS}


# ---- damaged and foreign files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(saved, keep):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"scorer: its config.json or model.safetensors is damaged"):
        OrderScorer.from_pretrained(saved)


def test_overwritten_weights(saved):
    (saved / WEIGHTS).write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"scorer: its config.json or model.safetensors is damaged"):
        OrderScorer.from_pretrained(saved)


def test_no_configuration(saved):
    """transformers takes the default fields, and these weights fit them."""
    scorer = OrderScorer(OrderScorerConfig())
    scorer.save_pretrained(saved / "inner")
    for name, folder, options in (
        (saved / "inner", saved / "inner", {}),
        (saved, saved / "inner", {"subfolder": "inner"}),
    ):
        OrderScorer.from_pretrained(name, **options)
        (folder / "config.json").rename(folder / "away")
        with pytest.raises(OSError, match=r"scorer/inner must hold a scorer, but it has no config\.json"):
            OrderScorer.from_pretrained(name, **options)
        OrderScorer.from_pretrained(name, **options, config=OrderScorerConfig())
        (folder / "away").rename(folder / "config.json")


@pytest.mark.parametrize("config", [{"hidden_size": 16}, {"law": "regret"}, {"hidden_size": 2**20}])
def test_weights_of_another_shape(saved, config):
    change_config(saved, **config)
    with pytest.raises(ValueError, match=r"config.json or model.safetensors is damaged, or they do not belong"):
        OrderScorer.from_pretrained(saved)


def test_missing_and_additional_weights(saved):
    change_config(saved, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"but 12 are missing or too many: network.encoder.layers.1"):
        OrderScorer.from_pretrained(saved)
    change_config(saved, num_hidden_layers=1)
    save_file({**load_file(saved / WEIGHTS), "more": torch.zeros(1)}, saved / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="but 1 are missing or too many: more"):
        OrderScorer.from_pretrained(saved)


def test_pickles_are_not_loaded(saved):
    torch.save(load_file(saved / WEIGHTS), saved / "pytorch_model.bin")
    (saved / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        OrderScorer.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.long(), r"safetensors: its weights must be floating-point numbers, but .* is of torch.int64"),
        (lambda x: x > 0, r"weights must be floating-point numbers, but .* is of torch.bool"),
        (lambda x: x + 1j, r"weights must be floating-point numbers, but .* is of torch.complex64"),
        (lambda x: x / 0, r"weights must be finite, but network.features.weight holds nan or inf"),
    ],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_weights_that_are_no_numbers_of_ours(saved, change, message):
    weights = load_file(saved / WEIGHTS)
    name = "network.features.weight"
    save_file({**weights, name: change(weights[name])}, saved / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        OrderScorer.from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision(saved, dtype):
    weights = load_file(saved / WEIGHTS)
    save_file({k: v.to(dtype) for k, v in weights.items()}, saved / WEIGHTS, metadata={"format": "pt"})
    assert OrderScorer.from_pretrained(saved).dtype == torch.float32  # the configuration's


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "", "\ufeff{}"])
def test_configuration_that_is_no_mapping(saved, content):
    (saved / "config.json").write_text(content, encoding="utf-8")
    for load in (OrderScorer, OrderScorerConfig):
        with pytest.raises(ValueError, match=r"config.json: (must hold a dict, got|not a JSON file)"):
            load.from_pretrained(saved)


def test_what_is_no_folder(saved):
    with pytest.raises(OSError, match=r"model.safetensors must be a folder or the name .*, but it is a file"):
        OrderScorer.from_pretrained(saved / WEIGHTS)
    with pytest.raises(OSError, match=r"more/than/two must be a folder or the name .*, but it is none, and can be no"):
        OrderScorer.from_pretrained("more/than/two")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_configuration_of_a_newer_version(saved):
    change_config(saved, count_law="poisson", anneal=3, _commit_hash="x")
    with pytest.warns(UserWarning, match="does not know .*: anneal, count_law; a newer version may have written them"):
        scorer = OrderScorer.from_pretrained(saved)
    assert scorer.config.hidden_size == 8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_size": "8"}, TypeError, "hidden_size must be of type int, got '8'"),
        ({"hidden_size": True}, TypeError, "hidden_size must be of type int, got True"),
        ({"bound": None}, TypeError, r"bound must be of type int \| float, got None"),
        ({"base_model_revision": 3}, TypeError, r"base_model_revision must be of type str \| None, got 3"),
        ({"num_hidden_layers": 0}, ValueError, r"num_hidden_layers must be in \[1, 256\], got 0"),
        ({"mask_token_id": -1}, ValueError, r"mask_token_id must be in \[0, inf\], got -1"),
        ({"num_attention_heads": 3}, ValueError, "multiple of num_attention_heads, got 8 and 3"),
    ],
)
def test_fields_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        OrderScorerConfig(**{**SMALL, **options})


FIELDS = sorted({*scorer_of().config.to_dict(), "id2label", "auto_map", "torch_dtype", "quantization_config", "_x"})
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["auto", "float16"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
fuzzed = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500)
@given(fuzzed | values)
def test_fuzzed_configuration(content):
    with tempfile.TemporaryDirectory() as folder:
        whole = {**json.loads(scorer_of_json()), **content} if isinstance(content, dict) else content
        (Path(folder) / "config.json").write_text(json.dumps(whole))
        try:
            assert isinstance(OrderScorerConfig.from_pretrained(folder), OrderScorerConfig)
        except ERRORS:
            return
        shutil.copy(weights_file(), folder)
        try:
            assert isinstance(OrderScorer.from_pretrained(folder), OrderScorer)
        except ERRORS:
            return


def scorer_of_json() -> str:
    return OrderScorerConfig(**SMALL).to_json_string()


_WEIGHTS: list[Path] = []


def weights_file() -> Path:
    if not _WEIGHTS:
        _WEIGHTS.append(Path(tempfile.mkdtemp()))
        scorer_of().save_pretrained(_WEIGHTS[0])
    return _WEIGHTS[0] / WEIGHTS


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_configuration_of_any_bytes(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(content)
        with pytest.raises(ERRORS):
            OrderScorerConfig.from_pretrained(folder)
