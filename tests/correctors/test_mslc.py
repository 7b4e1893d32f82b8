"""MSLC against eq. 6, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Epoch, Memory, Store, TrustedRows, WarmUp, no_rows
from relabel.correctors.mslc import MSLC
from relabel.sample_memory import SampleMemory

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
    """A fresh MSLC; a coefficient, where given, is what its net answers to every loss."""
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
    """Two epochs in batches: another order and other batches leave the same memory."""

    def after_two_epochs(*epochs: list[list[int]]) -> Tensor:
        made, sample_memory = corrector(), SampleMemory(B, C)
        sample_memory.memory = {"soft_label": PREVIOUS.clone()}
        with torch.no_grad():
            for number, batches in enumerate(epochs):
                for rows in map(torch.tensor, batches):
                    memory = sample_memory.read(rows, torch.device("cpu"))
                    logits = LOGITS[rows] * (1 + number)
                    sample_memory.write(rows, made.remember(logits, GIVEN[rows], memory))
        return sample_memory.memory["soft_label"]

    one = after_two_epochs([[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 4, 5]])
    other = after_two_epochs([[5, 1], [0, 3], [4, 2]], [[2, 0, 4, 1, 3], [5]])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(one, PREVIOUS, atol=1e-2)


def simulated(rows: int = 400, in_training_rows: int = 300) -> WarmUp:
    """Five classes, 40 % of the given labels the next class; predictions that know something of the truth."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(5, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < 0.4
    given = torch.where(wrong, (true + 1) % 5, true)
    logits = 1.5 * F.one_hot(true, 5) + torch.randn(2, rows, 5, generator=generator)
    in_training = (
        torch.arange(rows)[-in_training_rows:] if in_training_rows else torch.zeros(0, dtype=torch.int64)
    )
    return WarmUp(
        mean_probability=logits.mean(dim=0).softmax(dim=1),
        probability=logits[0].softmax(dim=1),
        given=given,
        head=nn.Linear(D, 5),
        features=lambda: torch.zeros(rows, D),
        meta=no_rows(),
        in_training=TrustedRows(in_training, true[in_training], given[in_training]),
    )


def memorised(warm_up: WarmUp, share: float) -> Epoch:
    """The same rows after an epoch whose predictions hold so much of the given label."""
    given = torch.zeros(len(warm_up.probability), dtype=torch.int64)
    given[warm_up.in_training.rows] = warm_up.in_training.given
    mixed = (1 - share) * warm_up.probability + share * F.one_hot(given, 5)
    return Epoch(
        number=1,
        probability=mixed,
        trained=torch.ones(len(given), dtype=torch.bool),
        given=given,
        memory={"soft_label": mixed},
        meta=warm_up.meta,
        in_training=warm_up.in_training,
    )


def in_training_soft_label(made: MSLC, seen: WarmUp | Epoch, memory: Memory) -> Tensor:
    """Eq. 6 of the in-training rows [W, 5]."""
    logits, previous = (
        seen.probability[seen.in_training.rows].log(),
        memory["soft_label"][seen.in_training.rows],
    )
    with torch.no_grad():
        return made.soft_label(logits, seen.in_training.given, {"soft_label": previous})


def log_likelihood(soft_label: Tensor, true: Tensor) -> float:
    return soft_label.gather(1, true[:, None]).log().mean().item()


def started(made: MSLC, seen: WarmUp) -> Store:
    """The memory with which the meta phase begins, after the start of φ."""
    made.initialise(seen)
    return made.begin(seen)


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


def test_the_trusted_start_makes_the_in_training_rows_true_labels_likely() -> None:
    warm_up = simulated()
    torch.manual_seed(0)
    made, random = MSLC(5, D), MSLC(5, D, start="random")
    memory = started(made, warm_up)
    started(random, warm_up)
    true = warm_up.in_training.true
    found = log_likelihood(in_training_soft_label(made, warm_up, memory), true)
    assert found > log_likelihood(in_training_soft_label(random, warm_up, memory), true) + 0.1
    # No fixed pair of coefficients does better: the nets tell the rows apart.
    terms = (
        F.one_hot(warm_up.in_training.given, 5).float(),
        memory["soft_label"][warm_up.in_training.rows],
        warm_up.probability[warm_up.in_training.rows],
    )
    grid = torch.linspace(0, 0.95, 20)
    best = max(
        log_likelihood(a * terms[0] + (1 - a) * (b * terms[1] + (1 - b) * terms[2]), warm_up.in_training.true)
        for a in grid
        for b in grid
    )
    assert found > best - 0.02


