r"""Carry a scorer of the factor law, which version 0.1.0 had, over to the regret law: the same order, to the token.

    python examples/carry_over.py path/to/scorer --output_dir runs/carried

The factor law is the regret law with w = 1 and A = 0. The pairs of the new scorer are untrained and count nothing;
`examples/train.py --scorer_name_or_path runs/carried` goes on from there.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer


def carried_over(folder: Path) -> OrderScorer:
    """The scorer in a folder, by the regret law.

    Raises:
        ValueError: it has another law than "factor".
    """
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if saved["law"] != "factor":
        raise ValueError(f'law must be "factor" in {folder}, got {saved["law"]!r}: train a new scorer')
    torch.manual_seed(0)  # of the pairs
    scorer = OrderScorer(OrderScorerConfig.from_dict({**saved, "law": "regret", "law_temperature": None}))
    weights = load_file(folder / "model.safetensors")
    for name in ("network.head.weight", "network.head.bias"):
        weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])  # log w = 0
    scorer.load_state_dict({**scorer.state_dict(), **weights})
    return scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", type=Path, help="the folder of a scorer with the factor law")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    carried_over(options.scorer).save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
