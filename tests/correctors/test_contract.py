"""What holds of every registered corrector with each of its options, whatever its method."""

import copy
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from relabel.backbones import Backbone
from relabel.config import FitConfig
from relabel.correctors import mslc
from relabel.correctors.base import (
    Corrector,
    Epoch,
    Learning,
    Memory,
    Needs,
    Store,
    TrustedRows,
    WarmUp,
    no_rows,
)
from relabel.correctors.registry import REGISTRY, Entry, create
from relabel.data.batches import VectorInputs
from relabel.device import Compute
from relabel.errors import RelabelError
from relabel.labels.table import Labels
from relabel.options import build
from relabel.saved.corrector_file import read_corrector, shipped_state
from relabel.schedule import Schedule
from relabel.training import hypergradient, loop
from relabel.training.checkpoint import load_passing_buffers, passing_buffers
from relabel.training.hypergradient import LookAhead, TrustedBatch
from relabel.training.linearize import linearizable
from relabel.training.loop import EpochReport, Training
from relabel.training.rows import Rows
from relabel.verbs.fit import fit

N, E, C, D = 12, 2, 4, 5
"""Rows of the source, trusted rows outside of it, classes, penultimate features."""
SHIPPED = shipped_state()
EPOCHS = 3
RATE = 0.7  # far enough that a gradient taken at w instead of w' would be caught
ORDER = (2, 0, 3, 1)  # new class k is old class ORDER[k]

CLASS_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "mlc": {"scores": (0, 1)},
    "metalabelnet": {
        "generator.weight": (0,),
        "generator.bias": (0,),
        "best.weight": (0,),
        "best.bias": (0,),
    },
}
"""Axes of the parameters that are indexed by class; elsewhere nothing may know one class from another."""

UNREACHED = {"tmlc[without=tse]": {"encoder.weight_hh_l0"}}
"""Parameters without a gradient: over one epoch the hidden state they multiply is 0."""


class EarlyLearning(Corrector):
    """Early-learning regularisation (Liu et al. 2020), a double: a memory, no parameters, no trusted rows.

    A temporal average t of the predictions is the target that p is drawn to: CE(p, y) + λ log(1 − ⟨p, t⟩).
    """

    needs = Needs(Learning.NOT)
    recipe = Schedule(warmup=0.25)

    def __init__(self, num_classes: int, num_features: int, average: str = "slow") -> None:
        super().__init__()
        self.kept = {"slow": 0.7, "fast": 0.3}[average]

    def begin(self, warm_up: WarmUp) -> Store:
        return {"targets": warm_up.mean_probability.clone()}

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        return self.kept * memory["targets"] + (1 - self.kept) * logits.detach().softmax(dim=1)

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        agreement = (logits.softmax(dim=1) * self.soft_label(logits, given, memory)).sum(dim=1)
        drawn = torch.log1p(-agreement.clamp(max=1 - 1e-4))
        return F.cross_entropy(logits, given, reduction="none") + 3 * drawn

    def remember(self, logits: Tensor, given: Tensor, memory: Memory) -> Memory:
        return {"targets": self.soft_label(logits, given, memory)}


DOUBLE = Entry(f"{__name__}.EarlyLearning", {"average": ("slow", "fast")})
"""All that it takes to register one more corrector."""


def variants() -> dict[str, tuple[str, dict[str, str]]]:
    """Every corrector with its defaults, and with each other value of each option; and the test double."""
    found: dict[str, tuple[str, dict[str, str]]] = {"early-learning": ("early-learning", {})}
    for name, entry in REGISTRY.items():
        found[name] = name, {}
        for option, values in entry.options.items():
            for value in values[1:]:
                found[f"{name}[{option}={value}]"] = name, {option: value}
    return found


VARIANTS = variants()


def made(variant: str, seed: int = 11) -> Corrector:
    name, options = VARIANTS[variant]
    torch.manual_seed(seed)
    if name == "early-learning":
        return EarlyLearning(C, D)
    return create(name, C, D, options, SHIPPED).double()


def learned(corrector: Corrector) -> dict[str, nn.Parameter]:
    return {name: p for name, p in corrector.named_parameters() if p.requires_grad}


