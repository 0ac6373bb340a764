"""Every fenced block of the README and the documentation is run, page by page, in a copy of the project.

A page is one program: its `python` blocks share their names, its `bash` blocks run between them, all in the order of
the page. A `text` block right behind one is what it prints. `user/...` is a repository of the Hub on this machine. What
cannot run says so, and why, in a comment above it: `<!-- not run: why -->`.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import train
import train_denoiser
from accelerate.commands.launch import launch_command_parser
from files import write_rows
from transformers.utils import logging

from hf_learned_order.cli import main as cli
from hf_learned_order.denoisers import families
from hf_learned_order.evaluation.plotting import trade_off
from hf_learned_order.evaluation.results import Result, save_results
from hf_learned_order.tasks.sources import OwnData
from hf_learned_order.training.arguments import OrderTrainingArguments
from hf_learned_order.training.scripts import ScriptParser

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")])
ELSEWHERE = {ROOT / "docs" / "publish.md"}  # tests/examples/test_publish.py runs it, from an empty folder
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; `prints` is the text block right behind it, `reason` why it is not run."""

    language: str
    code: str
    line: int
    reason: str | None
    prints: str | None = None


def blocks_of(text: str) -> list[Block]:
    blocks: list[Block] = []
    end = -1
    for match in FENCE.finditer(text):
        language, code, reason = match["language"], match["code"], match["reason"]
        if language == "text" and blocks and not text[end : match.start()].strip():
            last = blocks.pop()
            blocks.append(Block(**{**vars(last), "prints": code}))
        else:
            line = text.count("\n", 0, match.start("code")) + 1
            blocks.append(Block(language=language, code=code, line=line, reason=reason))
        end = match.end()
    return blocks


def run_page(page: Path, folder: Path) -> list[int]:
    """Runs the blocks of a page in `folder`; the lines of those that ran."""
    before = Path.cwd()
    os.chdir(folder)  # whatever a block writes, it writes there
    try:
        return run_blocks(page, folder)
    finally:
        os.chdir(before)


def run_blocks(page: Path, folder: Path) -> list[int]:
    names = {"__name__": "__main__"}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    lines = []
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.language == "text" or block.reason is not None:
            continue
        where = f"{page.name}, line {block.line}"
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{where}:\n{done.stdout}\n{done.stderr}"
            printed = done.stdout
        else:
            assert block.language == "python", f"{where}: must be python, bash or text, got {block.language!r}"
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, names)
            printed = output.getvalue()
        if block.prints is not None:
            printed = re.sub(r" +$", "", printed, flags=re.MULTILINE)
            assert printed == block.prints, f"{where}: printed\n{printed}"
        lines.append(block.line)
    return lines


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, with GSM8K where the README looks for it, and in `runs/` what earlier pages have made."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("docs") / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copytree(folder / "examples" / "scorer-0", folder / "runs" / "scorer")
    data = folder.parent / "shared" / "data" / "gsm8k"
    data.mkdir(parents=True)
    write_rows(data / "train.jsonl", 410, 0)
    write_rows(data / "test.jsonl", 12, 1)
    measured = {"nfe_min": 1, "nfe_max": 8, "bound": -8.0, "count": 4, "budget": 8, "target": 4.0}
    results = [
        Result(sampler=name, accuracy=accuracy, nfe=4.0, scores=[accuracy] * 4, **measured)
        for name, accuracy in (("learned_order", 0.5), ("iid", 0.25))
    ]
    save_results(results, folder / "runs" / "evaluation")
    trade_off(results, folder / "runs" / "evaluation" / "trade_off.png")
    yield folder
    logging.enable_progress_bar()


def run_here() -> list:
    """Pages whose blocks are run; one starts seven processes, each of which imports everything."""
    slow = ROOT / "docs" / "own_data.md"
    return [pytest.param(page, marks=pytest.mark.slow if page == slow else ()) for page in sorted({*PAGES} - ELSEWHERE)]


