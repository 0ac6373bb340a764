"""`examples/space` as it would stand on the Hub: assembled in a folder of its own, started, used in a browser."""

import asyncio
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from huggingface_hub import RepoCard

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


@pytest.fixture(scope="module")
def space(tmp_path_factory, browser):
    """The address of the running app; `browser` first, because without one there is nothing to test."""
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[space]'")
    folder = tmp_path_factory.mktemp("space") / "app"
    shutil.copytree(SPACE, folder)
    for source in (ROOT / "examples" / "denoiser", ROOT / "examples" / "scorer-0", ROOT / "hf_learned_order"):
        shutil.copytree(source, folder / source.name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    log = folder / "log"
    with open(log, "w") as file:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(3000):  # ten minutes: a loaded machine takes some to import all
            assert app.poll() is None, log.read_text()
            try:
                urlopen(address, timeout=10).close()
                break
            except URLError:
                time.sleep(0.2)
        else:
            raise TimeoutError(log.read_text())
        yield address
    finally:
        app.terminate()
        app.wait(20)


# keeps every text that the live canvas has had
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const text = [...document.querySelectorAll(".canvas")].map(one => one.innerText).join("\\n\\n");
    if (text && window.seen.at(-1) !== text) window.seen.push(text);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_space_in_a_browser(space, web):
    web.goto(space)
    web.evaluate(WATCH)
    web.get_by_label("Prompt").fill("24/2;24+a")
    web.get_by_label("Rule to compare with").click()
    web.get_by_role("option", name="left_to_right").click()
    web.get_by_role("spinbutton").fill("9")  # 8, 7 and 7 of the 64 positions, and the EOS is the 21st
    web.get_by_role("button", name="Decode").click()
    results = web.locator("#results")
    results.get_by_text("learned_order").wait_for()
    rule, learned = results.inner_text().strip().split("\n\n")
    assert re.fullmatch(r"left_to_right: 24/2=12 24\+12=36 #36, 3 denoiser calls, \d+ ms", rule)
    assert re.fullmatch(r"learned_order: 24/2=12 24\+12=36 #36, [1-9] denoiser calls, \d+ ms", learned)
    seen = web.evaluate("window.seen")
    masks = [text.count("·") for text in seen if text.startswith("left_to_right") and "learned_order" not in text]
    assert masks == [64, 56, 49, 0]
    last = [text.split("\n\n")[-1] for text in seen if "learned_order" in text]
    assert last[0].split("\n") == ["learned_order", 64 * "·"]
    assert last[1].startswith("learned_order, step 1\n")
    assert 0 < last[1].count("·") < 64
    assert last[-1].split("\n") == ["learned_order", "24/2=12␣24+12=36␣#36[EOS]"]
    assert '"play": true' in web.locator("iframe").get_attribute("srcdoc")
    maps = web.frame_locator("iframe[title='Order maps']")
    assert maps.locator("h2").all_text_contents() == ["left_to_right", "learned_order"]
    maps.get_by_role("button", name="Play").wait_for()  # it has played to its end
    for number, text in enumerate((rule, learned)):
        filled = "".join(maps.locator("section").nth(number).locator(".token").all_text_contents())
        assert filled == "24/2=12␣24+12=36␣#36[EOS]"
        count = maps.locator(".count").nth(number).text_content()
        assert re.search("[0-9] denoiser calls", text)[0] in count


def run_app() -> dict[str, Any]:
    """What the app's file defines, run inside an event loop: without one, gradio opens some and leaves them open.

    In a thread, because playwright's loop runs in this one for as long as there is a browser.
    """
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[space]'")

    async def run() -> dict[str, Any]:
        return runpy.run_path(str(SPACE / "app.py"))

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()


def test_each_step_is_shown_before_the_next_one_is_decoded(monkeypatch):
    app = run_app()
    monkeypatch.setitem(app["compare"].__globals__, "PAUSE", 0.0)
    allowed, calls = threading.Semaphore(0), []

    def wait(*_):
        assert allowed.acquire(timeout=60)
        calls.append(1)

    app["model"].register_forward_pre_hook(wait)
    shown = app["compare"]("24/2;24+a", "left_to_right", 9)
    allowed.release(2)  # either is warmed by one call
    text, lines = next(shown)  # nothing has been decoded
    assert (text.count("·"), lines, len(calls)) == (64, "", 2)
    for step, left, new in ((1, 56, "24/2=12␣"), (2, 49, "24+12=3")):
        allowed.release()
        text, lines = next(shown)
        assert f"left_to_right, step {step}" in text
        assert (text.count("·"), lines, len(calls)) == (left, "", 2 + step)
        assert "".join(re.findall("<mark>(.*?)</mark>", text)) == new
    allowed.release(100)
    *_, (text, lines) = shown
    assert text.startswith("<iframe")
    assert "3 denoiser calls" in lines


def test_rules_differ_on_the_first_example():
    """The one that a visitor sees first: the learned order is right with fewer calls, top probability is wrong."""
    app = run_app()
    app["compare"].__globals__["PAUSE"] = 0.0
    *_, (frame, lines) = app["compare"](next(iter(app["EXAMPLES"])), "top_prob", 6)
    assert re.fullmatch(
        r"\*\*top_prob\*\*: `.* #20`, 6 denoiser calls, \d+ ms\n\n"
        r"\*\*learned_order\*\*: `.* #22`, [1-5] denoiser calls, \d+ ms",
        lines,
    )
    assert "learned_order needs 3 denoiser calls and is right" in frame
    assert "top_prob needs 6 denoiser calls and gets 1 token wrong" in frame


def test_an_error_of_the_decoding_ends_the_wait():
    app = run_app()
    with pytest.raises(ValueError, match="max_denoising_steps must be a positive integer, got 0"):
        list(app["compare"]("24/2", "left_to_right", 0))


REFUSED = {
    " ": "Calculation 1 is empty.",
    "2*3;": "Calculation 2 is empty.",
    "2&3": "Calculation 1 cannot have `&` in it.",
    "2*a": "Calculation 1 cannot have `a` in it.",
    "2*3;a*b": "Calculation 2 cannot have `b` in it.",
    "1;" * 12 + "1": "There are 13 calculations.",
    "`<b>": "Calculation 1 cannot have <code>&#60; &#62; &#96; b</code> in it.",
}


def test_prompts_that_are_refused():
    """Whatever was there is cleared, and the message says what is allowed."""
    app = run_app()
    for prompt, said in REFUSED.items():
        assert list(app["compare"](prompt, "top_prob", 6)) == [("", f"{said} {app['ALLOWED']}")]


def test_space_says_what_is_wrong(space, web):
    web.goto(space)
    web.get_by_role("button", name="Decode").click()
    web.locator("iframe").wait_for()
    web.get_by_label("Prompt").fill("What is 3 plus 4?")
    web.get_by_role("button", name="Decode").click()
    web.get_by_text("A prompt is one to 12 calculations").wait_for()
    assert web.locator("iframe").count() == 0


def test_front_matter():
    data = RepoCard.load(SPACE / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert data["sdk"] == "gradio"
    assert (SPACE / data["app_file"]).is_file()
    assert len(data["short_description"]) <= 60  # the Hub refuses more


def test_requirements_are_those_of_the_package():
    """The Space has the package's source, so pip does not bring what it needs."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (SPACE / "requirements.txt").read_text().splitlines() == project["dependencies"]
    (extra,) = project["optional-dependencies"]["space"]
    major = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])["sdk_version"].split(".")[0]
    assert extra == f"gradio>={major}"
