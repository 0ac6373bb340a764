"""The text of a card: what it says of the scorer, and values that try to be markup."""

import ast
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from hf_learned_order.common.files import fingerprint
from hf_learned_order.evaluation.results import Result
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.sharing import cards
from hf_learned_order.sharing.cards import MARK, Card, card_files
from hf_learned_order.sharing.markdown import code, fenced, hub_link, plain
from hf_learned_order.training.objectives import table

WEIGHTS = {"w": torch.zeros(3)}
HOSTILE = [
    "<script>alert(1)</script>",
    "</code></td></table><img src=x onerror=alert(1)>",
    "a | b |\n|---|\n| c",
    "\\| a \\`| b",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "`` ` ``` ``",
    "x\n\n```\n\n# Heading\n\n```sh\nrm -rf /",
    "x\n````\n</pre>\n# Heading",
    "~~~\nx\n~~~",
    "1. one\n- two\n> three",
    "**bold** __bold__ ~~gone~~ $x$",
    "&lt;b&gt; &#60;b&#62;",
    "---\ntags: [mine]\n---\n# Heading",
    MARK,
    "{{ repo_id }} {% raw %}",
    "\u202egnp.exe\x1b[31m\0",
]


def made(tmp_path, base: str, word: str, *, config: dict | None = None) -> str:
    """The card of a scorer in which each field that is free text is `word`, and its denoiser `base`."""
    fields = {"base_model_name_or_path": base, "base_model_revision": word, **(config or {})}
    OrderScorerConfig(**fields).save_pretrained(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    training = {"objective": word, "learning_rate": word, "seed": word, "canvas_length": 64}
    (tmp_path / "training_args.json").write_text(json.dumps(training))
    promise = {**dict.fromkeys(("risk", "confidence", "against", "bad", "prompts", "task"), word), "nfe": 4.0}
    generation = {"max_new_tokens": word, "max_denoising_steps": word, "guarantees": {word: promise}}
    generation |= {"do_sample": True, "temperature": word}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    shape = {"budget": 5, "nfe": 4.0, "nfe_min": 1, "nfe_max": 9, "bound": None, "count": 40, "target": 4.0}
    rows = [
        Result(sampler="learned_order", setting=word, accuracy=0.5, **shape),
        Result(sampler=word, setting=word, accuracy=0.25, **shape),
    ]
    (tmp_path / "results.json").write_text(json.dumps([asdict(row) for row in rows]))
    settings = {"command": ["evaluate", word], "torch": word, "device": word, "dataset_name": word}
    settings["scorer_weights"] = [fingerprint(WEIGHTS)]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    card = Card(
        results=tmp_path / "results.json",
        task=word,
        data=word,
        command=word,
        seeds=(word,),
        limits=word,
        license="mit",
        prompt=word,
    )
    return card_files(tmp_path, "user/scorer", card)["README.md"].decode()


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, markdown: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, ()))

    def handle_comment(self, data):
        self.tags.append(("comment", (data,)))

    def handle_data(self, data):
        self.texts.append(data)


def body(text: str) -> str:
    return ModelCard(text).text


@pytest.mark.parametrize("word", HOSTILE)
def test_no_value_is_markup(tmp_path, word):
    """The page has the elements that it has with a harmless value, and shows the value."""
    tame, wild = (made(tmp_path, "no/name/of/the hub", value) for value in ("a word", word))
    assert Page(body(wild)).tags == Page(body(tame)).tags
    shown = " ".join("".join(one if one.isprintable() else "\ufffd" for one in " ".join(word.split())).split())
    assert "".join(Page(body(wild)).texts).count(shown) >= 10
    assert ModelCard(wild).data.to_dict().keys() == ModelCard(tame).data.to_dict().keys()
    assert ModelCard(wild).data.tags == ModelCard(tame).data.tags
    assert wild.endswith(MARK)


@pytest.mark.parametrize("base", HOSTILE)
def test_no_denoiser_is_markup(tmp_path, base):
    tame, wild = (made(tmp_path, value, "a word") for value in ("no/name/of/the hub", base))
    assert Page(body(wild)).tags == Page(body(tame)).tags
    assert ModelCard(wild).data.base_model is None


@pytest.mark.parametrize("word", HOSTILE)
def test_code_of_the_card_stays_code(tmp_path, word):
    """Its strings are the values: none ends a string or the block."""
    text = made(tmp_path, word, word)
    (block,) = re.findall(r"```python\n(.*?)\n```\n", text, re.DOTALL)
    strings = [node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)]
    assert strings.count(word) == 7  # tokenizer, denoiser, revision, prompt, three numbers that are none


def test_a_denoiser_of_the_hub_is_linked(tmp_path):
    text = made(tmp_path, "GSAI-ML/LLaDA-8B-Instruct", "main")
    assert "[`GSAI-ML/LLaDA-8B-Instruct`](https://huggingface.co/GSAI-ML/LLaDA-8B-Instruct), revision `main`" in text
    assert ModelCard(text).data.base_model == "GSAI-ML/LLaDA-8B-Instruct"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "the last"),
        ({"hidden_layers": [0, 3, -1]}, "the embeddings, `hidden_states[3]`, the last"),
        ({"denoiser_hidden_size": 0}, "none, predictions alone"),
    ],
)
def test_hidden_states_seen(tmp_path, config, said):
    assert f"| hidden states seen | {said} |" in made(tmp_path, "user/base", "x", config=config)


def test_every_objective_is_put_into_words():
    assert cards.OBJECTIVES.keys() == table.OBJECTIVES.keys()
    assert cards.OBJECTIVE_OF == table.DEFAULTS


@pytest.mark.parametrize("objective", table.OBJECTIVES)
def test_settings_of_an_objective(objective):
    arguments = {"num_chains": 4, "max_denoising_steps": 9}
    shown = set(cards.training_facts(arguments, objective).values())
    assert shown == {value for name, value in arguments.items() if name in table.settings_of(objective)}


def test_a_broken_configuration_is_refused(tmp_path):
    made(tmp_path, "user/base", "x")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": "<b>"}))
    with pytest.raises(TypeError, match="vocab_size must be of type int, got '<b>'"):
        card_files(tmp_path, "user/scorer", Card())


def test_plain_values_stay_legible():
    assert plain("GSM8K, 12 % (train-split)") == "GSM8K, 12 % (train-split)"
    assert (code("user/base"), code(""), code("a|b")) == ("`user/base`", "", "<code>a&#124;b</code>")
    assert hub_link("user/base") == "[`user/base`](https://huggingface.co/user/base)"
    assert hub_link("user/../x") == "`user/../x`"
    assert fenced("a ```\nb", "sh") == "````sh\na ```\nb\n````"
