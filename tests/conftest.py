"""Settings for every test."""

import os
import tempfile

from hypothesis import HealthCheck, settings

# where transformers copies remote code to; read when it is imported
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hf-modules-"))

# the same examples on every machine, however slow it is
slow = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=slow
)
settings.load_profile("default")
