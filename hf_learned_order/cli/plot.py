"""`hf-learned-order plot`: draw the trade-off curve again."""

import argparse
from typing import Any

from hf_learned_order.cli.options import command_parser


def add_command(commands: Any) -> None:
    """Its options."""
    parser = command_parser(commands, "plot", "draw the trade-off curve again")
    parser.add_argument("results", help="results.json or results.csv of evaluate")
    parser.add_argument("--output", default="trade_off.png")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.evaluation.plotting import trade_off
    from hf_learned_order.evaluation.results import load_results

    trade_off(load_results(options.results), options.output)
    print(f"Written to {options.output}")
