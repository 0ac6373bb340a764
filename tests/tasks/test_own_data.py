"""A user's own data: what files and columns there may be, what becomes of a row, which rows are left out and why."""

import gzip
import json
from contextlib import suppress
from dataclasses import fields

import datasets
import pytest
from datasets import Dataset, DatasetDict
from files import write_rows
from models import EOS, MASK, tiny_tokenizer

from hf_learned_order.tasks.answers import Response
from hf_learned_order.tasks.data import equations, load_gsm8k, words
from hf_learned_order.tasks.gsm8k import chains_of
from hf_learned_order.tasks.own.files import own_splits, read_files
from hf_learned_order.tasks.report import report
from hf_learned_order.tasks.sources import FILES, OPTIONS, OwnData, Source
from hf_learned_order.tasks.table import TASKS, Task, find_task

# special tokens of its own round each message, as ChatML has them
TEMPLATE = (
    "{% for message in messages %}{{ 'w4 ' if message['role'] == 'user' else 'w5 ' }}{{ message['content'] }} [EOS] "
    "{% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def rows_of(count: int = 40, **columns: str) -> list[dict]:
    """Rows whose columns say which row it is; by default `prompt` and `response`."""
    names = columns or {"prompt": "w6", "response": "w7"}
    return [{name: f"{word} w{8 + number % 30}" for name, word in names.items()} for number in range(count)]


def write(path, rows: list[dict]) -> str:
    """In the format that the name says."""
    data, name = Dataset.from_list(rows), path.name
    if name.endswith(".csv"):
        data.to_csv(path)
    elif name.endswith(".tsv"):
        data.to_csv(path, sep="\t")
    elif name.endswith(".parquet"):
        data.to_parquet(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def load(tokenizer, task: str = "responses", *, split: str = "test", canvas_length: int = 8, own=None, **where):
    source = Source(split=split, canvas_length=canvas_length, own=OwnData(**(own or {})), **where)
    return find_task(task).load(tokenizer, source)


def loaded(tokenizer, tmp_path, rows: list[dict], **options):
    return load(tokenizer, test_file=write(tmp_path / "rows.jsonl", rows), **options)


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_every_format_is_the_same_rows(name, tmp_path, tokenizer):
    found = load(tokenizer, test_file=write(tmp_path / name, rows_of()))
    assert found.to_list() == loaded(tokenizer, tmp_path, rows_of()).to_list()
    assert found[3] == {"prompt_ids": [6, 11], "response_ids": [7, 11], "answer": "w7 w11", "length": 4}


def test_several_files_are_one(tmp_path, tokenizer):
    files = [write(tmp_path / f"{part}.csv", rows_of()[part * 20 : part * 20 + 20]) for part in range(2)]
    expected = loaded(tokenizer, tmp_path, rows_of()).to_list()
    assert load(tokenizer, test_file=files).to_list() == expected
    assert load(tokenizer, test_file=str(tmp_path / "*.csv")).to_list() == expected


def test_text_is_read_line_by_line(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("w6 w7\nw8 w9 w10\n")
    found = load(tokenizer, "infill", test_file=str(tmp_path / "a.txt"))
    assert found["response_ids"][:] == [[6, 7], [8, 9, 10]]


def test_words_that_pandas_takes_for_nothing_are_words(tmp_path):
    write(tmp_path / "a.csv", [{"prompt": "NA", "response": "None"}])
    assert read_files(tmp_path / "a.csv")[0] == {"prompt": "NA", "response": "None"}


@pytest.mark.parametrize("kind", ["saved", "folder"])
def test_a_data_set_by_name(kind, tmp_path, tokenizer):
    """One that `save_to_disk` wrote, and a folder of files; a split may be called "dev"."""
    rows = Dataset.from_list(rows_of())
    where = tmp_path / "data"
    if kind == "saved":
        DatasetDict({"train": rows, "dev": rows.select(range(4)), "test": rows.select(range(9))}).save_to_disk(where)
    else:
        where.mkdir()
        for name, count in (("train", 40), ("validation", 4), ("test", 9)):
            write(where / f"{name}.jsonl", rows_of(count))
    found = {split: load(tokenizer, split=split, dataset_name=str(where)) for split in ("validation", "test")}
    assert {split: len(rows) for split, rows in found.items()} == {"validation": 4, "test": 9}
    # those held out are not trained on: rows of the same prompt, too
    train = load(tokenizer, split="train", dataset_name=str(where))
    assert not {*map(tuple, train["prompt_ids"])} & {*map(tuple, found["test"]["prompt_ids"])}


class Recorder:
    """Another object, and which of its attributes were read."""

    def __init__(self, seen: object):
        self.seen, self.read = seen, set()

    def __getattr__(self, name: str):
        self.read.add(name)
        return getattr(self.seen, name)


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("responses", {"prompt": "w6", "response": "w7"}),
        ("infill", {"text": "w6"}),
        ("words", {"question": "w6", "answer": "w7"}),
        ("equations", {"question": "w6", "answer": "w7"}),
        ("copy", {"text": "w6"}),
    ],
)
def test_which_options_a_task_reads(task, columns, tmp_path, tokenizer):
    """`Task.reads` is what `load` looks at; the scripts refuse all others."""
    if task == "equations":
        rows = [{"question": "", "answer": "2+3 = <<2+3=5>>5\n#### 5"}] * 450
    else:
        rows = rows_of(450, **columns)
    (tmp_path / "data").mkdir()
    file = write(tmp_path / "data" / "train.jsonl", rows)
    read = set()
    for where in ({"dataset_name": str(tmp_path / "data")}, {"train_file": file}):
        own = Recorder(OwnData())
        source = Recorder(Source(split="train", canvas_length=32, count=4, **where))
        source.__dict__["own"] = own
        with suppress(ValueError):  # these rows repeat, and all may be held out; what is read was read before
            find_task(task).load(find_task(task).tokenizer() if task == "copy" else tokenizer, source)
        read |= own.read | source.read
    mine = find_task(task).reads
    assert read & {*OPTIONS} == {*mine} & {*FILES, *(each.name for each in fields(OwnData))}


def test_data_and_files_at_once(tmp_path):
    for files in ({"train_file": "a.csv"}, {"test_file": "a.csv"}, {"own": OwnData(validation_file=["a.csv"])}):
        with pytest.raises(ValueError, match="dataset_name must be left out with files, got x and"):
            Source(split="train", canvas_length=8, dataset_name="x", **files)
    with pytest.raises(ValueError, match="dataset_config must be left out without dataset_name, got main"):
        Source(split="train", canvas_length=8, train_file="a", own=OwnData(dataset_config="main"))


def test_two_kinds_of_columns(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="messages_column must be left out with prompt_column and response_column"):
        loaded(tokenizer, tmp_path, rows_of(), own={"messages_column": "chat", "prompt_column": "prompt"})


def test_what_is_held_out_of_one_file(tmp_path, tokenizer):
    """A tenth each, the same ones whenever it is read, and nothing is in two splits."""
    file = write(tmp_path / "a.csv", rows_of(30))
    splits = own_splits(Source(split="train", canvas_length=8, train_file=file))
    numbers = {name: rows["row_number"][:] for name, rows in splits.items()}
    assert {name: len(rows) for name, rows in numbers.items()} == {"train": 24, "validation": 3, "test": 3}
    assert sorted(number for those in numbers.values() for number in those) == list(range(1, 31))
    assert numbers["train"] == sorted(numbers["train"])
    again = own_splits(Source(split="test", canvas_length=8, train_file=file, test_file=file))
    assert again["validation"]["row_number"][:] == numbers["validation"]
    assert len(again["test"]) == 30


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_file": "a.xlsx"}, "train_file must be files of one kind, json, jsonl, .* got a.xlsx"),
        ({"train_file": ["a.csv", "b.jsonl"]}, "train_file must be files of one kind, .* got a.csv, b.jsonl"),
        ({}, "dataset_name or train_file must be given, but both are None"),
    ],
)
def test_files_of_no_kind(files, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        load(tokenizer, split="train", **files)


def test_files_that_cannot_be_read(tmp_path, tokenizer):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "w6", "response": "w7"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"train_file .*broken.jsonl: cannot be read as jsonl \(.*[Pp]ars"):
        load(tokenizer, split="train", train_file=str(tmp_path / "broken.jsonl"))
    (tmp_path / "words.parquet").write_text("these are words")
    with pytest.raises(ValueError, match=r"test_file .*words.parquet: cannot be read as parquet"):
        load(tokenizer, test_file=str(tmp_path / "words.parquet"))
    with pytest.raises(OSError, match=r"train_file must name files that are there, got .*nowhere.csv"):
        load(tokenizer, split="train", train_file=str(tmp_path / "nowhere.csv"))
    few = write(tmp_path / "few.csv", rows_of(9))
    with pytest.raises(ValueError, match=r"must have 10 rows or more to hold some out for validation, got 9"):
        load(tokenizer, split="train", train_file=few)
    with pytest.raises(ValueError, match="dataset_name or validation_file must be given, with a split validation"):
        load(tokenizer, split="validation", test_file=few)
    DatasetDict({"other": Dataset.from_list(rows_of(3))}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"dataset_name must have a split train, validation or test, got .*other"):
        load(tokenizer, dataset_name=str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.parquet"])
def test_gsm8k_may_be_in_any_format(name, tmp_path):
    write_rows(tmp_path / "plain.jsonl", 402, 0)
    rows = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    files = write(tmp_path / name, rows)
    assert load_gsm8k(train_file=files) == load_gsm8k(train_file=[tmp_path / "plain.jsonl"])


def test_what_is_not_gsm8k(tmp_path):
    file = write(tmp_path / "a.csv", rows_of())
    with pytest.raises(ValueError, match=r"train_file must have the columns question and answer of GSM8K, got prompt"):
        load_gsm8k(train_file=file)
    Dataset.from_list(rows_of()).save_to_disk(tmp_path / "set")
    write(tmp_path / "b.csv", [{"question": "w6", "answer": None}] * 3)
    with pytest.raises(ValueError, match="test_file, row 1: must have the strings 'question' and 'answer'"):
        load_gsm8k(test_file=tmp_path / "b.csv")


# ---- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns", [("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("input", "output")]
)
def test_common_columns_are_found(columns, tmp_path, tokenizer):
    found = loaded(tokenizer, tmp_path, rows_of(prompt="w6", response="w7"))
    renamed = rows_of(**dict(zip(columns, ("w6", "w7"), strict=True)))
    assert loaded(tokenizer, tmp_path, renamed).to_list() == found.to_list()