def test_a_memorised_label_is_not_believed_for_it() -> None:
    """Its loss has become small, which without the in-training rows would be taken for proof."""
    warm_up = simulated()
    torch.manual_seed(0)
    made = MSLC(5, D)
    memory = started(made, warm_up)
    before = in_training_soft_label(made, warm_up, memory)
    epoch = memorised(warm_up, 0.3)

    def believed(soft_label: Tensor) -> float:
        wrong = epoch.in_training.given != epoch.in_training.true
        return soft_label.gather(1, epoch.in_training.given[:, None])[wrong].mean().item()

    unfitted = believed(in_training_soft_label(made, epoch, epoch.memory))
    for _ in range(6):
        assert made.observe(epoch) == {}
    fitted = in_training_soft_label(made, epoch, epoch.memory)
    assert unfitted > believed(before) + 0.1
    assert believed(fitted) < unfitted - 0.05
    memory_of_it = epoch.probability[epoch.in_training.rows]
    assert (
        log_likelihood(fitted, epoch.in_training.true)
        > log_likelihood(memory_of_it, epoch.in_training.true) - 0.01
    )


def test_a_few_in_training_rows_move_little() -> None:
    few, many = simulated(in_training_rows=2), simulated(in_training_rows=300)
    coefficients = []
    for warm_up in (few, many):
        torch.manual_seed(0)
        made = MSLC(5, D)
        memory = started(made, warm_up)
        with torch.no_grad():
            rows = many.in_training.rows
            found = made.coefficients(
                warm_up.probability[rows].log(), many.in_training.given, memory["soft_label"][rows]
            )
        coefficients.append(torch.cat(found, dim=1))
    assert (coefficients[0] - 0.5).abs().mean() < 0.6 * (coefficients[1] - 0.5).abs().mean()


UNIFORM = torch.full((C,), 1 / C).double()


def alike(in_training_rows: int, true: int, prediction: Tensor, previous: Tensor) -> Epoch:
    """In-training rows of given class 0, all with one prediction and one memory [C]: each net has one value
    to find."""
    rows = torch.arange(in_training_rows)
    given = torch.zeros(in_training_rows, dtype=torch.int64)
    return Epoch(
        number=1,
        probability=prediction.expand(in_training_rows, C).clone(),
        trained=torch.ones(in_training_rows, dtype=torch.bool),
        given=given,
        memory={"soft_label": previous.expand(in_training_rows, C).clone()},
        meta=no_rows(),
        in_training=TrustedRows(rows, torch.full_like(given, true), given),
    )


def fitted_coefficients(made: MSLC, epoch: Epoch) -> list[float]:
    with torch.no_grad():
        found = made.coefficients(epoch.probability.log(), epoch.given, epoch.memory["soft_label"])
    return [float(each[0]) for each in found]


@pytest.mark.parametrize("in_training_rows", [2, 10, 40])
def test_so_many_in_training_rows_outweigh_ten_that_say_one_half(in_training_rows: int) -> None:
    """All given rightly, and nothing else is known of their class: W log(a + (1 - a) / C) + 5 log(a (1 - a))
    is at its largest."""
    torch.manual_seed(0)
    made, seen = MSLC(C, D).double(), alike(in_training_rows, 0, UNIFORM, UNIFORM)
    for _ in range(12):
        made.observe(seen)
    a = torch.linspace(0.001, 0.999, 999).double()
    objective = in_training_rows * (a + (1 - a) / C).log() + 5 * (a * (1 - a)).log()
    found = fitted_coefficients(made, seen)
    assert found == pytest.approx([a[objective.argmax()].item(), 0.5], abs=0.01)


def test_an_epoch_s_fit_follows_what_has_changed() -> None:
    torch.manual_seed(0)
    made = MSLC(C, D).double()
    right, wrong = (alike(40, true, UNIFORM, UNIFORM) for true in (0, 1))
    for _ in range(12):
        made.observe(right)
    before = fitted_coefficients(made, right)[0]
    made.observe(wrong)
    assert fitted_coefficients(made, right)[0] < 0.6 * before, "within one epoch"


@pytest.mark.parametrize("who", ["memory", "prediction"])
def test_the_fit_tells_the_memory_from_the_prediction(who: str) -> None:
    """All given wrongly; one of the two knows the true class."""
    knows = (0.9 * F.one_hot(torch.tensor(1), C) + 0.1 / C).double()
    torch.manual_seed(0)
    made = MSLC(C, D).double()
    seen = alike(40, 1, *((UNIFORM, knows) if who == "memory" else (knows, UNIFORM)))
    for _ in range(12):
        made.observe(seen)
    a, b = fitted_coefficients(made, seen)
    assert a < 0.2
    assert b > 0.75 if who == "memory" else b < 0.25


@pytest.mark.parametrize("why", ["random", "no in-training row"])
def test_otherwise_the_nets_start_at_random_and_are_left_to_the_look_ahead(why: str) -> None:
    warm_up = simulated(in_training_rows=300 if why == "random" else 0)
    made = MSLC(5, D, start="random" if why == "random" else "trusted")
    assert made.needs.in_training_rows == (why != "random")
    before = parameters(made)
    started(made, warm_up)
    made.observe(memorised(warm_up, 0.3))
    assert all(torch.equal(x, y) for x, y in zip(before, made.parameters(), strict=True))
