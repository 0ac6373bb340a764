"""Options that several commands share, what they load, and how they are written again."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_learned_order.tasks.sources import OwnData

# `decoding.samplers.table.SAMPLERS`, which takes seconds to import; a test compares
RULES = (
    *("iid", "random", "left_to_right", "top_prob", "margin", "entropy", "threshold", "factor", "frechet"),
    *("local_leap", "entropy_bound", "klass", "position", "dapd", "dilated", "random_sizes", "learned_order"),
    *("remdm", "wino"),
)


class Help(argparse.HelpFormatter):
    """argparse's, with the default of each option that has one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or action.default in (None, False, [], argparse.SUPPRESS) or not action.option_strings:
            return text
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{text} (default: {shown})"


def command_parser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A command whose options are taken by their whole names only: `--task` is not `--tasks`."""
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=Help)


def add_model(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """The options that say what is loaded, and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, help="the denoiser: a folder or a Hub repository")
    if many:
        group.add_argument("--scorer", nargs="+", default=[], help="one or more scorers (seeds) to average over")
    else:
        group.add_argument("--scorer", help="a folder or a Hub repository")
    group.add_argument("--dtype", default="auto", help="of the denoiser, e.g. bfloat16; auto: as it was saved")
    group.add_argument(
        "--device_map",
        help="where the denoiser goes, as in transformers: auto (over all devices), cpu, cuda:1, ...; "
        "by default the accelerator, if there is one",
    )
    group.add_argument("--trust_remote_code", action="store_true", help="run the code that the repository brings")


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """The fields of `OwnData`."""
    group = parser.add_argument_group("your own data (tasks responses and infill)")
    for each in fields(OwnData):
        text, name = each.metadata["help"], f"--{each.name}"
        if each.type is bool:
            group.add_argument(name, action="store_true", help=text)
        else:
            kind: Any = each.type if each.type in (int, float) else str
            many = "+" if each.type == list[str] | None else None
            group.add_argument(name, type=kind, nargs=many, default=each.default, help=text)


def own_data(options: argparse.Namespace) -> OwnData:
    """What was given of these."""
    return OwnData(**{each.name: getattr(options, each.name) for each in fields(OwnData)})


def add_data(parser: argparse.ArgumentParser) -> Any:
    """The options that say which problems there are; the group, for more."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="GSM8K (openai/gsm8k) or your own data on the Hub, or a folder of data")
    group.add_argument("--train_file", nargs="+", help="its train.jsonl: the last rows are held out")
    group.add_argument("--test_file", nargs="+", help="its test.jsonl")
    group.add_argument("--canvas_length", type=int, help="positions of a response; by default the task's")
    return group


def taken(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options, to be handed on by their names."""
    return {name: getattr(options, name) for name in names}


def evaluator_of(
    options: argparse.Namespace, name: str, split: str, count: int | None, denoiser: Any, tokenizer: Any, **how: Any
) -> Any:
    """The `Evaluator` of a task, its test problems without the `--without_prompts`; `how` are more of its arguments."""
    from hf_learned_order.evaluation import problems

    where = {"own": own_data(options), **taken(options, "dataset_name", "train_file", "test_file")}
    without = getattr(options, "without_prompts", None) if split == "test" else None
    how |= {"where": where, "without": without, **taken(options, "canvas_length", "batch_size")}
    return problems.evaluator_of(name, denoiser, tokenizer, split=split, count=count, **how)


def check_read(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Raises `ValueError` where there is no such task, or data are given that none of the tasks reads."""
    from hf_learned_order.tasks.table import find_task, unread_options

    own = {each.name: each.default for each in fields(OwnData)}
    unread = unread_options([find_task(name) for name in names])
    if given := [f"--{name}" for name in unread if getattr(options, name, None) not in (None, own.get(name))]:
        raise ValueError(f"{', '.join(given)} must be left out with {', '.join(names)}, which does not read them")


def check_dtype(dtype: str) -> None:
    """Raises `ValueError` unless it is "auto" or the name of a floating-point type."""
    import torch

    kind = getattr(torch, dtype, None)
    if dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(f"--dtype must be auto or a floating-point type of torch, e.g. bfloat16, got {dtype}")


def load_both(options: argparse.Namespace, processes: Any = None, *, samplers: Sequence[str] = ()) -> tuple[Any, Any]:
    """Tokenizer and denoiser, the latter where it is to run.

    Args:
        options: those of `add_model`.
        processes: accelerate's `PartialState` if there are several: each has its own device.
        samplers: names; if one of them reads attention maps, the denoiser is loaded so that it returns them.

    Raises:
        ValueError: a device map for several processes.
        OSError: nothing to load there.
    """
    from hf_learned_order.common.processes import device_for
    from hf_learned_order.decoding.samplers.table import SAMPLERS
    from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer

    device = device_for(processes, options.device_map)
    how: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if any(SAMPLERS[name].needs_attentions for name in samplers if name in SAMPLERS):
        how["attn_implementation"] = "eager"
    if options.device_map is not None:
        how["device_map"] = options.device_map
    tokenizer = loaded(
        "model", options.model, lambda name: load_tokenizer(name, trust_remote_code=options.trust_remote_code)
    )
    model = loaded("model", options.model, lambda name: load_denoiser(name, **how)).eval()
    return tokenizer, model if device is None else model.to(device)


def load_order(paths: Sequence[str], model: Any, tokenizer: Any) -> tuple[Any, list[Any]]:
    """A model as the denoiser of scorers from folders or repositories; it gets the adapter that one was trained with.

    Raises:
        ValueError: a scorer does not fit, or is one of several and has a denoiser of its own.
    """
    from hf_learned_order.denoisers.denoiser import Denoiser
    from hf_learned_order.orders.scorer import OrderScorer
    from hf_learned_order.orders.tuned import bring_up

    scorers = [loaded("scorer", path, OrderScorer.from_pretrained).eval() for path in paths]
    family = next((scorer.config.family for scorer in scorers), None)
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id, family=family)
    for path, scorer in zip(paths, scorers, strict=True):
        scorer.check_fits(denoiser)
        if scorer.config.denoiser_tuning is not None and len(scorers) > 1:
            raise ValueError(
                f"--scorer must be one where the denoiser was tuned along, as with {path}, got {len(scorers)}: "
                "each has a denoiser of its own"
            )
        bring_up(denoiser, scorer.config, path)
        scorer.to(denoiser.device)
    return denoiser, scorers


def loaded(option: str, name: str | None, load: Callable[[Any], Any]) -> Any:
    """What `load` makes of the folder or repository; the Hub's errors do not always say which one it was about."""
    try:
        return load(name)
    except OSError as error:
        what = "" if name is None or Path(name).exists() else " (no folder here)"
        raise OSError(f"--{option} {name}{what}: {error}") from error


def words(options: dict[str, Any]) -> list[str]:
    """The options as they are typed, defaults too: a later version may have others."""
    words = []
    for name, value in options.items():
        if value is None or value is False or (name == "scorer" and not value):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *map(str, values)]
    return words
