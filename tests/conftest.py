"""Settings for every test."""

from hypothesis import HealthCheck, settings

# the same examples on every machine, however slow it is
slow = [HealthCheck.too_slow]
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=slow
)
settings.load_profile("default")
