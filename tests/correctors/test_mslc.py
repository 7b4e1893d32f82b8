"""MSLC against eq. 6, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.mslc import MSLC

B, C = 6, 4
GENERATOR = torch.Generator().manual_seed(2)
LOGITS = 2 * torch.randn(B, C, generator=GENERATOR).double()
GIVEN = torch.randint(C, (B,), generator=GENERATOR)
PREVIOUS = torch.randn(B, C, generator=GENERATOR).double().softmax(dim=1)
MEMORY = {"soft_label": PREVIOUS}
TARGETS = {
    "given": F.one_hot(GIVEN, C).double(),
    "previous": PREVIOUS,
    "prediction": LOGITS.softmax(dim=1),
}


def corrector(a: float | None = None, b: float | None = None) -> MSLC:
    """A fresh MSLC; a coefficient asked for is what its net answers to every loss."""
    torch.manual_seed(4)
    made = MSLC().double()
    for net, coefficient in ((made.alpha_net, a), (made.beta_net, b)):
        last = net[2]
        assert isinstance(last, nn.Linear)
        if coefficient is not None:
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, 1e4 * (2 * coefficient - 1))
    return made


@pytest.mark.parametrize(
    ("a", "b", "target"), [(1, 0, "given"), (1, 1, "given"), (0, 1, "previous"), (0, 0, "prediction")]
)
def test_the_corners_of_the_mix(a: float, b: float, target: str) -> None:
    assert torch.equal(corrector(a, b).soft_label(LOGITS, GIVEN, MEMORY), TARGETS[target])


def test_the_loss_is_the_mix_of_three_cross_entropies() -> None:
    made = corrector()
    a, b = made.coefficients(LOGITS, GIVEN, PREVIOUS)
    assert a.shape == b.shape == (B, 1)
    assert a.std() > 1e-6, "the coefficients depend on the row"
    terms = {
        name: F.cross_entropy(LOGITS, target, reduction="none")[:, None] for name, target in TARGETS.items()
    }
    expected = a * terms["given"] + (1 - a) * b * terms["previous"] + (1 - a) * (1 - b) * terms["prediction"]
    torch.testing.assert_close(made.loss(LOGITS, GIVEN, MEMORY), expected[:, 0], rtol=1e-12, atol=0)


def test_the_coefficients_read_the_losses_of_the_given_and_of_the_previous_label() -> None:
    made = corrector()
    a, b = made.coefficients(LOGITS, GIVEN, PREVIOUS)
    log_probability = LOGITS.log_softmax(dim=1)
    for net, labels, found in (
        (made.alpha_net, GIVEN, a),
        (made.beta_net, PREVIOUS.argmax(dim=1), b),
    ):
        torch.testing.assert_close(found, net(-log_probability.gather(1, labels[:, None])))


def test_no_gradient_reaches_the_logits_through_the_soft_label() -> None:
    logits = LOGITS.clone().requires_grad_()
    made = corrector()
    (gradient,) = torch.autograd.grad(made.loss(logits, GIVEN, MEMORY).sum(), logits)
    expected = TARGETS["prediction"] - made.soft_label(LOGITS, GIVEN, MEMORY)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    soft_label = made.soft_label(logits, GIVEN, MEMORY)
    assert torch.autograd.grad(soft_label.square().sum(), logits, allow_unused=True) == (None,)


def test_the_memory_starts_at_a_copy_of_the_mean_probability() -> None:
    mean = PREVIOUS.clone()
    memory = corrector().begin(mean)
    mean.zero_()
    assert list(memory) == ["soft_label"]
    assert torch.equal(memory["soft_label"], PREVIOUS)


def test_the_memory_becomes_the_soft_label() -> None:
    made = corrector()
    remembered: dict[str, Tensor] = made.remember(LOGITS, GIVEN, MEMORY)
    assert torch.equal(remembered["soft_label"], made.soft_label(LOGITS, GIVEN, MEMORY))
    assert torch.equal(MEMORY["soft_label"], PREVIOUS)


def test_the_warm_start_trusts_given_labels_by_how_often_their_loss_was_right() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(5, (400,), generator=generator)
    wrong = torch.rand(400, generator=generator) < 0.4
    given = torch.where(wrong, (true + 1) % 5, true)
    logits = 3 * torch.nn.functional.one_hot(true, 5) + torch.randn(400, 5, generator=generator)
    corrector = MSLC()
    beta = [value.clone() for value in corrector.beta_net.parameters()]
    corrector.warm_start(logits, given, true)
    losses = torch.nn.functional.cross_entropy(logits, given, reduction="none")
    with torch.no_grad():
        a, _ = corrector.coefficients(logits, given, torch.softmax(logits, dim=1))
    assert a[losses < 0.2].mean() > 0.9
    assert a[losses > 3].mean() < 0.2
    assert abs(a.mean().item() - 0.6) < 0.05  # calibrated on average: 60 % of the given labels are right
    assert all(torch.equal(x, y) for x, y in zip(beta, corrector.beta_net.parameters(), strict=True))