def test_columns_that_are_named(tmp_path, tokenizer):
    rows = rows_of(prompt="w6", response="w7", ask="w30", say="w31", score="w32")
    own = {"prompt_column": "ask", "response_column": "say", "answer_column": "score"}
    found = loaded(tokenizer, tmp_path, rows, own=own)[0]
    assert (found["prompt_ids"], found["response_ids"], found["answer"]) == ([30, 8], [31, 8], "w32 w8")


def test_numbers_are_texts(tmp_path, tokenizer):
    rows = [{"prompt": 6, "response": 7.5}]
    tokenizer.add_tokens(["6", "7.5"])
    found = loaded(tokenizer, tmp_path, rows)[0]
    assert (tokenizer.decode(found["prompt_ids"]), found["answer"]) == ("6", "7.5")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, "prompt_column and response_column, or messages_column, must be given, got none, .* have 'a', 'b'"),
        ({"prompt_column": "a"}, "response_column must be a column of the data, one of 'a', 'b', got None"),
        ({"response_column": "a"}, "prompt_column must be a column of the data, one of 'a', 'b', got None"),
        ({"prompt_column": "a", "response_column": "c"}, "response_column must be a column .* got 'c'"),
        ({"messages_column": "c"}, "messages_column must be a column of the data, one of 'a', 'b', got 'c'"),
        ({"answer_column": "c"}, "answer_column must be a column of the data, one of 'a', 'b', got 'c'"),
    ],
)
def test_columns_that_are_not_there(own, message, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=message):
        loaded(tokenizer, tmp_path, rows_of(a="w6", b="w7"), own=own)


