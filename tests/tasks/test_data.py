import json

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_learned_order.tasks.data import HELD_OUT, equation_tokenizer, equations, load_gsm8k, resampled_equations, words
from hf_learned_order.tasks.gsm8k import ALPHABET, parse_chain

CHAINS = [
    parse_chain("<<16-3-4=9>> <<9*2=18>> #### 18"),
    parse_chain("<<20/100*60=12>> <<60-12=48>> #### 48"),
    parse_chain("<<1.5*4=6>> #### 6"),
]
ROWS = [
    {"question": "How many?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
    {"question": "How much in all?", "answer": "Half of $9 is $<<9/2=4.5>>4.5, so <<4.5+1000=1004.5>>.\n#### 1,004.5"},
]
EMPTY = "the data set must hold at least one row that fits the canvas, but it is empty"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` caches what it generates: not in the user's home, and not from one test to the next."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


def byte_tokenizer(**kwargs):
    """Any text, one token a byte."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", **kwargs)


# ---- the equations' tokenizer ------------------------------------------------------------------------------------


def test_tokenizer_round_trip(tokenizer):
    ids = tokenizer(ALPHABET, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(set(ids)) == len(ALPHABET)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == ALPHABET


def test_a_prompt_ends_in_sep_and_special_tokens_can_be_skipped(tokenizer):
    ids = tokenizer("16-3-4;a*2")["input_ids"]
    assert ids[-1] == tokenizer.sep_token_id
    assert ids.count(tokenizer.sep_token_id) == 1
    assert (
        tokenizer.decode([*ids, tokenizer.mask_token_id, tokenizer.eos_token_id], skip_special_tokens=True)
        == "16-3-4;a*2"
    )


def test_prompts_are_padded_left(tokenizer):
    batch = tokenizer(["1+1", "12+34"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert batch["input_ids"][0][:2] == [tokenizer.pad_token_id] * 2


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.padding_side == "left"
    for chain in CHAINS:
        prompt, response = chain.texts()
        assert loaded([prompt])["input_ids"] == tokenizer([prompt])["input_ids"]
        assert loaded.decode(tokenizer(response, add_special_tokens=False)["input_ids"]) == response


# ---- equations ---------------------------------------------------------------------------------------------------


def test_equations_are_the_chains_as_they_are(tokenizer):
    dataset = equations(CHAINS, tokenizer, canvas_length=64)
    assert sorted(dataset.column_names) == ["answer", "length", "prompt_ids", "response_ids"]
    for row, chain in zip(dataset, CHAINS, strict=True):
        prompt, response = chain.texts()
        assert tokenizer.decode(row["prompt_ids"]) == f"{prompt}[SEP]"
        assert tokenizer.decode(row["response_ids"]) == response
        assert row["length"] == len(prompt) + 1 + len(response)
    assert dataset["answer"][:] == ["18", "48", "6"]


def test_equations_leave_room_for_one_eos(tokenizer):
    longest = max(len(chain.texts()[1]) for chain in CHAINS)
    assert len(equations(CHAINS, tokenizer, canvas_length=longest + 1)) == 3
    assert len(equations(CHAINS, tokenizer, canvas_length=longest)) == 2


@pytest.mark.parametrize("chains", [[], CHAINS])
def test_equations_without_rows(tokenizer, chains):
    with pytest.raises(ValueError, match=EMPTY):
        equations(chains, tokenizer, canvas_length=5)


def test_resampled_equations_are_set_by_the_seed(tokenizer, tmp_path, monkeypatch):
    def draw(seed, cache):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / cache)
        return list(resampled_equations(CHAINS, tokenizer, canvas_length=24, count=30, seed=seed))

    first, again, other = draw(1, "a"), draw(1, "b"), draw(2, "c")
    assert first == again
    assert first != other
    assert len(first) == 30
    assert max(len(row["response_ids"]) for row in first) < 24
    assert len({tuple(row["prompt_ids"]) for row in first}) > 8


@pytest.mark.parametrize("chains", [[], CHAINS])
def test_resampled_equations_without_rows(tokenizer, chains):
    """Also when no chain fits the canvas, where drawing until one does would never end."""
    with pytest.raises(ValueError, match=EMPTY):
        resampled_equations(chains, tokenizer, canvas_length=5, count=3, seed=0)


# ---- words -------------------------------------------------------------------------------------------------------


def test_words_without_a_chat_template():
    tokenizer = byte_tokenizer()
    dataset = words(ROWS, tokenizer, canvas_length=100)
    assert [tokenizer.decode(ids) for ids in dataset["prompt_ids"]] == [row["question"] for row in ROWS]
    assert [tokenizer.decode(ids) for ids in dataset["response_ids"]] == [
        "It is 1+1=2.\n#### 2",
        "Half of $9 is $4.5, so .\n#### 1,004.5",
    ]
    assert dataset["answer"][:] == ["2", "1004.5"]


def test_words_with_a_chat_template():
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    tokenizer = byte_tokenizer(chat_template=template)
    dataset = words(ROWS, tokenizer, canvas_length=100)
    assert tokenizer.decode(dataset[0]["prompt_ids"]) == "[user]How many?[bot]"
    assert tokenizer.decode(dataset[0]["response_ids"]) == "It is 1+1=2.\n#### 2"


def test_words_that_do_not_fit_are_left_out():
    tokenizer = byte_tokenizer()
    assert words(ROWS, tokenizer, canvas_length=20)["answer"][:] == ["2"]  # 19 bytes and one EOS
    assert words(ROWS, tokenizer, canvas_length=100, prompt_length=9)["answer"][:] == ["2"]
    for limits in ({"canvas_length": 19}, {"canvas_length": 100, "prompt_length": 8}):
        with pytest.raises(ValueError, match=EMPTY):
            words(ROWS, tokenizer, **limits)


# ---- loading -----------------------------------------------------------------------------------------------------


def problems(folder, name, count):
    rows = [{"question": f"{name} {i}", "answer": f"#### {i}"} for i in range(count)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def test_held_out_rows_are_the_last_of_the_training_split(tmp_path):
    path, rows = problems(tmp_path, "train", HELD_OUT + 3)
    splits = load_gsm8k(train_file=path)
    assert sorted(splits) == ["train", "validation"]
    assert splits["train"] == rows[:3]
    assert splits["validation"] == rows[3:]


def test_a_test_file_alone(tmp_path):
    path, rows = problems(tmp_path, "test", 2)
    assert load_gsm8k(test_file=path) == {"test": rows}


def test_a_data_set_by_name_gives_the_same_rows(tmp_path):
    (tmp_path / "gsm").mkdir()
    train, _ = problems(tmp_path / "gsm", "train", HELD_OUT + 3)
    test, _ = problems(tmp_path / "gsm", "test", 2)
    assert load_gsm8k(dataset_name=str(tmp_path / "gsm")) == load_gsm8k(train_file=train, test_file=test)


def test_too_small_a_training_split(tmp_path):
    path, _ = problems(tmp_path, "train", HELD_OUT)
    with pytest.raises(ValueError, match="the training split must have more than 400 rows, got 400"):
        load_gsm8k(train_file=path)


def test_no_source():
    with pytest.raises(ValueError, match="dataset_name or train_file/test_file must be given, but all are None"):
        load_gsm8k()


def test_a_broken_file_names_the_line(tmp_path):
    path, _ = problems(tmp_path, "test", 2)
    path.write_text(path.read_text() + "oops\n")
    with pytest.raises(ValueError, match=r"test.jsonl, line 3: not a JSON object"):
        load_gsm8k(test_file=path)
