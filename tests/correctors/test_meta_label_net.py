"""MetaLabelNet's loss, its frozen features and its guard, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.backbones import Backbone
from relabel.correctors.base import Epoch, Store, TrustedRows, WarmUp, no_rows
from relabel.correctors.meta_label_net import MetaLabelNet
from relabel.training import hypergradient
from relabel.training.hypergradient import LookAhead, TrustedBatch

N, C, D = 30, 4, 5
GENERATOR = torch.Generator().manual_seed(2)
FEATURES = torch.randn(N, D, generator=GENERATOR).double()
LOGITS = 2 * torch.randn(N, C, generator=GENERATOR).double()
GIVEN = torch.randint(C, (N,), generator=GENERATOR)
META = torch.tensor([3, 5, 8, 13, 21, 27])
META_TRUE = torch.tensor([0, 1, 2, 3, 1, 0])
VERIFIED = TrustedRows(META, META_TRUE, torch.full_like(META, -1))
MEMORY = {"features": FEATURES}


def corrector(start: str = "classifier") -> MetaLabelNet:
    torch.manual_seed(4)
    return MetaLabelNet(C, D, start).double()


def head() -> nn.Linear:
    torch.manual_seed(9)
    return nn.Linear(D, C).double()


def warm_up(classifier: nn.Linear | None = None) -> WarmUp:
    return WarmUp(
        mean_probability=torch.full((N, C), 1 / C),
        probability=torch.full((N, C), 1 / C),
        given=GIVEN,
        head=classifier or head(),
        features=FEATURES.clone,
        meta=VERIFIED,
    )


def started(made: MetaLabelNet, seen: WarmUp) -> Store:
    """The memory with which the meta phase begins, after the start of φ."""
    made.initialise(seen)
    return made.begin(seen)


EPOCH = Epoch(
    number=0,
    probability=torch.full((N, C), 1 / C),
    trained=torch.ones(N, dtype=torch.bool),
    given=GIVEN,
    memory=MEMORY,
    meta=VERIFIED,
)


def distributions(made: MetaLabelNet) -> tuple[Tensor, Tensor]:
    p, q = torch.softmax(LOGITS, dim=1), made.soft_label(LOGITS, GIVEN, MEMORY)
    assert q.min() > 1e-4, "above the floor, where the identities are exact"
    return p, q


def test_the_soft_label_is_one_linear_layer_on_the_features() -> None:
    made = corrector()
    expected = torch.softmax(FEATURES @ made.generator.weight.T + made.generator.bias, dim=1)
    torch.testing.assert_close(made.soft_label(LOGITS, GIVEN, MEMORY), expected)


def test_the_look_ahead_step_follows_the_divergence() -> None:
    made = corrector()
    p, q = distributions(made)
    found = made.virtual_loss(LOGITS, GIVEN, MEMORY)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(dim=1), rtol=1e-12, atol=1e-14)
    assert (found >= 0).all()
    logits_of_q = FEATURES @ made.generator.weight.T + made.generator.bias
    torch.testing.assert_close(
        made.virtual_loss(logits_of_q, GIVEN, MEMORY), torch.zeros(N).double(), rtol=0, atol=1e-12
    )


def test_the_step_of_the_backbone_adds_the_entropy() -> None:
    made = corrector()
    p, q = distributions(made)
    found = made.loss(LOGITS, GIVEN, MEMORY)
    torch.testing.assert_close(found, -(p * q.log()).sum(dim=1), rtol=1e-12, atol=0)
    entropy = -(p * p.log()).sum(dim=1)
    divergence = made.virtual_loss(LOGITS, GIVEN, MEMORY)
    torch.testing.assert_close(divergence + entropy, found, rtol=1e-12, atol=0)


def test_a_soft_label_that_is_sure_of_another_class_costs_no_more_than_its_floor() -> None:
    made = corrector()
    with torch.no_grad():
        made.generator.weight.zero_()
        made.generator.bias.copy_(1000.0 * F.one_hot(torch.tensor(0), C))
    logits = 1000 * F.one_hot(torch.full((N,), 1), C).double()
    loss = made.loss(logits, GIVEN, MEMORY)
    torch.testing.assert_close(loss, torch.full((N,), 1e-4).double().log().neg())


def test_nothing_depends_on_the_given_labels() -> None:
    made = corrector()

    def gradients(given: Tensor) -> list[Tensor]:
        return hypergradient.last_layer(
            LookAhead(
                Backbone(nn.Identity(), head()),
                LOGITS,
                FEATURES,
                lambda z: made.virtual_loss(z, given, MEMORY),
                [made.generator.weight, made.generator.bias],
                TrustedBatch(FEATURES[META], META_TRUE, FEATURES[META]),
                1.0,
            )
        ).gradients

    found = gradients(GIVEN)
    for given in (torch.full_like(GIVEN, -1), (GIVEN + 1) % C):
        assert all(torch.equal(one, other) for one, other in zip(found, gradients(given), strict=True))
        for method in (made.soft_label, made.loss, made.virtual_loss):
            assert torch.equal(method(LOGITS, given, MEMORY), method(LOGITS, GIVEN, MEMORY))
    assert not made.needs.given_labels
    assert found[0].abs().max() > 1e-6


def test_the_generator_starts_as_the_classifier() -> None:
    made, classifier = corrector(), head()
    memory = started(made, warm_up(classifier))
    assert list(memory) == ["features"]
    assert torch.equal(memory["features"], FEATURES)
    expected = torch.softmax(classifier(FEATURES), dim=1)
    torch.testing.assert_close(made.soft_label(LOGITS, GIVEN, memory), expected)
    with torch.no_grad():
        classifier.weight.zero_()
    torch.testing.assert_close(made.soft_label(LOGITS, GIVEN, memory), expected)


def test_the_random_start_is_asked_for() -> None:
    made = corrector("random")
    started(made, warm_up())
    torch.testing.assert_close(made.state_dict()["generator.weight"], corrector().generator.weight.detach())


def trusted_loss(made: MetaLabelNet) -> float:
    return F.cross_entropy(made.generator(FEATURES[META]), META_TRUE).item()


def move(made: MetaLabelNet, distance: float) -> None:
    """Along the gradient of the trusted loss: up for a positive distance."""
    parameters = list(made.generator.parameters())
    loss = F.cross_entropy(made.generator(FEATURES[META]), META_TRUE)
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(distance * gradient)


def test_the_guard_returns_to_the_best_generator_when_the_trusted_loss_rises() -> None:
    made = corrector()
    started(made, warm_up())
    at_start = trusted_loss(made)
    move(made, -0.5)
    best = trusted_loss(made)
    weight = made.generator.weight.detach().clone()
    assert best < at_start
    made.observe(EPOCH)
    assert trusted_loss(made) == best, "an improvement stays"

    move(made, 3.0)
    assert trusted_loss(made) > 1.1 * best
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, weight)
    assert made.generator.weight.requires_grad

    move(made, 0.01)
    moved = made.generator.weight.detach().clone()
    assert best < trusted_loss(made) < 1.02 * best
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, moved), "a little worse is the noise of a step"

    move(made, -0.5)
    assert trusted_loss(made) < best
    made.observe(EPOCH)
    better = made.generator.weight.detach().clone()
    move(made, 3.0)
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, better), "the best moves on"

    move(made, 0.3)
    assert 1.02 * trusted_loss(made) < best
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, better), "and is what counts, not the start"


def test_small_steps_up_do_not_add_up() -> None:
    made = corrector()
    started(made, warm_up())
    best = trusted_loss(made)
    for _ in range(200):
        move(made, 0.02)
        made.observe(EPOCH)
    assert trusted_loss(made) < 1.03 * best


def test_the_guard_holds_from_the_start_of_the_meta_phase_on() -> None:
    made = corrector()
    started(made, warm_up())
    weight = made.generator.weight.detach().clone()
    move(made, 5.0)
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_guard_heals_a_generator_that_is_not_finite(value: float) -> None:
    made = corrector()
    started(made, warm_up())
    weight = made.generator.weight.detach().clone()
    with torch.no_grad():
        made.generator.weight[0, 0] = value
    made.observe(EPOCH)
    assert torch.equal(made.generator.weight, weight)


def test_the_guard_goes_through_a_file() -> None:
    made = corrector()
    started(made, warm_up())
    restored = corrector("random")
    restored.load_state_dict(made.state_dict())
    for each in (made, restored):
        move(each, 5.0)
        each.observe(EPOCH)
    assert torch.equal(restored.generator.weight, made.generator.weight)


def test_the_warm_up_passes_unnoticed() -> None:
    made = corrector()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    assert made.observe(replace(EPOCH, memory={})) == {}
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_without_meta_rows_the_guard_keeps_out() -> None:
    """As where φ is frozen."""
    made = corrector()
    weight = made.generator.weight.detach().clone()
    made.observe(replace(EPOCH, meta=no_rows()))
    assert torch.equal(made.generator.weight, weight)


def test_the_guard_s_copy_is_not_learned() -> None:
    assert [name for name, p in corrector().named_parameters() if p.requires_grad] == [
        "generator.weight",
        "generator.bias",
    ]
