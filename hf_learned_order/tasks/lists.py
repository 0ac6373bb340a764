"""Lists of words, and what is to be done with them: tasks whose loss by parallel decoding is known in closed form.

    prompt   reverse: fig owl sun          response   sun owl fig

For n words and a denoiser that is exact, one step that unmasks everything loses

    copy, replace, reverse, sort    nothing: the response follows from the prompt
    replace_random                  (n - 1) log(n / (n - 1)) nats: any one word gives way to the given one
    shuffle                         n log n - log n! nats: any order will do, and only n steps lose nothing

Source: Kang et al., ParallelBench, arXiv 2510.04767 (the tasks and their conditional total correlations; the words,
the wording and `reverse` and `sort` in this form are ours).
"""

import random
from collections import Counter

WORDS = tuple(
    "ant ape ash bat bay bed bee bow box bud bus can cap cat cow cub cup dam den dew dog ear eel egg elk elm emu eye "  # noqa: SIM905
    "fan fig fir fog fox gas gem gum hat hay hen hut ice ink ivy jam jar jay jet key kid kit lab leg lid log map mat "
    "mud net nut oak".split()
)
OPERATIONS = ("copy", "replace", "replace_random", "reverse", "shuffle", "sort")
RANDOM_OPERATIONS = ("replace_random", "shuffle")  # many responses are right
INDICES = tuple(f"#{i}" for i in range(1, 17))


def draw(operation: str, length: int, rng: random.Random) -> tuple[str, str]:
    """Prompt and one right response for `length` different words.

    Raises:
        ValueError: the operation is unknown, or there are not enough words or indices.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    if not 1 <= length <= len(INDICES):
        raise ValueError(f"length must be in [1, {len(INDICES)}], got {length}")
    *words, new = rng.sample(WORDS, length + 1)
    index = rng.randrange(length)
    changed = [*words[:index], new, *words[index + 1 :]]
    head, response = {
        "copy": ("copy", words),
        "replace": (f"replace {INDICES[index]} {new}", changed),
        "replace_random": (f"replace_random {new}", changed),
        "reverse": ("reverse", words[::-1]),
        "shuffle": ("shuffle", rng.sample(words, length)),
        "sort": ("sort", sorted(words)),
    }[operation]
    return f"{head} : {' '.join(words)}", " ".join(response)


def is_right(response: str, prompt: str) -> bool:
    """Whether the response does what the prompt says; any order of the same words is a shuffle."""
    head, _, rest = prompt.partition(" : ")
    (operation, *options), words, got = head.split(), rest.split(), response.split()
    if operation == "shuffle":
        return Counter(got) == Counter(words)
    if operation == "replace_random":
        return len(got) == len(words) and [w for w, old in zip(got, words, strict=True) if w != old] == options
    if operation == "replace":
        words[INDICES.index(options[0])] = options[1]
    return got == {"reverse": words[::-1], "sort": sorted(words)}.get(operation, words)
