import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relabel import device
from relabel.errors import RelabelError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with nothing but a plain CPU, to which a test adds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("amp", "native", "expected"),
    [
        ("auto", False, None),
        ("auto", True, torch.bfloat16),
        ("off", True, None),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_bf16_where_the_cpu_multiplies_it(
    machine: pytest.MonkeyPatch, amp: str, native: bool, expected: torch.dtype | None
) -> None:
    machine.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    compute = device.resolve("cpu", amp)
    assert compute.autocast_dtype is expected
    assert compute.describe() == ("cpu, float32" if expected is None else "cpu, bf16")
    with compute.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (expected or torch.float32)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_the_fastest_device(
    machine: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: cuda)
    machine.setattr(torch.mps, "is_available", lambda: mps)
    assert device.resolve("auto", "off").device == torch.device(expected)


@pytest.mark.parametrize("native", [False, True])
def test_emulated_bf16_is_not_taken_on_cuda(machine: pytest.MonkeyPatch, native: bool) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert device.resolve("cuda").autocast_dtype is (torch.bfloat16 if native else None)


@pytest.mark.parametrize("name", ["cuda", "mps"])
@pytest.mark.usefixtures("machine")
def test_a_device_that_is_missing_is_refused(name: str) -> None:
    with pytest.raises(RelabelError, match=f"--device {name}: this machine has no") as caught:
        device.resolve(name)
    assert "--device cpu" in caught.value.hint


def test_what_is_in_host_memory_already_is_not_copied() -> None:
    values = torch.arange(3)
    assert device.upload(values, torch.device("cpu")) is values
    assert device.upload(values, torch.device("meta")).device.type == "meta"


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="pages of 2 MB are not granted on request here",
)
def test_large_blocks_are_asked_for_in_large_pages_unless_the_user_objects() -> None:
    program = (
        "import resource, relabel.verbs.fit, torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(2**26)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    faults = [
        int(subprocess.check_output([sys.executable, "-c", program], env=inherited | chosen, timeout=120))
        for chosen in ({}, {"THP_MEM_ALLOC_ENABLE": "0"})
    ]
    assert 4 * faults[0] < faults[1]
