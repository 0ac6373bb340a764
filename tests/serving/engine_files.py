"""The engines' own code, as published, in `engines/` (or in HLO_ENGINES). docs/serving.md says how it gets there."""

import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("HLO_ENGINES", Path(__file__).parents[2] / "engines"))


def folder_of(engine: str, package: str) -> Path:
    """Where the sources of a package are; skips the test where they cannot be had."""
    folder = ROOT / engine / package
    if not folder.is_dir():
        pytest.skip(
            f"the published code of {engine} is not in {folder}: docs/serving.md, Tests, says how it gets there"
        )
    return folder


class Anything(types.ModuleType):
    """A module that an interface file imports names of, for annotations or paths that no CPU takes."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def importable(patch: pytest.MonkeyPatch, folder: Path, *, replaced: dict[str, dict] | None = None) -> None:
    """Puts the folder of a package on sys.path, for one test module, with other modules in the place of heavy ones."""
    patch.syspath_prepend(str(folder.parent))
    for name, values in (replaced or {}).items():
        module = Anything(name)
        module.__dict__.update(values)
        patch.setitem(sys.modules, name, module)


def forget(name: str) -> None:
    """Drops a package and our adapter of it from the modules that are loaded."""
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]
    sys.modules.pop(f"hf_learned_order.serving.{name}", None)
