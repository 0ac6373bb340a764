"""`hf-learned-order`: generate, evaluate, calibrate, plot and push from the command line."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from hf_learned_order.cli import calibrate, evaluate, generate, plot, push


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors in what the user gave are printed in one line, and the exit status is 2."""
    parser = argparse.ArgumentParser(prog="hf-learned-order", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('hf_learned_order')}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (generate, evaluate, calibrate, plot, push):
        command.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        extras = "pip install 'hf_learned_order[plot,eval]'"
        print(f"hf-learned-order: {options.command} needs {error.name}: {extras}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError) as error:
        message = " ".join(str(error).split())  # transformers' have many lines
        print(f"hf-learned-order: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
