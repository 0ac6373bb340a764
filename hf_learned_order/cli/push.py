"""`hf-learned-order push`: a scorer to the Hub, with its card."""

import argparse
from typing import Any

from hf_learned_order.cli.options import command_parser, taken


def add_command(commands: Any) -> None:
    """Its options."""
    parser = command_parser(commands, "push", "push the folder of a scorer to the Hub, with its card")
    parser.add_argument("folder", help="where the scorer was saved")
    parser.add_argument("repo_id", help="user/name on the Hub")
    parser.add_argument(
        "--results", help="results.json of evaluate; without it the card says that nothing was measured"
    )
    parser.add_argument("--task", default="equations", help="whose results the card shows")
    parser.add_argument("--plot", help="by default the trade_off.png beside the results")
    parser.add_argument(
        "--data", default="", help="what the scorer was trained on, in words; by default as the trainer says"
    )
    parser.add_argument(
        "--train_command", default="", help="the command that trained it; by default as the trainer says"
    )
    parser.add_argument("--limits", default="", help="what else a reader should know")
    parser.add_argument("--base_model", help="the denoiser's name on the Hub, where it was trained with as a folder")
    parser.add_argument("--prompt", default="", help="an example for the card's code; by default a placeholder")
    parser.add_argument("--license", help="of the scorer, an identifier of the Hub")
    parser.add_argument("--private", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.sharing.cards import Card
    from hf_learned_order.sharing.hub import push_folder

    card = Card(
        command=options.train_command,
        **taken(options, "results", "task", "plot", "data", "limits", "license", "base_model", "prompt"),
    )
    push_folder(options.folder, options.repo_id, card=card, private=options.private or None)
    print(f"Pushed {options.folder} to {options.repo_id}")
