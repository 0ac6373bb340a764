"""A scorer as a `torch.export` program: one file that needs neither transformers nor the class of the scorer's network.

The network is what is exported, from beliefs to what the law is made of; the law itself stays Python.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_learned_order.denoisers.predictions import Predictions, Step
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.laws.base import SubsetDistribution
from hf_learned_order.orders.scorer import OrderScorer

CONFIG = "config.json"


class _Beliefs(nn.Module):
    """`OrderScorer.forward` as a function of tensors."""

    def __init__(self, scorer: OrderScorer):
        super().__init__()
        self.scorer = scorer

    def forward(
        self, confidence: Tensor, margin: Tensor, entropy: Tensor, tokens: Tensor, masked: Tensor, left: Tensor
    ) -> Tensor:
        beliefs = Predictions(
            confidence=confidence,
            margin=margin,
            entropy=entropy,
            tokens=tokens,
            logits=confidence,  # a scorer sees none
            index=tokens,
            log_peak=confidence,
            mask_token_id=None,
        )
        return self.scorer(Step(predictions=beliefs, masked=masked, steps_left=cast(int, left)))


class ExportedScorer:
    """An exported scorer. `LearnedOrderSampler(scorer=...)` takes it in the place of an `OrderScorer`.

    It runs on the device of what it is given: an engine need not tell where that is.

    Attributes:
        config: of the scorer it was made of.
        program: from confidence, margin and entropy [batch, canvas], the most likely tokens int [batch, canvas], bool
            masked [batch, canvas] and steps left, float [], to what `OrderScorer.forward` gives, of any batch, canvas.
    """

    tilt = None  # of training
    law = OrderScorer.law
    is_random = OrderScorer.is_random

    def __init__(self, program: torch.export.ExportedProgram, config: OrderScorerConfig):
        self.config = config
        self._hold(program)

    def _hold(self, program: torch.export.ExportedProgram) -> None:
        self.program, self._run = program, program.module()
        self._device = next(iter(program.state_dict.values())).device

    def __call__(self, step: Step) -> Tensor:
        """What the law is made of, as `OrderScorer.forward`. Raises `ValueError` where the step has padding."""
        if step.padding is not None:
            raise ValueError("padding must be None with an exported scorer: engines give blocks without any")
        beliefs, device = step.predictions, step.masked.device
        if device != self._device:
            self.to(device)
        left = torch.tensor(float(step.steps_left), device=device)
        return self._run(beliefs.confidence, beliefs.margin, beliefs.entropy, beliefs.tokens, step.masked, left)

    def law_of(self, step: Step, *, bias: float = 0.0) -> SubsetDistribution:
        """The law of what the program gives, as `OrderScorer.law_of`."""
        return self.law(step, self(step), bias=bias)  # pyrefly: ignore[bad-argument-type]

    def to(self, device: torch.device | str) -> "ExportedScorer":
        """Move the weights to `device`, in place as `torch.nn.Module.to`; returns itself."""
        from torch.export.passes import move_to_device_pass

        self._hold(move_to_device_pass(self.program, device))
        return self

    def save(self, path: str | PathLike) -> None:
        """Write program, weights and configuration to one file."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part.pt2")  # so that the file is whole or not there
        try:
            torch.export.save(self.program, part, extra_files={CONFIG: self.config.to_json_string(use_diff=False)})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | PathLike) -> "ExportedScorer":
        """The scorer that `save` wrote.

        Raises:
            ValueError: the file holds no exported scorer.
        """
        extra: dict[str, Any] = {CONFIG: ""}
        program = torch.export.load(path, extra_files=extra)
        if not extra[CONFIG]:
            raise ValueError(f"path must be a file that ExportedScorer.save wrote, got {str(path)!r}")
        return cls(program, OrderScorerConfig.from_dict(json.loads(extra[CONFIG])))


def export_scorer(scorer: OrderScorer) -> ExportedScorer:
    """The scorer as a program for any batch and canvas, on the device where it is.

    Args:
        scorer: one that sees predictions only: `OrderScorer.for_denoiser(denoiser, denoiser_hidden_size=0)`.

    Raises:
        ValueError: it sees hidden states, which engines do not give.
    """
    if scorer.config.layers_seen:
        raise ValueError(
            f"scorer must see predictions only (denoiser_hidden_size=0), but it sees the hidden states "
            f"{scorer.config.layers_seen}: serving engines give logits alone"
        )
    beliefs, places = torch.rand(3, 2, 5, device=scorer.device), torch.ones(2, 5, device=scorer.device)
    example = (*beliefs, places.long(), places.bool(), torch.ones((), device=scorer.device))
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("canvas", min=1)}
    training = scorer.training
    try:
        with torch.no_grad():
            program = torch.export.export(_Beliefs(scorer.eval()), example, dynamic_shapes=(*[sizes] * 5, None))
    finally:
        scorer.train(training)
    return ExportedScorer(program, scorer.config)
