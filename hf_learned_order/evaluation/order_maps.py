"""Order maps: which step unmasked which token, and how sure the denoiser was of it. For the terminal and as a web page.

The picture of the same (PNG) is in `plotting.py`, which needs matplotlib.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from hf_learned_order.decoding.outputs import LearnedOrderOutput

PAGE = Path(__file__).with_name("order_map.html")
SIGNS = {" ": "␣", "\n": "↵", "\t": "→", "\r": "←"}
# from light to dark, so that the order can be told without telling colours apart; the last is no black on a dark page
COLOURS = ((253, 231, 37), (130, 211, 80), (30, 160, 135), (45, 112, 180), (110, 58, 160))
LIGHT = 0.179  # luminance from which black is easier to read than white (WCAG 2.2, contrast ratio)


@dataclass(frozen=True, kw_only=True)
class OrderMap:
    """How one response came about.

    Attributes:
        label: what decoded it.
        prompt: its text; empty where masks within it were filled (`infill`).
        tokens: the text of each token up to the end of the response, its EOS included.
        order: the step, from 1, that (last) unmasked each token; 0 for one that was no mask.
        confidence: in [0, 1], the probability that the denoiser gave each token when it was unmasked; 1 for one that
            was no mask.
        nfe: denoiser calls.
        wrong: which tokens are not those of the right response, aligned by the longest runs in common; where only
            something is missing, the token behind the gap. None: the right response is not known.
    """

    label: str
    prompt: str
    tokens: list[str]
    order: list[int]
    confidence: list[float]
    nfe: int
    wrong: list[bool] | None = None

    @classmethod
    def of(
        cls,
        output: LearnedOrderOutput,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: str = "",
        expected: Sequence[Sequence[int]] | None = None,
    ) -> list["OrderMap"]:
        """One map for each row of what `generate(..., return_dict_in_generate=True)` returned.

        Args:
            output: what it returned.
            tokenizer: of the model.
            label: what decoded it.
            expected: token ids of the right response of each row, without its EOS, where it is known.

        Raises:
            ValueError: the output has no `order`, or `expected` has another number of rows.
        """
        if output.order is None:
            raise ValueError("output must hold an order, got one of generate(..., output_order=False)")
        if expected is not None and len(expected) != len(output.sequences):
            raise ValueError(
                f"expected must have one response for each row, got {len(expected)} for {len(output.sequences)}"
            )
        infill = output.order.shape == output.sequences.shape
        maps = []
        for row, (ids, order, nfe) in enumerate(zip(output.sequences, output.order, output.nfe.tolist(), strict=True)):
            start = 0 if infill else len(ids) - len(order)
            # what follows the end of a response is no part of it; padding was never decoded
            shown = (order > 0) | (ids != tokenizer.pad_token_id) if infill else order.cumsum(0) >= 0
            shown[len(order) if infill else int(output.length[row]) :] = False
            maps.append(
                cls(
                    label=label,
                    prompt=str(tokenizer.decode(ids[:start], skip_special_tokens=True)),
                    tokens=tokenizer.batch_decode(ids[start:][shown][:, None]),
                    order=order[shown].tolist(),
                    confidence=output.token_log_probs[row][shown].exp().tolist(),
                    nfe=nfe,
                    wrong=None if expected is None else _wrong(ids[start:][shown].tolist(), expected[row], tokenizer),
                )
            )
        return maps


def steps_of(maps: Sequence[OrderMap]) -> int:
    """The last step of all maps; at least 1.

    Raises:
        ValueError: there is no map.
    """
    if not maps:
        raise ValueError("maps must hold at least one OrderMap, but it is empty")
    return max([1, *(step for one in maps for step in one.order)])


def palette(steps: int) -> list[str]:
    """A colour for each step, `#rrggbb`, from light to dark."""
    colours = []
    for step in range(steps):
        place = step / max(1, steps - 1) * (len(COLOURS) - 1)
        low = min(int(place), len(COLOURS) - 2)
        mixed = (round(a + (b - a) * (place - low)) for a, b in zip(COLOURS[low], COLOURS[low + 1], strict=True))
        colours.append("#" + "".join(f"{part:02x}" for part in mixed))
    return colours


def ink(step: int, steps: int) -> str:
    """The colour of a text on `palette(steps)[step - 1]`: the one of the higher contrast."""
    colour = palette(steps)[step - 1]
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > LIGHT else "white"


def in_words(maps: Sequence[OrderMap]) -> str:
    """How many calls each rule needed and, where that is known, whether it was right. Of several prompts the mean."""
    groups: dict[str, list[OrderMap]] = {}
    for one in maps:
        groups.setdefault(one.label, []).append(one)
    parts = []
    for label, group in groups.items():
        calls = sum(one.nfe for one in group) / len(group)
        mean = " on average" if len(group) > 1 else ""
        parts.append(f"{label} needs {calls:.3g} denoiser calls{mean}{_verdict(group)}".strip())
    return "; ".join(parts) + "."


def _verdict(group: Sequence[OrderMap]) -> str:
    marks = [one.wrong for one in group if one.wrong is not None]
    if len(marks) < len(group):
        return ""
    if len(marks) > 1:
        return f" and gets {sum(not any(wrong) for wrong in marks)} of {len(marks)} responses right"
    count = sum(marks[0])
    return f" and gets {count} token{'s' * (count != 1)} wrong" if count else " and is right"


def visible(text: str) -> str:
    """`text` with signs for spaces, tabs and line breaks, and `\ufffd` for what a terminal may take for a command."""
    return "".join(SIGNS.get(one, one if one.isprintable() else "\ufffd") for one in text)


def show(maps: Sequence[OrderMap], console: Console | None = None) -> None:
    """Print the maps: tokens on the colour of their step, the numbers of the steps below, which need no colours.

    A token that is known to be wrong has a `!` behind its number.

    Raises:
        ValueError: there is no map.
    """
    console = console or Console()
    steps = steps_of(maps)
    for one in maps:
        console.print(Text(f"{one.label}, {one.nfe} denoiser calls".removeprefix(", "), style="bold"), soft_wrap=True)
        for line in _lines(one, steps, console.width):
            console.print(line, no_wrap=True, overflow="crop")
    console.print(Text("step  ").append_text(_legend(steps)), soft_wrap=True)
    if len(maps) > 1 or maps[0].wrong is not None:
        console.print(Text(in_words(maps)), soft_wrap=True)


def page(maps: Sequence[OrderMap], *, title: str = "Order map", play: bool = True) -> str:
    """The maps side by side as one HTML page that needs nothing else: a slider over the steps, confidence on hover.

    Args:
        maps: at least one.
        title: of the page.
        play: run through the steps as soon as the page is open, unless its reader asked for less motion. Without it
            the page opens at step 1.

    Raises:
        ValueError: there is no map.
    """
    steps = steps_of(maps)
    data = {
        "title": title,
        "play": play,
        "palette": palette(steps),
        "inks": [ink(step, steps) for step in range(1, steps + 1)],
        "words": in_words(maps),
        "maps": [asdict(one) for one in maps],
    }
    # a token may be `</script>`
    return PAGE.read_text(encoding="utf-8").replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)


def _wrong(ids: list[int], right: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Which of `ids`, up to the EOS, are not those of the right response."""
    marks = [False] * len(ids)
    ended = [*right] if tokenizer.eos_token_id is None else [*right, tokenizer.eos_token_id]
    for kind, first, end, _, _ in SequenceMatcher(None, ids, ended, autojunk=False).get_opcodes():
        if kind != "equal":
            end = max(end, first + 1)  # what is missing before `first`
            marks[first:end] = [True] * len(marks[first:end])
    return marks


def _lines(one: OrderMap, steps: int, width: int) -> Iterator[Text]:
    """Pairs of lines that fit the width: tokens, and below each the number of its step."""
    colours = palette(steps)
    gap = int(steps > 9)  # numbers of two digits must not run together
    tokens, numbers = Text(), Text()
    for text, step, wrong in zip(one.tokens, one.order, one.wrong or [False] * len(one.order), strict=True):
        sign, number = visible(text), str(step or "") + "!" * wrong
        cells = max(cell_len(sign), len(number)) + gap
        if tokens.cell_len + cells > width and tokens:
            yield from (tokens, numbers)
            tokens, numbers = Text(), Text()
        style = f"{ink(step, steps)} on {colours[step - 1]}" if step else ""
        tokens.append(sign, style).append(" " * (cells - cell_len(sign)))
        numbers.append(number.ljust(cells), "bold red" if wrong else "dim")
    yield from (tokens, numbers)


def _legend(steps: int) -> Text:
    parts = (
        Text(f" {step} ", f"{ink(step, steps)} on {colour}") for step, colour in enumerate(palette(steps), start=1)
    )
    return Text().join(parts)