def test_infill_needs_a_column(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="text_column must be a column of the data, one of 'a', got 'text'"):
        loaded(tokenizer, tmp_path, rows_of(a="w6"), task="infill")


# ---- conversations -----------------------------------------------------------------------------------------------


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def test_the_last_message_is_the_response(tmp_path, tokenizer):
    tokenizer.chat_template = TEMPLATE
    rows = [{"messages": chat("w6", "w7", "w8", "w9 w10")}, {"messages": chat("w6", "w7")}]
    found = loaded(tokenizer, tmp_path, rows)
    # up to the end of the assistant's turn, with which the canvas is filled up
    assert found["response_ids"][:] == [[9, 10], [7]]
    assert found["prompt_ids"][:] == [[4, 6, EOS, 5, 7, EOS, 4, 8, EOS, 5], [4, 6, EOS, 5]]
    assert found["answer"][:] == ["w9 w10", "w7"]
    # so are a prompt and a completion, as messages (TRL's layout) or as plain text
    both = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    assert loaded(tokenizer, tmp_path, both).to_list() == found.to_list()
    plain = [{"prompt": "w6", "completion": "w7"}]
    assert loaded(tokenizer, tmp_path, plain)[0] == found[1]
    assert loaded(tokenizer, tmp_path, plain, own={"plain_prompts": True})[0]["prompt_ids"] == [6]


