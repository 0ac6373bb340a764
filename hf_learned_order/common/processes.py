"""Several processes of one command, as `accelerate launch` starts them. Alone, everything here does nothing."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def started_processes() -> Any:
    """accelerate's `PartialState` where several processes were started, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import PartialState

    # without an accelerator it would take each process for the only one
    return PartialState(cpu=not torch.accelerator.is_available())


def device_for(processes: Any, device_map: Any) -> Any:
    """Where a model goes: to the device of its process, else to the accelerator; None: it stays where it was loaded.

    Raises:
        ValueError: a device map for several processes.
    """
    import torch

    if processes is not None and device_map is not None:
        raise ValueError(
            f"device_map must be left out with {processes.num_processes} processes, each of which has a device of its "
            f"own, got {device_map}"
        )
    if processes is not None:
        return processes.device
    return None if device_map is not None else torch.accelerator.current_accelerator(check_available=True)


def is_first(processes: Any) -> bool:
    return processes is None or processes.is_main_process


def in_turn(processes: Any) -> AbstractContextManager:
    """The first process before the others, which find on disk what it has made."""
    return nullcontext() if processes is None else processes.main_process_first()


def from_first(processes: Any, value: Any) -> Any:
    """The first process's `value`, in all of them."""
    if processes is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def finish(processes: Any) -> None:
    """Together."""
    if processes is not None:
        processes.wait_for_everyone()
        processes.destroy_process_group()
