"""Scorers that were saved by an earlier commit (902aa70): they load, and score as they did."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.configuration import LAWS, LEFT, OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer

# that of examples/scorer-0 then, of a smaller size
SAVED = {
    "architectures": ["OrderScorer"],
    "base_model_name_or_path": "examples/denoiser",
    "base_model_revision": None,
    "bound": 0.5,
    "denoiser_hidden_size": 6,
    "dtype": "float32",
    "entropy_weight": 1.5,
    "features": None,
    "hidden_size": 4,
    "law_temperature": 0.1,
    "mask_token_id": 1,
    "max_denoising_steps": None,
    "model_type": "order_scorer",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "transformers_version": "5.23.0",
    "vocab_size": 11,
    "warm_start": None,
}
SHAPES = {
    "hidden_states.0": (6,),
    "hidden_states.1": (4, 6),
    "encoder.norm": (4,),
    "head": (1, 4),
}
LAYER = {
    "linear1": (16, 4),
    "linear2": (4, 16),
    "norm1": (4,),
    "norm2": (4,),
    "self_attn.out_proj": (4, 4),
    "self_attn.in_proj_": (12, 4),
}
# what the scorer of that commit gave; the factor law, which left, adds the logit of the confidence
SCORES = {
    "non_empty": [0.214482, 0.208871, 0.136072, 0.164482, 0.2393],
    "factor": [-0.85714, -0.494056, -0.404525, -0.446882, -0.747611],
}
FEATURES = {"non_empty": 8, "factor": 6}  # a law without steps left does not see the budget


def weights(law: str) -> dict[str, torch.Tensor]:
    shapes = (
        SHAPES
        | {"features": (4, FEATURES[law])}
        | {f"encoder.layers.{n}.{name}": shape for n in range(2) for name, shape in LAYER.items()}
    )
    found, number = {}, 0
    for name, shape in shapes.items():
        dot = "" if name.endswith("_") else "."
        for kind, size in (("weight", shape), ("bias", shape[:1])):
            values = torch.arange(number, number + math.prod(size), dtype=torch.float64).sin()
            found[f"network.{name}{dot}{kind}"] = values.view(size).float()
            number += math.prod(size)
    return found


def save(folder: Path, law: str, **fields) -> None:
    (folder / "config.json").write_text(json.dumps({**SAVED, "law": law, **fields}))
    save_file(weights(law), folder / "model.safetensors", metadata={"format": "pt"})


def step() -> Step:
    def numbers(*shape: int) -> torch.Tensor:
        return 2 * torch.arange(math.prod(shape), dtype=torch.float64).mul(0.7).cos().view(shape).float()

    predictions = Predictions.from_logits(numbers(1, 5, 11), 1)
    masked = torch.tensor([[True, True, False, True, True]])
    return Step(predictions=predictions, masked=masked, steps_left=3, hidden_states=numbers(1, 5, 6))


@pytest.mark.parametrize("law", [law for law in SCORES if law in LAWS])
def test_a_scorer_of_902aa70(law, tmp_path):
    """With its `warm_start` of null and its `entropy_weight`, which nothing is said about."""
    save(tmp_path, law)
    scorer = OrderScorer.from_pretrained(tmp_path).eval()
    assert scorer.state_dict().keys() == weights(law).keys()
    assert all(torch.equal(value, weights(law)[name]) for name, value in scorer.state_dict().items())
    for name in ("bound", "law_temperature", "hidden_size", "num_hidden_layers", "max_denoising_steps"):
        assert getattr(scorer.config, name) == SAVED[name]
    with torch.no_grad():
        scores = scorer(step())
    torch.testing.assert_close(scores, torch.tensor([SCORES[law]]), rtol=1e-4, atol=1e-4)
    assert not {"warm_start", "entropy_weight"} & scorer.config.to_dict().keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            ({"law": law}, f"law must be one of regret, non_empty, .*, got '{law}', which left after version 0.1.0")
            for law in LEFT
        ),
        ({"warm_start": "entropy"}, "warm_start must be None, got 'entropy': warm starts left after version 0.1.0"),
    ],
)
def test_what_left_names_the_version_that_had_it(fields, message, tmp_path):
    save(tmp_path, "non_empty")
    (tmp_path / "config.json").write_text(json.dumps({**SAVED, "law": "non_empty", **fields}))
    for load in (OrderScorerConfig.from_pretrained, OrderScorer.from_pretrained):
        with pytest.raises(ValueError, match=message + ".*install hf-learned-order==0.1.0"):
            load(tmp_path)
