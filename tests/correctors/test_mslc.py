"""MSLC against eq. 6, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import WarmUp
from relabel.correctors.mslc import MSLC
from relabel.ledger import Ledger

B, C, D = 6, 4, 3
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
options = pytest.mark.parametrize("targets", ["soft", "hard"])


def corrector(a: float | None = None, b: float | None = None, targets: str = "soft") -> MSLC:
    """A fresh MSLC; a coefficient asked for is what its net answers to every loss."""
    torch.manual_seed(4)
    made = MSLC(C, D, targets=targets).double()
    for net, coefficient in ((made.alpha_net, a), (made.beta_net, b)):
        last = net[2]
        assert isinstance(last, nn.Linear)
        if coefficient is not None:
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, 1e4 * (2 * coefficient - 1))
    return made


def hard(target: Tensor) -> Tensor:
    return F.one_hot(target.argmax(dim=1), C).double()


@pytest.mark.parametrize(
    ("a", "b", "target"), [(1, 0, "given"), (1, 1, "given"), (0, 1, "previous"), (0, 0, "prediction")]
)
@options
def test_the_corners_of_the_mix(a: float, b: float, target: str, targets: str) -> None:
    made = corrector(a, b, targets)
    assert torch.equal(made.soft_label(LOGITS, GIVEN, MEMORY), TARGETS[target])
    trained_on = TARGETS[target] if targets == "soft" else hard(TARGETS[target])
    loss = made.loss(LOGITS, GIVEN, MEMORY)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, trained_on, reduction="none"))


@options
def test_the_loss_is_the_mix_of_three_cross_entropies(targets: str) -> None:
    made = corrector(targets=targets)
    a, b = made.coefficients(LOGITS, GIVEN, PREVIOUS)
    assert a.shape == b.shape == (B, 1)
    assert a.std() > 1e-6, "the coefficients depend on the row"
    terms = {
        name: F.cross_entropy(LOGITS, target if targets == "soft" else hard(target), reduction="none")[
            :, None
        ]
        for name, target in TARGETS.items()
    }
    expected = a * terms["given"] + (1 - a) * b * terms["previous"] + (1 - a) * (1 - b) * terms["prediction"]
    torch.testing.assert_close(made.loss(LOGITS, GIVEN, MEMORY), expected[:, 0], rtol=1e-12, atol=0)


def test_the_loss_is_the_cross_entropy_against_the_soft_label() -> None:
    made = corrector()
    expected = F.cross_entropy(LOGITS, made.soft_label(LOGITS, GIVEN, MEMORY), reduction="none")
    torch.testing.assert_close(made.loss(LOGITS, GIVEN, MEMORY), expected, rtol=1e-12, atol=0)


def test_the_coefficients_read_the_losses_of_the_given_and_of_the_previous_label() -> None:
    made = corrector()
    a, b = made.coefficients(LOGITS, GIVEN, PREVIOUS)
    log_probability = LOGITS.log_softmax(dim=1)
    for net, labels, found in (
        (made.alpha_net, GIVEN, a),
        (made.beta_net, PREVIOUS.argmax(dim=1), b),
    ):
        torch.testing.assert_close(found, net(-log_probability.gather(1, labels[:, None])))


@options
def test_no_gradient_reaches_the_logits_through_the_targets(targets: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    made = corrector(targets=targets)
    (gradient,) = torch.autograd.grad(made.loss(logits, GIVEN, MEMORY).sum(), logits)
    a, b = made.coefficients(LOGITS, GIVEN, PREVIOUS)
    given, previous, prediction = TARGETS.values() if targets == "soft" else map(hard, TARGETS.values())
    expected = TARGETS["prediction"] - (a * given + (1 - a) * (b * previous + (1 - b) * prediction))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    soft_label = made.soft_label(logits, GIVEN, MEMORY)
    (none,) = torch.autograd.grad(soft_label.square().sum(), logits, allow_unused=True)
    assert none is None


@options
def test_the_memory_becomes_the_soft_mix(targets: str) -> None:
    made = corrector(targets=targets)
    remembered: dict[str, Tensor] = made.remember(LOGITS, GIVEN, MEMORY)
    assert torch.equal(remembered["soft_label"], corrector().soft_label(LOGITS, GIVEN, MEMORY))
    assert torch.equal(MEMORY["soft_label"], PREVIOUS)


def test_the_memory_does_not_depend_on_the_order_of_the_rows() -> None:
    """Two epochs in batches, through a ledger: another order and other batches leave the same memory."""

    def after_two_epochs(*epochs: list[list[int]]) -> Tensor:
        made, ledger = corrector(), Ledger(B, C)
        ledger.memory = {"soft_label": PREVIOUS.clone()}
        with torch.no_grad():
            for number, batches in enumerate(epochs):
                for rows in map(torch.tensor, batches):
                    memory = ledger.read(rows, torch.device("cpu"))
                    logits = LOGITS[rows] * (1 + number)
                    ledger.write(rows, made.remember(logits, GIVEN[rows], memory))
        return ledger.memory["soft_label"]

    one = after_two_epochs([[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 4, 5]])
    other = after_two_epochs([[5, 1], [0, 3], [4, 2]], [[2, 0, 4, 1, 3], [5]])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(one, PREVIOUS, atol=1e-2)


def simulated(rows: int = 400) -> WarmUp:
    """Meta rows of five classes, 40 % of them given the next class; a quarter has no given label."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(5, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < 0.4
    given = torch.where(wrong, (true + 1) % 5, true)
    logits = 3 * F.one_hot(true, 5) + torch.randn(rows, 5, generator=generator)
    given[::4] = -1
    return WarmUp(
        mean_probability=torch.rand(rows, 5, generator=generator).softmax(dim=1),
        head=nn.Linear(D, 5),
        features=lambda: torch.zeros(rows, D),
        meta=torch.arange(rows),
        meta_true=true,
        meta_given=given,
        meta_logits=logits,
    )


