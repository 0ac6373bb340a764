"""The command line of a training script: options in groups, and a YAML or JSON file of them."""

import copy
import dataclasses
import difflib
import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

THEIRS = "transformers' TrainingArguments"


class ScriptParser(HfArgumentParser):
    """`HfArgumentParser` with a group for each part of the options, names in full, and a file of arguments.

        train.py arguments.yaml --learning_rate 1e-3      (or --config arguments.yaml, or .json)

    What is typed counts before the file. A group is a field's `metadata["group"]`, else the `_argument_group_name` of
    the class that the field comes from.

    Attributes:
        words: the arguments of the last `arguments()`, those of the file written out.
    """

    def __init__(self, *types: Any, **options: Any):
        self.words: list[str] = []
        super().__init__(types, allow_abbrev=False, **options)
        self.add_argument_group("file").add_argument(
            "--config", metavar="FILE", help="a YAML or JSON file of arguments; may also come first, without --config"
        )

    def arguments(self, given: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The dataclasses, from `given` or what was typed.

        Raises:
            ValueError: an argument is unknown, or the file is no table of arguments.
            OSError: there is no such file.
        """
        words = list(sys.argv[1:] if given is None else given)
        if words and words[0].endswith((".yaml", ".yml", ".json")):
            words.insert(0, "--config")
        first = ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        found, words = first.parse_known_args(words)
        self.words = (self._from_file(found.config) if found.config else []) + words
        return self.parse_args_into_dataclasses(self.words)[:-1]  # without the namespace of `--config`

    def given(self, name: str) -> bool:
        """Whether the last `arguments()` had this one, typed or in the file."""
        return any(word.partition("=")[0] == f"--{name}" for word in self.words)

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Stop where the last `arguments()` had one of `names`, which nothing would read.

        Raises:
            ValueError: one was given.
        """
        if unread := [f"--{name}" for name in names if self.given(name)]:
            raise ValueError(f"{', '.join(unread)} must be left out {why}, got {' '.join(self.words)}")

    def _from_file(self, path: str) -> list[str]:
        text = Path(path).read_text(encoding="utf-8")
        try:
            values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: must be a YAML or JSON file of arguments ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must be a table of arguments, got {type(values).__name__}")
        known = {action.dest for action in self._actions} - {"help", "config"}
        words = []
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                raise ValueError(f"{path}: {name} is no argument{f'; {near[0]} is one' if near else ''}")
            if value is None:
                continue
            parts = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in parts)]
        return words

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = get_type_hints(dtype)
        groups: dict[str, Any] = {}
        # those that come from transformers last: there are many
        for each in sorted(
            filter(lambda f: f.init, dataclasses.fields(dtype)), key=lambda f: _group(dtype, f) == THEIRS
        ):
            name = _group(dtype, each)
            if name not in groups:
                groups[name] = self.add_argument_group(name)
            mine = copy.copy(each)  # argparse does not know groups that are given like this
            mine.type = hints[each.name]
            mine.metadata = MappingProxyType({key: value for key, value in each.metadata.items() if key != "group"})
            self._parse_dataclass_field(groups[name], mine)


def _group(dtype: Any, each: dataclasses.Field) -> str:
    """The name of a field's group."""
    origin: Any = next(c for c in reversed(dtype.__mro__) if each.name in vars(c).get("__annotations__", {}))
    name = THEIRS if origin is TrainingArguments else vars(origin).get("_argument_group_name", origin.__name__)
    return each.metadata.get("group", name)