def test_a_turn_may_end_in_another_token_than_eos(tmp_path, tokenizer):
    """As LLaDA's does: it belongs to the response."""
    tokenizer.chat_template = TEMPLATE.replace("[EOS]", "w39")
    assert loaded(tokenizer, tmp_path, [{"messages": chat("w6", "w7")}])[0]["response_ids"] == [7, 39]


def test_a_template_that_changes_what_came_before(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ messages | length }} {{ messages[-1]['content'] }}"
    tokenizer.add_tokens(["1", "2"])
    assert loaded(tokenizer, tmp_path, [{"messages": chat("w6", "w7")}])[0]["response_ids"] == [7]


def test_conversations_need_a_template(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="must have a chat template for the conversations in column 'messages'"):
        loaded(tokenizer, tmp_path, [{"messages": chat("w6", "w7")}])


def test_a_tokenizer_without_eos(tmp_path, caplog):
    """BERT's have a separator, which ends the responses, and that is said; one with neither is refused."""
    bert = tiny_tokenizer(eos_token=None, sep_token="[EOS]")
    assert loaded(bert, tmp_path, rows_of())[0]["response_ids"] == [7, 8]
    assert bert.eos_token_id == EOS
    assert "the tokenizer has no EOS token: responses end with its separator [EOS]" in caplog.text
    with pytest.raises(ValueError, match="tokenizer must have an EOS token, by which a response ends, got None"):
        loaded(tiny_tokenizer(eos_token=None), tmp_path, rows_of())
    # a text to infill has no end to say
    texts = loaded(tiny_tokenizer(eos_token=None), tmp_path, [{"text": "w6 w7"}], task="infill")
    assert texts[0]["response_ids"] == [6, 7]


# ---- what is left out --------------------------------------------------------------------------------------------


