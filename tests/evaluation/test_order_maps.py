"""What an order map holds, in the terminal, and as a page in a browser."""

import io
import json
import re
from itertools import pairwise

import pytest
import torch
from files import equation_model, scorer_of
from rich.console import Console

from hf_learned_order.evaluation.order_maps import OrderMap, in_words, ink, page, palette, show, visible
from hf_learned_order.interface.attach import attach
from hf_learned_order.tasks.data import equation_tokenizer

PROMPTS = ["16-3;a*2", "1+1"]


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = equation_model()
    return attach(model, scorer=scorer_of(model), mask_token_id=model.config.mask_token_id)


def decoded(model, tokenizer, text=PROMPTS, **options):
    inputs = tokenizer(text, return_tensors="pt", padding=True)
    return model.generate(**inputs, return_dict_in_generate=True, **{"sampler": "threshold", **options})


def map_of(label="rule", tokens=("a", "b", "c"), order=(1, 3, 2), confidence=(0.25, 1.0, 0.5), **options):
    shown = {"tokens": list(tokens), "order": list(order), "confidence": list(confidence)}
    return OrderMap(label=label, **shown, **{"prompt": "?", "nfe": 3, **options})


# ---- what it holds -----------------------------------------------------------------------------------------------


def test_of_a_batch(model, tokenizer):
    output = decoded(model, tokenizer, sampler="learned_order", max_new_tokens=12, eos_token_id=[], seed=0)
    maps = OrderMap.of(output, tokenizer, label="learned")
    assert [one.prompt for one in maps] == PROMPTS
    for row, one in enumerate(maps):
        assert (one.label, one.nfe) == ("learned", int(output.nfe[row]))
        assert one.order == output.order[row].tolist()
        assert max(one.order) == one.nfe
        assert one.tokens == [tokenizer.decode([token]) for token in output.sequences[row, -12:].tolist()]
        assert one.confidence == pytest.approx(output.token_log_probs[row].exp().tolist())
        assert 0 < min(one.confidence) < max(one.confidence) <= 1


def test_confidence_is_what_the_denoiser_said_at_that_step(model, tokenizer):
    output = decoded(model, tokenizer, "1+1", sampler="left_to_right", max_new_tokens=3, eos_token_id=[])
    (one,) = OrderMap.of(output, tokenizer)
    ids = output.sequences
    for place in range(3):
        canvas = ids.clone()
        canvas[:, ids.shape[1] - 3 + place :] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=canvas).logits[0, place - 3].float()
        logits[tokenizer.mask_token_id] = -torch.inf
        assert one.confidence[place] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)


def test_what_follows_the_end_is_left_out(model, tokenizer):
    """Whatever ends the response, also where the padding is the same token."""
    free = decoded(model, tokenizer, "1+1", max_new_tokens=12, eos_token_id=[])
    end = int(free.sequences[0, -5])
    for padding in (tokenizer.pad_token_id, end):
        output = decoded(model, tokenizer, "1+1", max_new_tokens=12, eos_token_id=end, pad_token_id=padding)
        (one,) = OrderMap.of(output, tokenizer)
        length = output.sequences[0, -12:].tolist().index(end) + 1
        assert length < 12
        assert len(one.tokens) == len(one.order) == len(one.confidence) == length
        assert one.tokens[-1] == tokenizer.decode([end])
        assert min(one.order) > 0


def test_infilling(model, tokenizer):
    ids = tokenizer(["1+1=2", "3"], return_tensors="pt", padding=True, padding_side="left")
    ids["input_ids"][:, -2] = tokenizer.mask_token_id  # behind the prompt stands a separator
    ids["input_ids"][0, 2] = tokenizer.mask_token_id
    output = model.generate(**ids, sampler="top_prob", infill=True, return_dict_in_generate=True)
    first, second = OrderMap.of(output, tokenizer)
    assert first.prompt == second.prompt == ""
    assert (first.order, second.order) == (output.order[0].tolist(), [1, 0])  # no padding
    assert sorted(first.order) == [0, 0, 0, 0, 1, 2]
    assert 0 not in (first.order[2], first.order[-2])
    assert first.tokens[0] == "1"
    assert "".join(first.tokens) == tokenizer.decode(output.sequences[0])
    for one in (first, second):
        assert [step == 0 for step in one.order] == [number == 1.0 for number in one.confidence]


