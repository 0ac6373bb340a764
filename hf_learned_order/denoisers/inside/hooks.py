"""What is done to a model around its calls: its head sees chosen places only, and it is in evaluation mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@dataclass(kw_only=True)
class Seen:
    """What one call of a model lets pass; the head may be called for other threads meanwhile.

    Attributes:
        shape: [batch, length] of the call.
        place: the only places that go on into the head; None for all.
        head: what goes into the head.
        trunk: what comes out of the trunk.
        layers: what goes into the layers of these numbers.
        cut: the head got `place` only.
    """

    shape: torch.Size
    place: tuple[Tensor, Tensor] | None
    head: list[Tensor] = field(default_factory=list)
    trunk: list[Tensor] = field(default_factory=list)
    layers: dict[int, list[Tensor]] = field(default_factory=dict)
    cut: bool = False
    thread: int = field(default_factory=get_ident)

    def before_head(self, _module: nn.Module, inputs: tuple) -> tuple | None:
        if get_ident() != self.thread:
            return None
        self.head.append(inputs[0])
        if self.place is None or inputs[0].shape[:-1] != self.shape:
            return None
        self.cut = True
        row, position = (part.to(inputs[0].device) for part in self.place)
        return (inputs[0][row, position][None], *inputs[1:])

    def after_trunk(self, _module: nn.Module, _inputs: tuple, output: Any) -> None:
        if get_ident() == self.thread:
            self.trunk.append(output[0])

    def before_layer(self, number: int) -> Callable[..., None]:
        """The hook for the layer of that number; it takes the layer's keyword arguments too."""
        states = self.layers.setdefault(number, [])

        # another thread may take it off between two hooks of a call here: torch then calls it without the keywords
        def hook(_module: nn.Module, inputs: tuple, named: dict[str, Any] | None = None) -> None:
            if get_ident() == self.thread:
                states.append(next(iter((*inputs, *(named or {}).values()))))

        return hook


# of each model: how many calls hold it in evaluation mode, and what was in training mode before the first
_EVALUATING: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_LOCK = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; what was in training mode before is so again afterwards.

    Where several threads hold the model, that is when the last of them lets it go.
    """
    with _LOCK:
        # a part may be frozen in evaluation mode
        count, training = _EVALUATING.get(model) or (0, [module for module in model.modules() if module.training])
        _EVALUATING[model] = count + 1, training
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            count, training = _EVALUATING.pop(model)
            if count > 1:
                _EVALUATING[model] = count - 1, training
            else:
                for module in training:
                    module.training = True
