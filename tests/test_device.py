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
