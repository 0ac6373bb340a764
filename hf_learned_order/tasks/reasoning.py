"""Two tasks of the package reasoning-gym: `countdown` and `chain_sum`, in a form that a small model can read.

    countdown   prompt 14;9;2=63     response 14*9/2     any expression that uses each number once and gives the target
    chain_sum   prompt 15-43-75      response -103

Problems and the judgement of an answer are the package's own (extra `reasoning`). Its sentences are left out. The
characters are those of `gsm8k.Chain`, so that a denoiser that calculates can be gone on from.
"""

import random
from functools import cache
from typing import Any

SETTINGS: dict[str, dict[str, int]] = {
    "countdown": {"min_numbers": 3, "max_numbers": 4, "max_value": 20, "min_target": 1, "max_target": 99},
    "chain_sum": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2},
}
LARGEST_SEED = 2**31


def countdown(rng: random.Random) -> tuple[str, str]:
    """Prompt and one right response."""
    entry = _gym("countdown")[rng.randrange(LARGEST_SEED)]
    numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    return f"{';'.join(map(str, numbers))}={target}", entry["answer"].replace(" ", "")


def countdown_is_right(response: str, prompt: str) -> bool:
    """The package's own judgement: each number once, and the target."""
    numbers, _, target = prompt.partition("=")
    metadata = {"numbers": [int(n) for n in numbers.split(";")], "target": int(target)}
    # only what the grammar can hold: the package hands the answer to a parser that runs it
    plain = response != "" and set(response) <= set("0123456789+-*/()") and "**" not in response
    return plain and _gym("countdown").score_answer(response, {"metadata": metadata}) == 1.0


def chain_sum(rng: random.Random) -> tuple[str, str]:
    """Prompt and the right response."""
    entry = _gym("chain_sum")[rng.randrange(LARGEST_SEED)]
    return entry["metadata"]["expression"].replace(" ", ""), entry["answer"]


def chain_sum_is_right(response: str, answer: str) -> bool:
    """The package's own judgement: equal as numbers."""
    return _gym("chain_sum").score_answer(response, {"answer": answer}) == 1.0


@cache
def _gym(name: str) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(f"task {name!r} needs the extra: pip install 'hf_learned_order[reasoning]'") from error
    # pyrefly: ignore[missing-attribute]
    return reasoning_gym.create_dataset(name, seed=0, size=LARGEST_SEED, **SETTINGS[name])