@pytest.mark.parametrize("page", run_here(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, project, hub, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    run_page(page, project)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_a_block(page):
    """No fence is missed by the pattern, and what is not run is something that could be."""
    text = page.read_text(encoding="utf-8")
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(FENCE.findall(text))
    assert text.count("<!-- not run") == sum(block.reason is not None for block in blocks_of(text))
    assert {block.language for block in blocks_of(text)} <= {"python", "bash", "text"}


SCRIPTS = {
    "examples/train.py": (train.ScriptArguments, OwnData, OrderTrainingArguments),
    "examples/train_denoiser.py": (
        train_denoiser.DenoiserArguments,
        OwnData,
        train_denoiser.DenoiserTrainingArguments,
    ),
}


def understood(command: list[str]) -> bool:
    """Whether this is our command line, or one of our scripts, with arguments that it takes."""
    if command[0] == "hf-learned-order":
        return cli.main(command[1:]) == 0
    if command[:2] != ["accelerate", "launch"]:
        return False
    launch = launch_command_parser().parse_args(command[2:])
    if launch.training_script == "hf_learned_order.cli.main":
        return launch.module and cli.main(launch.training_script_args) == 0
    assert launch.config_file is None or (ROOT / launch.config_file).is_file()
    if launch.training_script == "run_harness.py":  # lm_eval's own command line
        return True
    ScriptParser(*SCRIPTS[launch.training_script]).arguments(launch.training_script_args)
    return True


def test_what_is_not_run_is_understood(monkeypatch, tmp_path):
    """The long commands: their arguments exist, though nobody waits for them here."""
    monkeypatch.chdir(tmp_path)
    for command in (cli.generate, cli.evaluate, cli.plot, cli.push):
        monkeypatch.setattr(command, "run", lambda options: None)
    count = 0
    for page in PAGES:
        for block in blocks_of(page.read_text(encoding="utf-8")):
            if block.language == "bash" and block.reason is not None:
                lines = re.sub(r"^#.*$", "", block.code, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
                count += sum(understood(shlex.split(line)) for line in lines if line)
    assert count >= 8
    with pytest.raises(SystemExit):
        understood(["hf-learned-order", "evaluate", "--model", "x", "--nothing"])
    with pytest.raises(ValueError, match="not used by the HfArgumentParser"):
        understood(["accelerate", "launch", "examples/train.py", "--nothing"])


# ---- the tests above can fail ------------------------------------------------------------------------------------


def page_of(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return folder / "page.md"


def test_blocks_share_names_and_files(tmp_path):
    page = page_of(
        tmp_path,
        '```python\nfrom pathlib import Path\nx = Path("a").write_text("b")\n```\n'
        "\n```bash\ncat a; echo\n```\n\n```text\nb\n```\n"
        "<!-- not run: no network -->\n```bash\nexit 1\n```\nwords\n```text\n1 / 0\n```\n```python\nprint(x + 1)\n```\n"
        "\n```text\n2\n```\n",
    )
    before = Path.cwd()
    assert run_page(page, tmp_path) == [2, 7, 22]
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError, "division by zero"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", AssertionError, "page.md, line 2: printed"),
        ("```bash\nfalse\ntrue\n```\n", AssertionError, "page.md, line 2"),
        ("```bash\nfalse | true\n```\n", AssertionError, "page.md, line 2"),
        ("```sh\ntrue\n```\n", AssertionError, "must be python, bash or text, got 'sh'"),
        ("<!-- not run: -->\n```bash\nfalse\n```\n", AssertionError, "page.md, line 3"),
    ],
)
def test_a_block_that_does_not_hold(tmp_path, text, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run_page(page_of(tmp_path, text), tmp_path)


def test_what_is_said_to_work_has_its_test():
    """Every cell of `docs/works_with.md` that names a test names one that there is."""
    page = (ROOT / "docs" / "works_with.md").read_text(encoding="utf-8")
    for file, _, name in re.findall(r"`([a-z_]+/test_\w+\.py)(::(test_\w+))?`", page):
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{file}::{name}"