def where(chosen: Callable[[Corrector], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", [variant for variant in VARIANTS if chosen(made(variant))])


every = pytest.mark.parametrize("variant", VARIANTS)
looking_ahead = where(lambda corrector: corrector.needs.looks_ahead)
direct = where(lambda corrector: corrector.needs.learning is Learning.DIRECT)


@dataclass(frozen=True)
class Scene:
    """A corrector that has been through the warm-up and an epoch, and N rows of a batch for it."""

    corrector: Corrector
    logits: Tensor
    given: Tensor
    true: Tensor
    memory: Memory
    warm_up: WarmUp
    epoch: Epoch

    @property
    def batch(self) -> tuple[Tensor, Tensor, Memory]:
        return self.logits, self.given, self.memory


def scene(variant: str, order: tuple[int, ...] = tuple(range(C))) -> Scene:
    """Everything random, in float64; with `order`, the same after the classes are renamed."""
    return copy.deepcopy(_scene(variant, order))


@functools.cache
def _scene(variant: str, class_order: tuple[int, ...]) -> Scene:
    corrector, order = made(variant), torch.tensor(class_order)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    name = VARIANTS[variant][0]
    with torch.no_grad():  # a start like the identity would hide mistakes
        for parameter in CLASS_AXES.get(name, {}):
            corrector.get_parameter(parameter).add_(normal(*corrector.get_parameter(parameter).shape).abs())
        corrector.project()
    rename_classes(corrector, name, order)

    renamed = order.argsort()
    given, true = (renamed[torch.randint(C, (N + E,), generator=generator)] for _ in range(2))
    meta = torch.tensor([1, 4, 6, 9, 10])
    meta_given = given[meta]
    if corrector.needs.looks_ahead:
        meta = torch.cat([meta, torch.arange(N, N + E)])
        meta_given = torch.cat([meta_given, torch.full((E,), -1)])
    head = nn.Linear(D, C).double()
    with torch.no_grad():
        head.weight.copy_(normal(C, D)[order])
        head.bias.copy_(normal(C)[order])
    features = normal(N + E, D)
    in_training = torch.tensor([0, 2, 7])
    in_training_rows = TrustedRows(in_training, true[in_training], given[in_training])
    meta_rows = TrustedRows(meta, true[meta], meta_given)
    warm_up = WarmUp(
        mean_probability=normal(N, C)[:, order].softmax(dim=1),
        probability=normal(N, C)[:, order].softmax(dim=1),
        given=given[:N],
        head=head,
        features=features.clone,
        meta=meta_rows,
        in_training=in_training_rows,
    )
    memory: Memory = {}
    epoch = Epoch(
        number=0,
        probability=torch.empty(0),
        trained=torch.arange(N) != 3,
        given=torch.where(torch.arange(N) == 3, -1, given[:N]),
        memory=memory,
        meta=meta_rows,
        in_training=in_training_rows,
    )
    for number in range(EPOCHS):
        if number == EPOCHS - 1:
            corrector.initialise(warm_up)
            memory |= corrector.begin(warm_up)
        epoch = replace(
            epoch, number=number, probability=(2 * normal(N, C))[:, order].softmax(dim=1), memory=dict(memory)
        )
        memory |= corrector.observe(epoch)
    logits = 2 * normal(N, C)[:, order]
    rows = {key: value[:N] for key, value in memory.items()}
    return Scene(corrector, logits, given[:N], true[:N], rows, warm_up, epoch)


def rename_classes(corrector: Corrector, name: str, order: Tensor) -> None:
    """Permute the class-indexed parameters: new class k is old class `order[k]`."""
    state = corrector.state_dict()
    for parameter, axes in CLASS_AXES.get(name, {}).items():
        for axis in axes:
            state[parameter] = state[parameter].index_select(axis, order)
    corrector.load_state_dict(state)


def assert_close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def assert_identical(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every
def test_soft_labels_are_distributions(variant: str) -> None:
    drawn = scene(variant)
    soft_label = drawn.corrector.soft_label(*drawn.batch)
    assert soft_label.shape == (N, C)
    assert soft_label.dtype == torch.float64
    assert (soft_label >= 0).all()
    assert_close(soft_label.sum(dim=1), torch.ones(N).double())


@every
def test_the_memory_keeps_its_shape(variant: str) -> None:
    drawn = scene(variant)
    assert all(len(value) == N for value in drawn.memory.values())
    remembered = drawn.corrector.remember(*drawn.batch)
    assert {key: value.shape for key, value in remembered.items()} == {
        key: drawn.memory[key].shape for key in remembered
    }


@every
def test_the_losses_are_one_number_a_row_and_differentiable_in_the_logits(variant: str) -> None:
    drawn = scene(variant)
    for loss in (drawn.corrector.loss, drawn.corrector.virtual_loss):
        logits = drawn.logits.clone().requires_grad_()
        losses = loss(logits, drawn.given, drawn.memory)
        assert losses.shape == (N,)
        assert losses.isfinite().all()
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(dim=1) > 1e-9).all()


@where(lambda corrector: bool(learned(corrector)))
def test_soft_labels_pass_no_gradient_to_the_logits(variant: str) -> None:
    drawn = scene(variant)
    logits = drawn.logits.clone().requires_grad_()
    soft_label = drawn.corrector.soft_label(logits, drawn.given, drawn.memory)
    if soft_label.requires_grad:
        (gradient,) = torch.autograd.grad(soft_label.square().sum(), logits, allow_unused=True)
        assert gradient is None


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sure_of", ["given", "another"])
def test_extreme_logits_stay_finite(variant: str, sure_of: str, dtype: torch.dtype) -> None:
    drawn = scene(variant)
    corrector = drawn.corrector.to(dtype)
    memory = {key: value.to(dtype) for key, value in drawn.memory.items()}
    sure = drawn.given if sure_of == "given" else (drawn.given + 1) % C
    logits = 1e4 * F.one_hot(sure, C).to(dtype)
    soft_label = corrector.soft_label(logits, drawn.given, memory)
    assert soft_label.isfinite().all()
    torch.testing.assert_close(soft_label.sum(dim=1), torch.ones(N, dtype=dtype))
    for loss in (corrector.loss, corrector.virtual_loss):
        leaf = logits.clone().requires_grad_()
        losses = loss(leaf, drawn.given, memory)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
    if corrector.needs.looks_ahead:
        features = torch.ones(N, D, dtype=dtype)
        gradients = hypergradient.last_layer(
            LookAhead(
                Backbone(nn.Identity(), nn.Linear(D, C, dtype=dtype)),
                logits,
                features,
                lambda z: corrector.virtual_loss(z, drawn.given, memory),
                list(learned(corrector).values()),
                TrustedBatch(features[:3], torch.tensor([0, 2, 1]), features[:3]),
                RATE,
            )
        ).gradients
        assert all(gradient.isfinite().all() for gradient in gradients)


@every
def test_the_state_goes_through_a_file(variant: str) -> None:
    drawn = scene(variant)
    file = io.BytesIO()
    torch.save((drawn.corrector.state_dict(), passing_buffers(drawn.corrector)), file)
    file.seek(0)
    restored = made(variant, seed=12)
    state, begun = torch.load(file, weights_only=True)
    restored.load_state_dict(state)
    load_passing_buffers(restored, begun, torch.device("cpu"))
    for method in ("soft_label", "loss", "virtual_loss", "remember"):
        assert_identical(
            getattr(restored, method)(*drawn.batch), getattr(drawn.corrector, method)(*drawn.batch)
        )
    assert restored.describe() == drawn.corrector.describe()


@every
def test_rows_do_not_see_each_other_or_their_order(variant: str) -> None:
    drawn = scene(variant)
    rows = torch.tensor([4, 0, 6, 11])
    picked = drawn.logits[rows], drawn.given[rows], {key: value[rows] for key, value in drawn.memory.items()}
    for method in ("soft_label", "loss", "virtual_loss"):
        whole = getattr(drawn.corrector, method)(*drawn.batch)
        assert_close(getattr(drawn.corrector, method)(*picked), whole[rows])
    remembered = drawn.corrector.remember(*drawn.batch)
    assert_close(drawn.corrector.remember(*picked), {key: value[rows] for key, value in remembered.items()})


@every
def test_renaming_the_classes_renames_the_output(variant: str) -> None:
    """Through the warm-up, the epochs and the batch alike."""
    original, renamed = scene(variant), scene(variant, ORDER)
    assert_close(
        renamed.corrector.soft_label(*renamed.batch), original.corrector.soft_label(*original.batch)[:, ORDER]
    )
    for method in ("loss", "virtual_loss"):
        assert_close(
            getattr(renamed.corrector, method)(*renamed.batch),
            getattr(original.corrector, method)(*original.batch),
        )
    if original.corrector.needs.learning is Learning.DIRECT:
        assert_close(
            renamed.corrector.trusted_loss(renamed.given, renamed.true, renamed.memory),
            original.corrector.trusted_loss(original.given, original.true, original.memory),
        )


def everything(drawn: Scene) -> Any:
    """Deep copies of all that a step could change by mistake."""
    return copy.deepcopy(
        {
            "batch": drawn.batch,
            "true": drawn.true,
            "corrector": drawn.corrector.state_dict(),
            "gradients": [p.grad is None for p in drawn.corrector.parameters()],
            "learned": [p.requires_grad for p in drawn.corrector.parameters()],
            "random": torch.get_rng_state(),
        }
    )


@every
def test_using_a_corrector_changes_nothing(variant: str) -> None:
    drawn = scene(variant)
    for parameter in drawn.corrector.parameters():
        parameter.grad = None
    before = everything(drawn)
    for method in ("soft_label", "loss", "virtual_loss", "remember"):
        getattr(drawn.corrector, method)(*drawn.batch)
    drawn.corrector.describe()
    if drawn.corrector.needs.learning is Learning.DIRECT:
        drawn.corrector.trusted_loss(drawn.given, drawn.true, drawn.memory).backward()  # type: ignore[no-untyped-call]
        for parameter in drawn.corrector.parameters():
            parameter.grad = None
    elif learned(drawn.corrector):
        task = MetaTask(drawn)
        for mode in MODES:
            task.gradients(mode)
    assert_identical(everything(drawn), before)


@every
def test_starting_and_observing_leave_their_inputs_alone(variant: str) -> None:
    drawn = scene(variant)
    corrector, warm_up, epoch = made(variant), drawn.warm_up, drawn.epoch

    def inputs() -> Any:
        tensors = [
            (
                warm_up.mean_probability,
                warm_up.probability,
                *vars(warm_up.meta).values(),
                *vars(warm_up.in_training).values(),
            ),
            (epoch.probability, epoch.trained, epoch.given),
            {name: values[:] for name, values in epoch.memory.items()},
            (warm_up.head.state_dict(), warm_up.features(), torch.get_rng_state()),
        ]
        return copy.deepcopy(tensors)

    before = inputs()
    corrector.initialise(warm_up)
    memory = corrector.begin(warm_up)
    memory |= corrector.observe(epoch)
    for value in memory.values():
        if isinstance(value, Tensor):
            value.zero_()  # the sample memory writes into what it was given
    with torch.no_grad():
        for parameter in corrector.parameters():
            parameter.zero_()  # and the optimizer into φ
    assert_identical(inputs(), before)


@where(lambda corrector: not corrector.needs.given_labels)
def test_rows_without_a_label_count_where_given_labels_are_not_read(variant: str) -> None:
    drawn = scene(variant)
    unlabelled = torch.full_like(drawn.given, -1)
    for method in ("soft_label", "loss", "virtual_loss", "remember"):
        assert_identical(
            getattr(drawn.corrector, method)(drawn.logits, unlabelled, drawn.memory),
            getattr(drawn.corrector, method)(*drawn.batch),
        )


@every
def test_what_a_corrector_tells_is_json(variant: str) -> None:
    described = scene(variant).corrector.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described


@every
def test_only_correctors_that_learn_use_trusted_rows(variant: str) -> None:
    corrector = made(variant)
    assert (corrector.needs.learning is not Learning.NOT) == bool(learned(corrector))


class FloatBackbone(Backbone):
    """`Backbone` in float64, which its forward would leave."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(inputs)
        return self.head(features), features


MODES = tuple(hypergradient.HYPERGRADIENTS)
modes = pytest.mark.parametrize("mode", MODES)


class MetaTask:
    """A backbone in training under a scene's corrector, and trusted inputs."""

    def __init__(self, drawn: Scene) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            body = nn.Sequential(nn.Linear(6, D), nn.BatchNorm1d(D), nn.Tanh())
            self.backbone = FloatBackbone(body, nn.Linear(D, C)).double()
        self.drawn = drawn
        self.inputs = torch.randn(N, 6, generator=generator).double()
        self.trusted_inputs = torch.randn(6, 6, generator=generator).double()
        self.trusted_labels = torch.randint(C, (6,), generator=generator)
        self.parameters = list(learned(drawn.corrector).values())

    def virtual_loss(self, logits: Tensor) -> Tensor:
        return self.drawn.corrector.virtual_loss(logits, self.drawn.given, self.drawn.memory)

    def hypergradient(self, mode: str) -> hypergradient.Hypergradient:
        with linearizable():
            outputs = self.backbone(self.inputs)
        with torch.no_grad():
            _, trusted_features = self.backbone(self.trusted_inputs)
        trusted = TrustedBatch(self.trusted_inputs, self.trusted_labels, trusted_features)
        step = LookAhead(self.backbone, *outputs, self.virtual_loss, self.parameters, trusted, RATE)
        return hypergradient.HYPERGRADIENTS[mode](step)

    def gradients(self, mode: str) -> list[Tensor]:
        return self.hypergradient(mode).gradients

    def trusted_loss(self, mode: str) -> Tensor:
        """The definition: the trusted loss after a step of plain SGD, with a graph to φ."""
        module = self.backbone if mode == "exact" else self.backbone.head
        weights = dict(module.named_parameters(prefix="" if mode == "exact" else "head"))
        logits, _ = self.backbone(self.inputs)
        found = torch.autograd.grad(
            self.virtual_loss(logits).mean(), list(weights.values()), create_graph=True
        )
        stepped = {
            name: weight - RATE * gradient
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }
        after, _ = functional_call(self.backbone, stepped, (self.trusted_inputs,))
        return F.cross_entropy(after, self.trusted_labels)


def central_differences(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], step: float = 1e-5
) -> Iterator[tuple[int, int, float]]:
    """(parameter, entry, derivative) for about ten entries a parameter."""
    for number, parameter in enumerate(parameters):
        values = parameter.data.view(-1)
        for entry in range(0, len(values), 1 + len(values) // 10):
            start = values[entry].item()
            values[entry] = start + step
            above = loss().item()
            values[entry] = start - step
            below = loss().item()
            values[entry] = start
            yield number, entry, (above - below) / (2 * step)


def assert_central_differences(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    found, expected = [], []
    for number, entry, derivative in central_differences(loss, parameters):
        found.append(gradients[number].reshape(-1)[entry])
        expected.append(derivative)
    assert relative_error([torch.stack(found)], [torch.tensor(expected, dtype=torch.float64)]) <= 1e-6


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    one, other = (torch.cat([tensor.detach().reshape(-1) for tensor in both]) for both in (found, expected))
    assert other.norm() > 1e-6
    return float((one - other).norm() / other.norm())


@looking_ahead
@modes
def test_the_meta_gradient_is_the_unrolled_one(variant: str, mode: str) -> None:
    task = MetaTask(scene(variant))
    trusted_loss = task.trusted_loss(mode)
    unrolled = torch.autograd.grad(trusted_loss, task.parameters)
    found = task.hypergradient(mode)
    assert relative_error(found.gradients, unrolled) <= 1e-6
    torch.testing.assert_close(found.trusted_loss, trusted_loss.detach())
    assert not found.trusted_loss.requires_grad


@looking_ahead
@modes
def test_the_meta_gradient_equals_central_differences(variant: str, mode: str) -> None:
    task = MetaTask(scene(variant))
    assert_central_differences(lambda: task.trusted_loss(mode), task.parameters, task.gradients(mode))


@looking_ahead
@modes
def test_the_meta_gradient_reaches_every_parameter(variant: str, mode: str) -> None:
    drawn = scene(variant)
    for name, gradient in zip(learned(drawn.corrector), MetaTask(drawn).gradients(mode), strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-9, name


def direct_gradients(drawn: Scene) -> list[Tensor]:
    loss = drawn.corrector.trusted_loss(drawn.given, drawn.true, drawn.memory)
    assert loss.ndim == 0
    return list(torch.autograd.grad(loss, list(learned(drawn.corrector).values())))


@direct
def test_the_gradient_of_the_trusted_loss_equals_central_differences(variant: str) -> None:
    drawn = scene(variant)
    assert_central_differences(
        lambda: drawn.corrector.trusted_loss(drawn.given, drawn.true, drawn.memory),
        list(learned(drawn.corrector).values()),
        direct_gradients(drawn),
    )


@direct
def test_the_trusted_loss_reaches_every_parameter(variant: str) -> None:
    drawn = scene(variant)
    reached = {
        name
        for name, gradient in zip(learned(drawn.corrector), direct_gradients(drawn), strict=True)
        if gradient.abs().max() > 1e-9
    }
    assert reached == learned(drawn.corrector).keys() - UNREACHED.get(variant, set())


@direct
def test_the_trusted_loss_is_the_mean_over_its_rows(variant: str) -> None:
    drawn = scene(variant)
    loss = drawn.corrector.trusted_loss

    def of(rows: list[int]) -> Tensor:
        memory = {key: value[rows] for key, value in drawn.memory.items()}
        return loss(drawn.given[rows], drawn.true[rows], memory)

    assert_close(of(list(range(N))), torch.stack([of([row]) for row in range(N)]).mean())


ROWS, UNLABELLED, META = torch.arange(60), torch.arange(60, 72), torch.arange(72, 84)
SCHEDULE = Schedule(
    epochs=3, warmup_epochs=1, batch_size=20, learning_rate=0.05, meta_learning_rate=0.01, meta_batch_size=6
)


def in_the_loop(variant: str, frozen: bool, meta_gradient: str = "last-layer") -> Training:
    """The real loop on random vectors in C classes, with a part for every kind of row; not yet begun."""
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(C, (84,), generator=generator)
    vectors = F.one_hot(true, C).float() @ torch.randn(C, 6, generator=generator)
    vectors += torch.randn(84, 6, generator=generator)
    given = torch.where(torch.rand(84, generator=generator) < 0.3, (true + 1) % C, true)
    given[UNLABELLED] = -1
    corrector = made(variant).float()
    direct = corrector.needs.learning is Learning.DIRECT

    def trusted(rows: Tensor) -> TrustedRows:
        return no_rows() if frozen else TrustedRows(rows, true[rows], given[rows])

    rows = Rows(
        torch.cat([ROWS, META]) if direct else ROWS, given, UNLABELLED, trusted(META), trusted(ROWS[::6])
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        body = nn.Sequential(nn.Linear(6, D), nn.BatchNorm1d(D), nn.Tanh(), nn.Dropout(0.2))
        backbone = Backbone(body, nn.Linear(D, C))
    schedule = replace(SCHEDULE, meta_gradient=meta_gradient)
    compute = Compute(torch.device("cpu"), None)
    return Training(backbone, corrector, VectorInputs(vectors), rows, schedule, compute, 0, frozen=frozen)


def calls_of(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(epoch, method) of every call of what the loop calls once in a while, in order."""
    calls: list[tuple[int, str]] = []
    for name in ("initialise", "begin", "observe"):
        method = getattr(training.corrector, name)

        def spy(seen: object, name: str = name, method: Callable[[object], object] = method) -> object:
            calls.append((training.epoch, name))
            return method(seen)

        monkeypatch.setattr(training.corrector, name, spy)
    return calls


def parameters(corrector: Corrector) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learned(corrector).items()}


@pytest.fixture
def short_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HEAD_START", 5)
    monkeypatch.setattr(mslc, "_FIT_STEPS", 12)


@every
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_the_loop_keeps_the_contract(
    variant: str, frozen: bool, monkeypatch: pytest.MonkeyPatch, short_starts: None
) -> None:
    training = in_the_loop(variant, frozen)
    corrector = training.corrector
    corrects, learns = corrector.needs.corrects, bool(learned(corrector)) and not frozen
    state, phi = copy.deepcopy(corrector.state_dict()), parameters(corrector)
    calls = calls_of(training, monkeypatch)
    reports: list[EpochReport] = []
    training.run(reports.append, lambda: None)

    beginning = [(1, "initialise")] * (not frozen) + [(1, "begin")] if corrects else []
    assert calls == [(0, "observe"), *beginning, (1, "observe"), (2, "observe")]
    assert [report.meta_loss is not None for report in reports] == [False, learns, learns]
    assert all(report.meta_loss is None or report.meta_loss >= 0 for report in reports)
    assert [report.phase for report in reports[1:]] == ["meta" if corrects else "train"] * 2
    moved = {name for name, value in parameters(corrector).items() if not torch.equal(value, phi[name])}
    if learns:
        assert moved == phi.keys() - UNREACHED.get(variant, set())
    else:
        assert_identical(dict(corrector.state_dict()), dict(state))
    for values in training.sample_memory.memory.values():
        assert len(values) == 84
        assert values[:].isfinite().all()
    for values in training.evidence().values():
        torch.testing.assert_close(values[:].sum(dim=1), torch.ones(84))


@looking_ahead
def test_the_loop_takes_the_exact_meta_gradient_of_every_look_ahead(variant: str, short_starts: None) -> None:
    exact, last_layer = (in_the_loop(variant, False, form) for form in ("exact", "last-layer"))
    for training in (exact, last_layer):
        training.run(lambda _: None, lambda: None)
    one, other = parameters(exact.corrector), parameters(last_layer.corrector)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_corrector_without_parameters_corrects_in_the_loop() -> None:
    corrected, plain = in_the_loop("early-learning", False), in_the_loop("none", False)
    for training in (corrected, plain):
        training.run_epoch()
    assert_identical(corrected.backbone.state_dict(), plain.backbone.state_dict())
    for training in (corrected, plain):
        training.run(lambda _: None, lambda: None)
    assert not torch.equal(corrected.backbone.head.weight, plain.backbone.head.weight)
    targets = corrected.sample_memory.memory["targets"][:]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(84))
    assert not torch.equal(targets[ROWS], corrected.sample_memory.latest[ROWS])


def vectors(path: Path) -> Path:
    """150 vectors in three classes, a fifth of them trusted."""
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=150)
    given = np.where(rng.random(150) < 0.3, (true + 1) % 3, true)
    names = np.array(["a", "b", "c"])
    table = pa.table(
        {
            "id": [f"r{row}" for row in range(150)],
            "vector": list((2 * np.eye(3)[true] + rng.normal(0, 1, (150, 3))).astype(np.float32)),
            "label": names[given],
            "trusted": [str(names[true[row]]) if row % 5 == 0 else None for row in range(150)],
        }
    )
    pq.write_table(table, path)
    return path


def test_a_fifth_corrector_is_one_class_and_one_registry_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "early-learning", DOUBLE)
    source = str(vectors(tmp_path / "v.parquet"))

    def fitted(corrector: str, **options: str) -> Labels:
        config = build(
            FitConfig, source=source, features="vector", trusted_column="trusted", corrector=corrector,
            option=options, epochs=8, device="cpu", amp="off", keep_model=True,
        )  # fmt: skip
        return fit(config)

    labels, fast, plain = (
        fitted("early-learning"), fitted("early-learning", average="fast"), fitted("none")
    )  # fmt: skip
    for one, other in ((labels, plain), (labels, fast)):
        assert one.table["soft_label"] != other.table["soft_label"]
    assert len(labels) == 150
    run = labels.metadata.run
    assert (run.corrector, run.trusted_rows) == ("early-learning", 30)
    with pytest.raises(RelabelError, match="no such value"):
        fitted("early-learning", average="none")
    labels.corrector.save(tmp_path / "c.pt")
    with pytest.raises(RelabelError, match="of no use on other data"):
        read_corrector(tmp_path / "c.pt").transferred(3, 4)
