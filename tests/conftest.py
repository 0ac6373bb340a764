"""Settings for every test; a Hub on this machine in the place of huggingface.co."""

import atexit
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
