"""Where a run computes and in which number format."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from relabel.errors import RelabelError

# Torch asks for pages of 2 MB where Linux grants them, if this is set before its first tensor. Large arrays
# come from the system anew for every layer, and small pages slow that down: examples/RESULTS.md, "Speed".
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(frozen=True)
class Compute:
    """A resolved `--device` and `--amp`: the device, and the autocast type or None for float32."""

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed-precision region of a forward pass; losses are computed outside it, in float32."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels-last: the layout the bf16 convolution kernels of CPUs and GPUs work in."""
        return torch.channels_last

    def describe(self) -> str:
        """One phrase for the run's first line."""
        number_format = "float32" if self.autocast_dtype is None else "bf16"
        return f"{self.device.type}, {number_format}"


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values` from host memory on `device`; on a CPU themselves.

    A copy to a GPU from memory that is not pinned waits until the GPU has done all its earlier work.
    """
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def resolve(device: str = "auto", amp: str = "auto") -> Compute:
    """Turn the flags into a `Compute`.

    `amp="auto"` takes bf16 where the hardware multiplies it natively; emulated bf16 would be slower
    than float32. Raises RelabelError for a device this machine lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise RelabelError("--device cuda: this machine has no CUDA device.", "Use --device cpu or auto.")
    elif device == "mps" and not torch.mps.is_available():
        raise RelabelError("--device mps: this machine has no Metal device.", "Use --device cpu or auto.")
    use_bf16 = amp == "bf16" or (amp == "auto" and _native_bf16(device))
    return Compute(torch.device(device), torch.bfloat16 if use_bf16 else None)


def _native_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        # The public `torch.cpu.get_capabilities` is younger than torch 2.9; every CPU with AMX has this too.
        return torch.cpu._is_avx512_bf16_supported()
    return False