def test_rows_that_are_left_out_are_named(tmp_path, tokenizer, caplog):
    tokenizer.chat_template = TEMPLATE
    good = [{"prompt": chat("w6"), "completion": chat("w6", "w7")[1:]} for _ in range(3)]
    said = {"role": "assistant", "content": "w7"}
    bad = [
        {"prompt": None, "completion": [said]},
        {"prompt": [], "completion": [said]},
        {"prompt": chat("w6"), "completion": None},
        {"prompt": chat("w6"), "completion": chat("w6")},
        {"prompt": chat("w6"), "completion": [said | {"content": " "}]},
        {"prompt": chat("w6"), "completion": [said | {"content": "w7 " * 20}]},
        {"prompt": chat("w6 " * 600), "completion": [said]},
        {"prompt": chat("w6"), "completion": [said | {"content": "w7 [MASK]"}]},
    ]
    assert len(loaded(tokenizer, tmp_path, good + bad)) == 3
    line = next(record.getMessage() for record in caplog.records if "own data" in record.getMessage())
    assert line.startswith("MOST ROWS ARE LOST. own data, test split: 3 of 11 rows are used; left out: ")
    for reason in (
        "1 with a null prompt (row 4)",
        "1 with an empty prompt (row 5)",
        "1 with a null response (row 6)",
        "1 whose last message is not the assistant's (row 7)",
        "1 with an empty response (row 8)",
        "1 with a response that is too long (row 9)",
        "1 with a prompt that is too long (row 10)",
        "1 with the mask token (row 11)",
    ):
        assert reason in line
    assert line.endswith("canvas_length is 8 (21 would hold 95 %), prompt_length is 512")


def test_cells_that_are_no_texts(tmp_path, tokenizer, caplog):
    rows = [*rows_of(2), {"prompt": "w6", "response": "  "}, {"prompt": "", "response": "w7"}]
    assert len(loaded(tokenizer, tmp_path, rows)) == 2
    assert "1 with an empty response (row 3); 1 with an empty prompt (row 4)" in caplog.text
    own = {"answer_column": "key"}
    rows = [{**row, "key": key} for row, key in zip(rows_of(3), ("w8", None, "w9"), strict=True)]
    assert loaded(tokenizer, tmp_path, rows, own=own)["answer"][:] == ["w8", "w9"]
    assert "1 with a null answer (row 2)" in caplog.text
    tokenizer.chat_template = TEMPLATE
    assert len(loaded(tokenizer, tmp_path, [{"messages": chat("w6", "w7")}, {"messages": []}])) == 1
    assert "1 without messages (row 2)" in caplog.text
    rows = [{"prompt": {"a": 1}, "response": "w7"}]
    with pytest.raises(ValueError, match=r"0 of 1 rows are used; left out: 1 with a prompt that is no text \(row 1\)"):
        loaded(tokenizer, tmp_path, rows)


def test_texts_that_are_held_out_are_not_filled_in_in_training(tmp_path, tokenizer):
    texts = [f"w5 w{5 + i % 20} w6 w{5 + i // 20}" for i in range(40)]
    rows = [{"text": text} for text in (*texts, *texts)]  # each twice: one of them may be held out
    file = write(tmp_path / "rows.jsonl", rows)
    splits = [load(tokenizer, "infill", split=split, train_file=file) for split in ("train", "validation", "test")]
    train, *others = ({tuple(ids) for ids in split["response_ids"]} for split in splits)
    assert len(train | others[0] | others[1]) == 40
    assert not train & (others[0] | others[1])


def test_infill_says_what_it_leaves_out(tmp_path, tokenizer, caplog):
    texts = ["w6 w7", None, " ", "w6", "w6 [MASK]", "w6 " * 9]
    assert len(loaded(tokenizer, tmp_path, [{"text": text} for text in texts], task="infill")) == 1
    for reason in ("null text (row 2)", "empty text (row 3)", "without a token to hide (row 4)", "token (row 5)"):
        assert reason in caplog.text
    assert "1 with a text that is too long (row 6). canvas_length is 8 (9 would hold 95 %)" in caplog.text


def test_nothing_is_left(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"but it is empty: own data, test split: 0 of 40 rows"):
        loaded(tokenizer, tmp_path, rows_of(), canvas_length=2)


def test_a_report_is_short_and_said_once(caplog, monkeypatch):
    assert report("data", ["", *["bad"] * 7], numbers=range(11, 19)) == [0]
    assert "data: 1 of 8 rows are used; left out: 7 bad (rows 12, 13, 14, 15, 16, ...)" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RANK", "1")  # another process says it
    assert report("data", ["", ""]) == [0, 1]
    assert caplog.text == ""


