"""Settings for every test; a Hub on this machine in the place of huggingface.co."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from loopback import LoopbackHub

# read when huggingface_hub is imported, so before any test module is
HUB = LoopbackHub()
HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
atexit.register(HUB.server_close)
os.environ.update(HUB.environment(HOME))

# where transformers copies remote code to; read when it is imported
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hf-modules-"))

# the same examples on every machine, however slow it is
slow = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=slow
)
settings.load_profile("default")


def pytest_collection_finish():
    """What has been imported is not looked through again by each `gc.collect()`, of which a Trainer calls several."""
    gc.freeze()


@pytest.fixture(scope="session")
def running_hub():
    """The Hub, answering."""
    HUB.start()
    yield HUB
    HUB.shutdown()
    HUB.server_close()


@pytest.fixture
def hub(running_hub):
    """The Hub, empty."""
    running_hub.repositories.clear()
    running_hub.requests.clear()
    running_hub.drop = ""
    return running_hub


# not for the session: while it is open, asyncio.run fails in this thread
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # as root, which CI is, Chromium has no sandbox
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield chromium
        chromium.close()


@pytest.fixture
def web(browser):
    """A page; an error in its scripts, or a request that goes further than this machine, fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    wrong = []
    web = context.new_page()
    web.on("pageerror", lambda error: wrong.append(str(error)))
    web.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    web.on("request", lambda request: wrong.append(request.url) if not is_local(request.url) else None)
    yield web
    context.close()
    assert wrong == []


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:", "http://127.0.0.1:"))