def parameters(net: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in net.parameters()]


def test_the_memory_starts_at_a_copy_of_the_mean_probability() -> None:
    warm_up = simulated()
    before = warm_up.mean_probability.clone()
    memory = MSLC(5, D, start="random").begin(warm_up)
    assert list(memory) == ["soft_label"]
    memory["soft_label"].zero_()
    assert torch.equal(warm_up.mean_probability, before)
    assert torch.equal(MSLC(5, D).begin(warm_up)["soft_label"], before)


def test_the_trusted_start_believes_given_labels_by_how_often_their_loss_was_right() -> None:
    warm_up, made = simulated(), MSLC(5, D)
    beta = parameters(made.beta_net)
    made.begin(warm_up)
    labelled = warm_up.meta_given >= 0
    logits, given = warm_up.meta_logits[labelled], warm_up.meta_given[labelled]
    losses = F.cross_entropy(logits, given, reduction="none")
    with torch.no_grad():
        a, _ = made.coefficients(logits, given, torch.softmax(logits, dim=1))
    assert a[losses < 0.2].mean() > 0.9
    assert a[losses > 3].mean() < 0.2
    assert abs(a.mean().item() - 0.6) < 0.05  # calibrated on average: 60 % of the given labels are right
    assert all(torch.equal(x, y) for x, y in zip(beta, made.beta_net.parameters(), strict=True))


@pytest.mark.parametrize("why", ["asked for", "no meta row has a given label"])
def test_otherwise_the_nets_start_at_random(why: str) -> None:
    warm_up = simulated()
    made = MSLC(5, D, start="random" if why == "asked for" else "trusted")
    if why != "asked for":
        warm_up.meta_given.fill_(-1)
    before = parameters(made)
    made.begin(warm_up)
    assert all(torch.equal(x, y) for x, y in zip(before, made.parameters(), strict=True))