def test_no_order(model, tokenizer):
    output = decoded(model, tokenizer, max_new_tokens=4, output_order=False)
    with pytest.raises(
        ValueError, match=r"output must hold an order, got one of generate\(\.\.\., output_order=False\)"
    ):
        OrderMap.of(output, tokenizer)


def test_colours():
    assert palette(1) == ["#fde725"]
    assert palette(5) == ["#fde725", "#82d350", "#1ea087", "#2d70b4", "#6e3aa0"]
    assert palette(9)[1] == "#c0dd3a"  # half way between the first two
    assert [ink(step, 5) for step in range(1, 6)] == ["black"] * 3 + ["white"] * 2


def luminance(colour: str) -> float:
    """WCAG 2.2, of `#rrggbb`."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_told_apart():
    """Each is darker than the one before it, legible under its ink, and no black on a dark page."""
    for steps in (3, 5, 9):
        bright = [luminance(colour) for colour in palette(steps)]
        assert all((a + 0.05) / (b + 0.05) > 1.1 for a, b in pairwise(bright))
        assert bright[-1] + 0.05 > 2 * (luminance("#121212") + 0.05)
        for step, light in enumerate(bright, 1):
            contrast = (light + 0.05) / 0.05 if ink(step, steps) == "black" else 1.05 / (light + 0.05)
            assert contrast >= 4.5


# ---- what is right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "marks"),
    [
        ("1+1=2", "       "),
        ("1+1=3", "    x "),
        ("1+2=2", "  x   "),
        ("1+=2", "  x   "),
        ("1+11=2", "  x   "),  # one is missing
        ("1+1=22", "     x"),  # it ended too early
        ("", "xxxxx "),
    ],
)
def test_wrong_tokens(model, tokenizer, right, marks):
    """Against `1+1=2` and its EOS."""
    output = decoded(model, tokenizer, "1+1", max_new_tokens=6, eos_token_id=[])
    output.sequences[0, -6:] = torch.tensor([*tokenizer("1+1=2", add_special_tokens=False).input_ids, 2])
    assert tokenizer.eos_token_id == 2
    expected = tokenizer([right], add_special_tokens=False).input_ids
    (one,) = OrderMap.of(output, tokenizer, expected=expected)
    assert one.wrong == [mark == "x" for mark in marks[:6]]
    (unknown,) = OrderMap.of(output, tokenizer)
    assert unknown.wrong is None
    with pytest.raises(ValueError, match="expected must have one response for each row, got 0 for 1"):
        OrderMap.of(output, tokenizer, expected=[])


def test_in_words():
    right, wrong, worse = ([False] * 3, [False, True, False], [True, True, False])
    assert in_words([map_of()]) == "rule needs 3 denoiser calls."
    assert in_words([map_of(""), map_of("other", nfe=6)]) == "needs 3 denoiser calls; other needs 6 denoiser calls."
    two = [map_of(wrong=right), map_of("b", nfe=6, wrong=wrong), map_of("c", nfe=4, wrong=worse)]
    assert in_words(two) == (
        "rule needs 3 denoiser calls and is right; b needs 6 denoiser calls and gets 1 token wrong; "
        "c needs 4 denoiser calls and gets 2 tokens wrong."
    )
    several = [map_of(nfe=3, wrong=right), map_of(nfe=4, wrong=wrong)]
    assert in_words(several) == "rule needs 3.5 denoiser calls on average and gets 1 of 2 responses right."
    assert in_words([several[0], map_of()]) == "rule needs 3 denoiser calls on average."


def test_nothing_to_show():
    for shown in (show, page):
        with pytest.raises(ValueError, match="maps must hold at least one OrderMap, but it is empty"):
            shown([])


def test_visible():
    assert visible("a b\n\t\r") == "a␣b↵→←"
    assert visible("\x1b[31m") == "\ufffd[31m"  # no commands for the terminal


# ---- in the terminal ---------------------------------------------------------------------------------------------


def printed(maps, *, width=40, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    show(maps, console)
    return console.file.getvalue()


def test_terminal():
    maps = [map_of(), map_of("other", ["x", "\n", "yz"], [2, 0, 1])]
    lines = [line.rstrip() for line in printed(maps).splitlines()]
    assert lines[:-2] == ["rule, 3 denoiser calls", "abc", "132", "other, 3 denoiser calls", "x↵yz", "2 1"]
    assert lines[-2:] == ["step   1  2  3", "rule needs 3 denoiser calls; other needs 3 denoiser calls."]


def test_terminal_marks_what_is_wrong():
    lines = [line.rstrip() for line in printed([map_of(wrong=[False, True, False])]).splitlines()]
    assert lines[1:3] == ["ab c", "13!2"]
    assert lines[-1] == "rule needs 3 denoiser calls and gets 1 token wrong."


def test_terminal_with_two_digits_and_wide_signs():
    lines = printed([map_of(tokens=["a", "字", "[x]"], order=[10, 2, 11], label="")]).splitlines()
    assert [line.rstrip() for line in lines[:3]] == ["3 denoiser calls", "a  字 [x]", "10 2  11"]


@pytest.mark.parametrize("width", [1, 7, 20, 21])
def test_terminal_breaks_lines(width):
    text, numbers = "The quick brown fox.", "12345678912345678912"
    lines = printed([map_of(tokens=text, order=map(int, numbers), label="")], width=width).splitlines()[1:-1]
    assert max(map(len, lines)) == min(width, 20)
    assert ("".join(lines[::2]), "".join(lines[1::2])) == (text.replace(" ", "␣"), numbers)


def test_terminal_colours():
    text = printed([map_of()], color_system="truecolor", force_terminal=True)
    light, middle, dark = (";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in palette(3))
    assert re.findall(r"48;2;([\d;]+)m([abc])", text) == [(light, "a"), (dark, "b"), (middle, "c")]


# ---- as a page ---------------------------------------------------------------------------------------------------

HOSTILE = ["</script><script>document.title='x'</script>", "<b>", "&amp;", "\n", "DATA", "é字"]


def opened(web, tmp_path, maps, **options):
    file = tmp_path / "map.html"
    file.write_text(page(maps, **options), encoding="utf-8")
    web.goto(file.as_uri())
    return web


def texts(web, number: int) -> list[str]:
    return web.locator("section").nth(number).locator(".token").all_text_contents()


def test_page_in_a_browser(web, tmp_path):
    """The slider goes through the steps in both maps; hovering tells confidence, but not of what is masked."""
    maps = [map_of(), map_of("other", ["x", " "], [2, 1], [0.125, 0.75], nfe=2)]
    opened(web, tmp_path, maps, title="Two rules", play=False)
    assert web.title() == web.locator("h1").text_content() == "Two rules"
    assert web.locator("h2").all_text_contents() == ["rule", "other"]
    boxes = [web.locator("section").nth(number).bounding_box() for number in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]  # side by side
    assert (texts(web, 0), texts(web, 1)) == (["a", "·", "·"], ["·", "␣"])  # at step 1
    assert web.locator("#words").text_content() == "rule needs 3 denoiser calls; other needs 2 denoiser calls."
    assert web.locator("#legend > *").all_text_contents() == ["step", "1", "2", "3"]
    slider, tip = web.get_by_role("slider", name="Step"), web.get_by_role("tooltip")
    seen = {}
    for step in range(4):
        slider.fill(str(step))
        seen[step] = (texts(web, 0), texts(web, 1))
    assert seen[0] == (["·", "·", "·"], ["·", "·"])
    assert seen[1] == (["a", "·", "·"], ["·", "␣"])
    assert seen[2] == (["a", "·", "c"], ["x", "␣"])
    assert seen[3] == (["a", "b", "c"], ["x", "␣"])
    slider.press("ArrowLeft")
    assert texts(web, 0) == ["a", "·", "c"]
    assert web.locator(".now").all_text_contents() == ["c", "x"]
    assert web.locator(".count").all_text_contents() == [
        "2 of 3 tokens, 3 denoiser calls in all",
        "2 of 2 tokens, 2 denoiser calls in all",
    ]
    web.locator(".token").nth(2).hover()
    assert tip.text_content() == '"c"\nstep 2, confidence 0.500'
    web.locator(".token").nth(1).hover()
    assert tip.text_content() == "masked"
    web.locator("h1").hover()
    assert tip.count() == 0  # hidden
    colours = web.locator(".token").evaluate_all("all => all.map(one => one.style.backgroundColor)")
    light, middle, _ = ("rgb({}, {}, {})".format(*(int(c[i : i + 2], 16) for i in (1, 3, 5))) for c in palette(3))
    assert colours == [light, "", middle, middle, light]


def test_page_marks_what_is_wrong_as_soon_as_it_is_there(web, tmp_path):
    maps = [map_of(wrong=[False, True, False]), map_of("unknown")]
    opened(web, tmp_path, maps, play=False)
    wrong, count = web.locator("section .wrong"), web.locator(".count")
    assert web.locator("#legend .key").text_content() == "wrong token"
    assert (wrong.count(), count.first.text_content()) == (0, "1 of 3 tokens, 0 wrong, 3 denoiser calls in all")
    web.get_by_role("slider", name="Step").fill("3")
    assert wrong.all_text_contents() == ["b"]
    assert count.all_text_contents() == [
        "3 of 3 tokens, 1 wrong, 3 denoiser calls in all",
        "3 of 3 tokens, 3 denoiser calls in all",
    ]
    wrong.hover()
    assert web.get_by_role("tooltip").text_content() == '"b"\nstep 3, confidence 1.000\nwrong'


@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_its_window(web, tmp_path, width):
    web.set_viewport_size({"width": width, "height": 700})
    opened(web, tmp_path, [map_of(tokens="abcdefghij" * 5, order=range(1, 51), confidence=[1.0] * 50)] * 2)
    assert web.evaluate("document.documentElement.scrollWidth") <= width


def test_page_does_not_play_for_who_wants_less_motion(web, tmp_path):
    web.emulate_media(reduced_motion="reduce")
    opened(web, tmp_path, [map_of()])
    assert web.get_by_role("button", name="Play").count() == 1
    assert web.locator("output").text_content() == "1 of 3"


def test_page_plays(web, tmp_path):
    maps = [map_of(tokens="abcdefghij", order=range(1, 11), confidence=[1.0] * 10)]
    web.clock.install(time=0)
    web.clock.pause_at(1000)
    opened(web, tmp_path, maps)
    web.clock.run_for(1900)  # 0.6 s a step
    assert "".join(texts(web, 0)) == "abc·······"
    web.get_by_role("button", name="Pause").click()
    web.clock.run_for(3000)
    assert "".join(texts(web, 0)) == "abc·······"
    web.get_by_role("button", name="Play").click()
    web.clock.run_for(7000)
    assert "".join(texts(web, 0)) == "abcdefghij"
    assert web.locator("output").text_content() == "10 of 10"
    web.get_by_role("button", name="Play").click()  # from the start again
    assert "".join(texts(web, 0)) == "··········"


def test_page_shows_any_token_as_it_is(web, tmp_path):
    maps = [map_of(HOSTILE[0], HOSTILE, [0, 1, 1, 1, 1, 1], [0.5] * 6, prompt=HOSTILE[0])]
    opened(web, tmp_path, maps, title=HOSTILE[0], play=False)
    assert web.title() == web.locator("h1").text_content() == HOSTILE[0]
    assert web.locator(".prompt").text_content() == web.locator("h2").text_content() == HOSTILE[0]
    assert texts(web, 0) == [text.replace("\n", "↵") for text in HOSTILE]
    web.get_by_role("slider", name="Step").fill("0")
    assert texts(web, 0)[0] == HOSTILE[0]  # what was given is never masked
    web.locator(".token").first.hover()
    assert web.get_by_role("tooltip").text_content() == json.dumps(HOSTILE[0]) + "\ngiven"


def test_page_needs_nothing_else():
    text = page([map_of()])
    assert not re.search(r"(src|href|url|import)\s*[=(:]", text)
    assert "http://" not in text
    assert "https://" not in text
