"""MLC's transition matrix, loss and posterior, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import TrustedRows, WarmUp
from relabel.correctors.mlc import MLC, projected
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.metrics import noise_matrix

B, C, D = 9, 4, 3
GENERATOR = torch.Generator().manual_seed(2)
LOGITS = 2 * torch.randn(B, C, generator=GENERATOR).double()
GIVEN = torch.randint(C, (B,), generator=GENERATOR)
# Row = true class. Far from symmetric, so that T and its transpose differ.
TRANSITION = torch.tensor(
    [[0.7, 0.2, 0.1, 0.0], [0.0, 0.9, 0.05, 0.05], [0.3, 0.3, 0.4, 0.0], [0.0, 0.0, 0.5, 0.5]],
    dtype=torch.float64,
)
TINY = 1e-8  # what the logarithm adds to T's entries

parametrizations = pytest.mark.parametrize("parametrization", ["softmax", "projection"])


def corrector(parametrization: str, transition: Tensor | None = None, start: str = "trusted") -> MLC:
    made = MLC(C, D, parametrization, start).double()
    if transition is not None:
        with torch.no_grad():
            made.scores.copy_(transition if parametrization == "projection" else transition.log().clamp(-80))
    return made


def assert_stochastic(transition: Tensor) -> None:
    assert (transition >= 0).all()
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(len(transition)).double())


@parametrizations
@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_the_transition_stays_row_stochastic_however_far_a_step_goes(
    parametrization: str, rate: float
) -> None:
    made = corrector(parametrization)
    optimizer = torch.optim.Adam(made.parameters(), lr=rate)
    before = made.transition.detach().clone()
    for seed in range(5):
        prior_precision = torch.randn(C, C, generator=torch.Generator().manual_seed(seed)).double()
        optimizer.zero_grad()
        (made.transition * prior_precision).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        made.project()
        assert_stochastic(made.transition.detach())
    assert (made.transition - before).abs().max() > rate / 1000


def test_the_projection_by_hand() -> None:
    matrix = torch.tensor([[0.5, 0.5, 1.0], [-1.0, 0.0, -2.0], [-3.0, 0.1, 0.3]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.25, 0.5], [0, 1, 0], [0, 0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(projected(matrix), expected)


def test_the_projection_of_nothing_is_the_identity() -> None:
    assert torch.equal(projected(torch.zeros(C, C)), torch.eye(C))


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_is_idempotent(seed: int) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double()
    matrix[0] = -matrix[0].abs()
    matrix[1] = 1e-300  # sums far below 1 still scale up
    once = projected(matrix)
    assert_stochastic(once)
    torch.testing.assert_close(projected(once), once, rtol=1e-14, atol=0)
    torch.testing.assert_close(projected(TRANSITION), TRANSITION, rtol=1e-14, atol=0)


def test_only_the_projection_changes_the_parameters_after_a_step() -> None:
    made = corrector("softmax", TRANSITION)
    before = made.scores.detach().clone()
    made.project()
    assert torch.equal(made.scores, before)


def test_without_noise_the_loss_is_cross_entropy() -> None:
    expected = F.cross_entropy(LOGITS, GIVEN, reduction="none")
    memory: dict[str, Tensor] = {}
    for parametrization in ("softmax", "projection"):
        made = corrector(parametrization, torch.eye(C).double())
        error = (made.loss(LOGITS, GIVEN, memory) - expected).abs()
        assert (error <= 2 * TINY * expected.exp()).all()
        assert torch.equal(made.soft_label(LOGITS, GIVEN, memory).argmax(dim=1), GIVEN)


@parametrizations
def test_the_loss_is_that_of_the_label_seen_through_the_transition(parametrization: str) -> None:
    made = corrector(parametrization, TRANSITION)
    seen = torch.softmax(LOGITS, dim=1) @ TRANSITION
    seen = seen.gather(1, GIVEN[:, None])[:, 0]
    assert ((made.loss(LOGITS, GIVEN, {}) + seen.log()).abs() <= 2 * TINY / seen).all()


@parametrizations
def test_rows_of_the_transition_are_true_classes(parametrization: str) -> None:
    """An image of class 0 that is given 1, T_01 = 0.2, and one of class 1 that is given 0, T_10 = 0."""
    made = corrector(parametrization, TRANSITION)
    sure = 100 * torch.eye(C).double()[:2]
    loss = made.loss(sure, torch.tensor([1, 0]), {})
    assert loss[0].item() == pytest.approx(-np.log(0.2))
    assert loss[1] > 15
    assert made.describe()["transition_matrix"][0] == pytest.approx(TRANSITION[0].tolist())  # type: ignore[index]


@parametrizations
def test_the_probabilities_of_the_given_labels_sum_to_one(parametrization: str) -> None:
    made = corrector(parametrization, TRANSITION)
    seen = torch.stack([(-made.loss(LOGITS, torch.full((B,), label), {})).exp() for label in range(C)])
    torch.testing.assert_close(seen.sum(dim=0), torch.ones(B).double(), rtol=0, atol=2 * C * TINY)


@parametrizations
def test_the_soft_label_is_the_posterior(parametrization: str) -> None:
    made = corrector(parametrization, TRANSITION)
    joint = torch.softmax(LOGITS, dim=1) * (TRANSITION + TINY)[:, GIVEN].T
    expected = joint / joint.sum(dim=1, keepdim=True)
    torch.testing.assert_close(made.soft_label(LOGITS, GIVEN, {}), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sure", [0, 2])
def test_an_impossible_label_leaves_the_prediction_to_judge(sure: int) -> None:
    """Where nothing but rounding explains the given label, the loss is large and its gradient finite."""
    made = corrector("projection", torch.eye(C).double())
    logits = (200 * F.one_hot(torch.tensor([sure]), C).double()).requires_grad_()
    loss = made.loss(logits, torch.tensor([1]), {})
    (gradient,) = torch.autograd.grad(loss.sum(), [logits])
    assert 15 < loss.item() < 200
    assert gradient.isfinite().all()


def warm_up(given: list[int], true: list[int], probability: Tensor | None = None) -> WarmUp:
    """Eight rows, the first of them trusted; the others are given classes 0 to 3 in turn."""
    return WarmUp(
        mean_probability=torch.full((8, C), 1 / C) if probability is None else probability,
        probability=torch.full((8, C), 1 / C),
        given=torch.tensor([*given, *(row % C for row in range(len(given), 8))]),
        head=nn.Linear(D, C),
        features=lambda: torch.zeros(8, D),
        meta=TrustedRows(torch.arange(len(given)), torch.tensor(true), torch.tensor(given)),
    )


@parametrizations
def test_the_trusted_start_is_how_the_meta_rows_were_labelled(parametrization: str) -> None:
    given, true = [0, 1, 1, 2, -1, 3, 1, -1], [0, 0, 1, 2, 2, 2, 1, 3]
    made = corrector(parametrization)
    made.initialise(warm_up(given, true))
    counts = noise_matrix(np.array([0, 1, 1, 2, 3, 1]), np.array([0, 0, 1, 2, 2, 1]), C)
    expected = torch.from_numpy(TransitionEstimate.of(counts).matrix)
    torch.testing.assert_close(made.transition.detach(), expected, rtol=1e-6, atol=1e-6)
    assert expected[0, 1] > expected[1, 0], "by true class"


@parametrizations
@pytest.mark.parametrize("given", [[0, 1, 1], [-1, -1, -1]], ids=["given labels", "none"])
def test_it_is_drawn_towards_the_anchor_points_among_the_other_rows(
    parametrization: str, given: list[int]
) -> None:
    """Rows 3 to 7 are given 3, 0, 1, 2, 3 and taken for 2, 0, 0, 2, 3, the trusted ones for 3."""
    predicted = F.one_hot(torch.tensor([3, 3, 3, 2, 0, 0, 2, 3]), C)
    made = corrector(parametrization)
    made.initialise(warm_up(given, [0, 0, 1], 0.9 * predicted + 0.025))
    anchors = np.zeros((C, C), dtype=np.int64)
    for row, label in ((0, 0), (2, 3), (3, 3)):  # the surest of each, one for each class that is given
        anchors[row, label] += 1
    pairs = noise_matrix(np.array(given), np.array([0, 0, 1]), C)
    expected = torch.from_numpy(TransitionEstimate.of(pairs, anchors).matrix)
    torch.testing.assert_close(made.transition.detach(), expected, rtol=1e-6, atol=1e-6)


@parametrizations
@pytest.mark.parametrize(
    ("start", "given"),
    [("identity", [1, 2, 3, 0]), ("trusted", [-1] * 4)],
    ids=["identity", "no given label"],
)
def test_otherwise_there_is_no_noise_at_the_start(parametrization: str, start: str, given: list[int]) -> None:
    made = corrector(parametrization, start=start)
    made.initialise(warm_up(given, [0, 1, 2, 3]))
    torch.testing.assert_close(made.transition.detach(), torch.eye(C).double(), rtol=0, atol=0.01)
    if parametrization == "projection":
        assert torch.equal(made.transition, torch.eye(C).double())


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_start_without_noise_is_near_the_identity_at_any_number_of_classes(classes: int) -> None:
    transition = MLC(classes, D, start="identity").transition.detach()
    assert transition.diagonal().min() >= 0.99
    assert transition.min() > 0, "an entry of 0 could not grow"


def test_learning_on_labels_of_known_classes_finds_the_noise() -> None:
    """The maximum-likelihood T given true classes is how they were labelled: the gradient's sign and axes."""
    true = torch.arange(C).repeat_interleave(200)
    given = torch.multinomial(TRANSITION[true], 1, generator=torch.Generator().manual_seed(0))[:, 0]
    counts = torch.from_numpy(noise_matrix(given.numpy(), true.numpy(), C)).double()
    logits = 30 * F.one_hot(true, C).double()
    made = corrector("softmax", start="identity")
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        made.loss(logits, given, {}).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(made.transition.detach(), counts / 200, rtol=0, atol=0.02)
