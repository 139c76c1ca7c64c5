"""Measurement of energy with the counter that NVIDIA's GPUs have from Volta on."""

import sys
from collections.abc import Callable, Iterable

import pynvml

JOULES = 3.6e6
"""Joules of a kWh."""


def measure() -> Callable[[], float | None]:
    """Begin to measure the GPU that this process computes on.

    Returns:
        A function that returns the kWh since this call; None without a GPU, or if it has no counter of its
        own. The counter is that of the whole card and includes other programs.
    """
    gpu = own_gpu()
    before = read_counter(gpu) if gpu else None

    def spent() -> float | None:
        now = read_counter(gpu) if gpu else None
        return None if before is None or now is None else (now - before) / 1000 / JOULES

    return spent


def total(parts: Iterable[float | None]) -> float | None:
    """Return the sum over processes or sessions; None if one of them was not measured."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def own_gpu() -> str | None:
    """Return NVML's name of the GPU that this process computes on; None if it has not used one yet.

    CUDA gives the GPU, as CUDA_VISIBLE_DEVICES may number GPUs in an order other than NVML's.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def read_counter(gpu: str) -> int | None:
    """Return the millijoules that a GPU has used since its driver was loaded.

    Args:
        gpu: its UUID, as ``nvidia-smi -L`` prints it.

    Returns:
        The millijoules; None without NVML, for a card older than Volta, and for a part of a card (MIG), as
        the counter is that of all parts.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
        return None if _is_divided(handle) else int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _is_divided(handle: object) -> bool:
    """Return whether a card is divided into parts (MIG); cards without MIG raise an error for the query."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError:
        return False
