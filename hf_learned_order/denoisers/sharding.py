"""Denoisers whose weights are split among processes, by FSDP or DeepSpeed ZeRO-3.

Each call of one gathers its weights from all processes, and so does the backward pass through it: a process comes out
of either when all the others are in it. So they have to call equally often, and one whose rows are finished goes on
calling as long as another has rows left. transformers' `generate` does the same, as `synced_gpus`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_learned_order.denoisers.denoiser import Denoiser


def is_split(denoiser: Denoiser) -> bool:
    """Whether the weights of the denoiser, some of them at least, are split among several processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    fsdp = FSDPModule | FullyShardedDataParallel
    if any(isinstance(module, fsdp) for module in denoiser.model.modules()):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in denoiser.model.parameters())  # ZeRO-3's


def any_process(here: bool, device: torch.device) -> bool:
    """Whether it is so in any process; each has to ask, and as often as the others."""
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag)
    return flag.item() > 0


def idle(denoiser: Denoiser, device: torch.device) -> Tensor:
    """A call for the others' sake, about two masks; gives 0, with a gradient of 0 for every weight of the call."""
    ids = torch.full((1, 2), denoiser.mask_token_id, device=device)
    place = torch.zeros(1, dtype=torch.long, device=device)
    denoiser.is_idle = True
    try:
        logits, _ = denoiser(ids, torch.ones_like(ids), denoiser.family.tokens_before, at=(place, place))
    finally:
        denoiser.is_idle = False
    return logits[:0].float().sum()


@contextmanager
def in_step(denoiser: Denoiser, device: torch.device) -> Iterator[None]:
    """Calls without a gradient within, which may be more in one process than in another.

    Before each call a process says that it makes one. When it has made its own it makes idle ones, until nobody else
    says so. Every process has to come here, and nothing else within may wait for others.
    """
    if not is_split(denoiser) or denoiser.is_in_step:
        yield
        return

    def announce(*_: object) -> None:
        any_process(True, device)

    hook = denoiser.register_forward_pre_hook(announce, prepend=True)
    denoiser.is_in_step = True
    try:
        yield
    finally:
        hook.remove()
        denoiser.is_in_step = False
    while any_process(False, device):
        idle(denoiser, device)


def splittable(model: nn.Module) -> list[str]:
    """Names of classes of layers that FSDP may split each by itself: they share no weight with another part."""
    times = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    shared = {type(part).__name__ for part in model.modules() if any(times[id(p)] > 1 for p in part.parameters())}
    whole = getattr(model, "_no_split_modules", None) or ()
    return sorted({*whole} - shared)  # pyrefly: ignore[not-iterable] (names: a module may have anything as attribute)


def check_wrapping(plugin: Any) -> None:
    """Raises `ValueError` where accelerate's FSDP plugin, if any, may split layers of the scorer, or its files."""
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    kind = getattr(getattr(plugin, "state_dict_type", None), "name", "FULL_STATE_DICT")
    if kind != "FULL_STATE_DICT":
        raise ValueError(
            f"fsdp_state_dict_type must be FULL_STATE_DICT, got {kind}, by which transformers' save_model saves nothing"
        )
    if plugin is not None and plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise ValueError(
            "fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP, got SIZE_BASED_WRAP, which may split layers of the "
            "scorer, and processes call those unequally often"
        )
