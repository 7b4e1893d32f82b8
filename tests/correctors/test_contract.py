"""What every registered corrector promises, whatever its method."""

import copy
import io
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from relabel import hypergradient
from relabel.correctors import REGISTRY, create
from relabel.correctors.base import Corrector, Memory

B, C, D = 7, 4, 5
correctors = pytest.mark.parametrize("name", sorted(REGISTRY))


def made(name: str) -> Corrector:
    torch.manual_seed(11)
    return create(name).double()


def batch(corrector: Corrector) -> tuple[Tensor, Tensor, Memory]:
    """Logits, given labels, and a memory that is neither the start nor the prediction."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(B, C, generator=generator).double()
    given = torch.randint(C, (B,), generator=generator)
    memory = corrector.begin(torch.randn(B, C, generator=generator).double().softmax(dim=1))
    return logits, given, memory


def assert_close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@correctors
def test_soft_labels_are_distributions(name: str) -> None:
    corrector = made(name)
    soft_label = corrector.soft_label(*batch(corrector))
    assert soft_label.shape == (B, C)
    assert (soft_label >= 0).all()
    assert_close(soft_label.sum(dim=1), torch.ones(B).double())


@correctors
def test_the_memory_keeps_its_shape(name: str) -> None:
    corrector = made(name)
    logits, given, memory = batch(corrector)
    new = corrector.remember(logits, given, memory)
    assert {key: value.shape for key, value in new.items()} == {k: v.shape for k, v in memory.items()}
    assert all(len(value) == B for value in new.values())


@correctors
def test_the_loss_is_differentiable_in_the_logits(name: str) -> None:
    corrector = made(name)
    logits, given, memory = batch(corrector)
    logits.requires_grad_()
    loss = corrector.loss(logits, given, memory)
    assert loss.shape == (B,)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(dim=1) > 0).all()


@correctors
def test_the_trusted_loss_reaches_every_parameter(name: str) -> None:
    corrector = made(name)
    parameters = list(corrector.parameters())
    if not parameters:
        assert not corrector.uses_trusted_rows
        return
    logits, given, memory = batch(corrector)
    features = torch.randn(B, D).double()
    head = torch.nn.Linear(D, C).double()
    gradients = hypergradient.last_layer(
        head,
        features,
        logits,
        lambda z: corrector.loss(z, given, memory),
        parameters,
        torch.randn(3, D).double(),
        torch.tensor([0, 2, 1]),
        0.5,
    )
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-9


@correctors
def test_extreme_logits_stay_finite(name: str) -> None:
    corrector = made(name)
    _, given, memory = batch(corrector)
    logits = (1e4 * F.one_hot((given + 1) % C, C).double()).requires_grad_()
    loss = corrector.loss(logits, given, memory)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@correctors
def test_the_state_goes_through_a_file(name: str) -> None:
    corrector = made(name)
    file = io.BytesIO()
    torch.save(corrector.state_dict(), file)
    file.seek(0)
    torch.manual_seed(12)
    restored = create(name).double()
    restored.load_state_dict(torch.load(file, weights_only=True))
    given = batch(corrector)
    assert torch.equal(restored.soft_label(*given), corrector.soft_label(*given))
    assert torch.equal(restored.loss(*given), corrector.loss(*given))


@correctors
def test_rows_do_not_see_each_other_or_their_order(name: str) -> None:
    corrector = made(name)
    logits, given, memory = batch(corrector)
    rows = torch.tensor([4, 0, 6])
    picked = logits[rows], given[rows], {key: value[rows] for key, value in memory.items()}
    for method in (corrector.soft_label, corrector.loss):
        assert_close(method(*picked), method(logits, given, memory)[rows])
    remembered = corrector.remember(logits, given, memory)
    assert_close(corrector.remember(*picked), {key: value[rows] for key, value in remembered.items()})


@correctors
def test_renaming_the_classes_renames_the_output(name: str) -> None:
    corrector = made(name)
    logits, given, _ = batch(corrector)
    mean_probability = torch.rand(B, C, generator=torch.Generator().manual_seed(6)).double().softmax(dim=1)
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = logits[:, order], order.argsort()[given], corrector.begin(mean_probability[:, order])
    original = logits, given, corrector.begin(mean_probability)
    assert_close(corrector.soft_label(*renamed), corrector.soft_label(*original)[:, order])
    assert_close(corrector.loss(*renamed), corrector.loss(*original))


@correctors
def test_a_step_on_the_loss_changes_neither_parameters_nor_memory(name: str) -> None:
    corrector = made(name)
    given = batch(corrector)
    before = copy.deepcopy((given, corrector.state_dict()))
    corrector.loss(*given)
    corrector.remember(*given)
    torch.testing.assert_close((given, corrector.state_dict()), before, rtol=0, atol=0)


def test_listing_the_correctors_imports_no_torch() -> None:
    code = (
        "import sys; from relabel.correctors import REGISTRY; assert REGISTRY; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