def test_rows_of_gsm8k_are_not_lost_in_silence(caplog):
    """A canvas that most solutions do not fit."""
    tokenizer = TASKS["equations"].tokenizer()
    solutions = ["<<1+1=2>>2\n#### 2", *["<<1+1=2>>2 and more words\n#### 2"] * 3]
    rows = [{"question": "1+1", "answer": solution} for solution in solutions]
    assert len(words([*rows, {"question": "1" * 600, "answer": solutions[0]}], tokenizer, canvas_length=12)) == 1
    expected = "MOST ROWS ARE LOST. GSM8K words: 1 of 5 rows are used; left out: 3 with a response that is too long "
    assert f"{expected}(rows 2, 3, 4); 1 with a prompt that is too long (row 5). canvas_length is 12" in caplog.text
    caplog.clear()
    assert len(equations(chains_of(rows)[0], tokenizer, canvas_length=12)) == 4
    assert caplog.text == ""
    with pytest.raises(ValueError, match=r"GSM8K equations: 0 of 4 rows are used"):
        equations(chains_of(rows)[0], tokenizer, canvas_length=3)


# ---- infilling ---------------------------------------------------------------------------------------------------


def test_what_is_hidden(tmp_path):
    tokenizer = tiny_tokenizer(cls_token="[BOS]", sep_token="[EOS]")
    text = " ".join(f"w{i}" for i in range(6, 26))
    for share, count in ((0.5, 10), (0.01, 1), (1.0, 19)):  # never the first token
        (row,) = loaded(
            tokenizer, tmp_path, [{"text": text}], task="infill", canvas_length=32, own={"hidden_share": share}
        )
        assert row["given"].count(False) == count
        assert row["given"][0]
        assert len(row["given"]) == len(row["response_ids"]) == 20
    rows = [{"text": text}, {"text": text + " w27"}]
    one, other = loaded(tokenizer, tmp_path, rows, task="infill", canvas_length=32)["given"][:]
    assert one != other[:20]
    # what is hidden hangs on the text, not on its place
    assert loaded(tokenizer, tmp_path, rows[::-1], task="infill", canvas_length=32)["given"][1] == one
    with pytest.raises(ValueError, match=r"hidden_share must be in \(0, 1\], got 0"):
        loaded(tokenizer, tmp_path, rows, task="infill", own={"hidden_share": 0})


def test_recovery_is_of_what_was_hidden():
    row = {"text": "", "expected": [6, 7, 8, 9], "answer": ""}
    given = [True, False, False, True]
    assert TASKS["infill"].score(Response(ids=[6, 7, MASK, 9], given=given, **row)) == 0.5
    assert TASKS["infill"].score(Response(ids=[6, 7, 8, 10], given=None, **row)) == 0.75


# ---- one's own task ----------------------------------------------------------------------------------------------

OWN = """
from datasets import Dataset
from hf_learned_order.tasks.table import Task

def load(tokenizer, source):
    rows = [{"prompt_ids": [6], "response_ids": [7, HELPER], "answer": "w7", "length": 3}]
    return Dataset.from_list(rows)

HELPER = 8
MINE = Task(load=load, is_right=lambda text, answer: helped(text) == answer, canvas_length=4)
OTHER = 3

def helped(text):
    return text[:2]
"""


def test_a_task_of_ones_own(tmp_path, tokenizer):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    task = find_task(f"{file}:MINE")
    assert isinstance(task, Task)
    assert task.is_right("w7 w8", "w7")
    assert task.load(tokenizer, Source(split="test", canvas_length=4))[0]["response_ids"] == [7, 8]
    with pytest.raises(ValueError, match=r"task must name a Task in .*mine.py, but OTHER is int"):
        find_task(f"{file}:OTHER")
    with pytest.raises(ValueError, match=r"task must name a Task in .*mine.py, but NONE is NoneType"):
        find_task(f"{file}:NONE")
    with pytest.raises(ValueError, match=r"or path/to/file.py:NAME, got 'chess'"):
        find_task("chess")
    with pytest.raises(OSError, match=r"nowhere.py"):
        find_task(f"{tmp_path / 'nowhere.py'}:MINE")
