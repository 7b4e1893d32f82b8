import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from relabel import backbones
from relabel.backbones import Backbone
from relabel.config import META_GRADIENTS
from relabel.correctors.mslc import MSLC
from relabel.device import Compute
from relabel.training import hypergradient
from relabel.training.hypergradient import LookAhead, TrustedBatch
from relabel.training.linearize import linearizable

B, M, C, D = 9, 6, 4, 5
RATE = 0.7  # far enough that a gradient taken at w instead of w' would be caught


class FloatBackbone(Backbone):
    """`Backbone` in float64, which its forward would leave."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(inputs)
        return self.head(features), features


@dataclass
class Problem:
    """A noisy batch, a trusted batch and a corrector's loss with its parameters, all in float64."""

    backbone: Backbone
    images: Tensor
    trusted_images: Tensor
    trusted_labels: Tensor
    loss: Callable[[Tensor], Tensor]
    parameters: list[Tensor]

    def forward(
        self, region: Callable[[], AbstractContextManager[None]] = linearizable
    ) -> tuple[Tensor, Tensor]:
        """The noisy batch's forward, always with the same dropout."""
        torch.manual_seed(7)
        with region():
            return self.backbone(self.images)

    def prepare(self, form: str) -> Callable[[float], list[Tensor]]:
        """All that the training loop does before the meta-gradient; then a function of the learning rate."""
        logits, features = self.forward()
        if form == "exact":
            return lambda rate: self.exact(logits, rate)
        with torch.no_grad(), torch.random.fork_rng([]):
            trusted_features = self.run(self.trusted_images, {})[1]
        return lambda rate: (
            hypergradient.last_layer(self.step(logits, features, rate, trusted_features)).gradients
        )

    def step(
        self, logits: Tensor, features: Tensor, rate: float, trusted_features: Tensor | None = None
    ) -> LookAhead:
        trusted = TrustedBatch(self.trusted_images, self.trusted_labels, trusted_features)
        return LookAhead(self.backbone, logits, features, self.loss, self.parameters, trusted, rate)

    def exact(self, logits: Tensor, learning_rate: float) -> list[Tensor]:
        return self.exact_step(logits, learning_rate).gradients

    def exact_step(self, logits: Tensor, learning_rate: float) -> hypergradient.Hypergradient:
        return hypergradient.exact(self.step(logits, torch.empty(0), learning_rate))

    def run(self, images: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        buffers = {name: buffer.clone() for name, buffer in self.backbone.named_buffers()}
        outputs: tuple[Tensor, Tensor] = functional_call(self.backbone, {**weights, **buffers}, (images,))
        return outputs

    def trusted_loss_after_a_step(self, form: str, learning_rate: float) -> Tensor:
        """The definition: one step of plain SGD, of the whole backbone or the head, with a graph to φ."""
        torch.manual_seed(7)
        mean_loss = self.loss(self.run(self.images, {})[0]).mean()
        moved = {
            name: weight
            for name, weight in self.backbone.named_parameters()
            if weight.requires_grad and (form == "exact" or name.startswith("head."))
        }
        gradients = torch.autograd.grad(mean_loss, list(moved.values()), create_graph=True)
        weights = {
            name: moved[name] - learning_rate * gradient
            for name, gradient in zip(moved, gradients, strict=True)
        }
        return F.cross_entropy(self.run(self.trusted_images, weights)[0], self.trusted_labels)


def small_body(size: int = 6) -> nn.Module:
    """Every layer that has a rule of its own, and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(size * size, D),
        nn.BatchNorm1d(D),
        nn.Tanh(),
    )


def problem(name: str = "mslc", body: nn.Module | None = None, size: int = 6) -> Problem:
    torch.manual_seed(3)
    backbone = FloatBackbone(small_body(size) if body is None else body, nn.Linear(D, C)).double()
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(C, (B,), generator=generator)
    parameters: list[Tensor]
    if name == "mslc":
        corrector = MSLC(C, D).double()
        memory = {"soft_label": torch.rand(B, C, generator=generator).double().softmax(dim=1)}
        parameters = list(corrector.parameters())

        def loss(logits: Tensor) -> Tensor:
            return corrector.loss(logits, given, memory)
    else:  # forward correction: not a cross-entropy against any soft label
        scores = torch.randn(C, C, generator=generator).double().requires_grad_()
        parameters = [scores]

        def loss(logits: Tensor) -> Tensor:
            seen = torch.softmax(logits, dim=1) @ torch.softmax(scores, dim=1)
            return F.nll_loss(seen.log(), given, reduction="none")

    return Problem(
        backbone,
        torch.randn(B, 3, size, size, generator=generator).double(),
        torch.randn(M, 3, size, size, generator=generator).double(),
        torch.randint(C, (M,), generator=generator),
        loss,
        parameters,
    )


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 1e-6
    return float((found - expected).norm() / expected.norm())


forms = pytest.mark.parametrize("form", ["last-layer", "exact"])
problems = pytest.mark.parametrize("name", ["mslc", "forward-correction"])


@forms
@problems
def test_the_gradient_equals_the_unrolled_one(name: str, form: str) -> None:
    task = problem(name)
    unrolled = torch.autograd.grad(task.trusted_loss_after_a_step(form, RATE), task.parameters)
    assert relative_error(flat(task.prepare(form)(RATE)), flat(list(unrolled))) <= 1e-10


@forms
def test_the_gradient_of_the_mlp_equals_the_unrolled_one(form: str) -> None:
    torch.manual_seed(5)
    body = backbones.mlp(C, torch.randn(48), torch.rand(48), width=D).body
    task = problem(body=nn.Sequential(nn.Flatten(), body), size=4)
    unrolled = torch.autograd.grad(task.trusted_loss_after_a_step(form, RATE), task.parameters)
    assert relative_error(flat(task.prepare(form)(RATE)), flat(list(unrolled))) <= 1e-10


@forms
@problems
def test_the_gradient_equals_central_differences(name: str, form: str) -> None:
    task, step = problem(name), 1e-5
    differences, found = [], []
    for parameter, gradient in zip(task.parameters, task.prepare(form)(RATE), strict=True):
        values = parameter.data.view(-1)
        for i in range(0, len(values), 1 + len(values) // 10):
            start = values[i].item()
            values[i] = start + step
            above = task.trusted_loss_after_a_step(form, RATE).item()
            values[i] = start - step
            below = task.trusted_loss_after_a_step(form, RATE).item()
            values[i] = start
            differences.append((above - below) / (2 * step))
            found.append(gradient.view(-1)[i])
    assert relative_error(torch.stack(found), torch.tensor(differences, dtype=torch.float64)) <= 1e-6


@forms
@problems
def test_no_step_no_gradient(name: str, form: str) -> None:
    task = problem(name)
    gradients = task.prepare(form)(0.0)
    assert [g.shape for g in gradients] == [p.shape for p in task.parameters]
    assert not flat(gradients).any()


@forms
@problems
def test_nothing_is_changed(name: str, form: str) -> None:
    task = problem(name)
    optimizer = torch.optim.SGD(task.backbone.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(task.backbone(task.images)[0], torch.zeros(B, dtype=torch.long)).backward()
    optimizer.step()

    def everything() -> dict[str, Any]:
        return copy.deepcopy(
            {
                "backbone": task.backbone.state_dict(),
                "gradients": [p.grad for p in task.backbone.parameters()],
                "optimizer": optimizer.state_dict(),
                "corrector": [p.detach() for p in task.parameters],
                "corrector gradients": [p.grad is None for p in task.parameters],
                "random": torch.get_rng_state(),
            }
        )

    meta_gradient = task.prepare(form)
    before = everything()
    meta_gradient(RATE)
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)


@forms
@problems
def test_works_for_callers_without_gradients(name: str, form: str) -> None:
    meta_gradient = problem(name).prepare(form)
    expected = flat(meta_gradient(RATE))
    with torch.no_grad():
        found = meta_gradient(RATE)
    assert torch.equal(flat(found), expected)
    assert not any(gradient.requires_grad for gradient in found)


@problems
def test_the_forms_agree_when_only_the_head_moves(name: str) -> None:
    task = problem(name)
    task.backbone.body.requires_grad_(False)
    exact, last_layer = (flat(task.prepare(form)(RATE)) for form in ("exact", "last-layer"))
    assert relative_error(exact, last_layer) <= 1e-10


def test_the_flag_offers_every_form_of_the_meta_gradient() -> None:
    assert tuple(hypergradient.HYPERGRADIENTS) == META_GRADIENTS


def test_exact_skips_frozen_weights() -> None:
    task = problem()
    whole = flat(task.prepare("exact")(RATE))
    for layer in (0, 7):
        task.backbone.body[layer].weight.requires_grad_(False)
    unrolled = torch.autograd.grad(task.trusted_loss_after_a_step("exact", RATE), task.parameters)
    found = flat(task.prepare("exact")(RATE))
    assert relative_error(found, flat(list(unrolled))) <= 1e-10
    assert relative_error(found, whole) > 1e-3


@problems
def test_exact_hands_over_the_gradient_that_the_look_ahead_step_followed(name: str) -> None:
    task = problem(name)
    task.backbone.body[0].weight.requires_grad_(False)
    found = task.exact_step(task.forward()[0], RATE).backbone_gradients
    moved = {name: weight for name, weight in task.backbone.named_parameters() if weight.requires_grad}
    expected = torch.autograd.grad(task.loss(task.forward(nullcontext)[0]).mean(), list(moved.values()))
    assert list(found) == list(moved)
    assert relative_error(flat(list(found.values())), flat(list(expected))) <= 1e-10
    assert not any(gradient.requires_grad for gradient in found.values())


def test_exact_in_evaluation_mode() -> None:
    task = problem()
    task.forward()
    task.backbone.eval()
    unrolled = torch.autograd.grad(task.trusted_loss_after_a_step("exact", RATE), task.parameters)
    assert relative_error(flat(task.prepare("exact")(RATE)), flat(list(unrolled))) <= 1e-10


def test_exact_leaves_out_weights_that_the_forward_does_not_use() -> None:
    task = problem()
    expected = flat(task.prepare("exact")(RATE))
    task.backbone.body.register_parameter("auxiliary", nn.Parameter(torch.ones(2)))
    assert torch.equal(flat(task.prepare("exact")(RATE)), expected)


def test_exact_does_without_the_region() -> None:
    task = problem()
    expected = flat(task.prepare("exact")(RATE))
    found = task.exact(task.forward(nullcontext)[0], RATE)
    assert relative_error(flat(found), expected) <= 1e-10


def test_the_forward_is_kept_for_further_meta_gradients_and_the_backbone_s_step() -> None:
    task = problem()
    logits, _ = task.forward()
    assert torch.equal(flat(task.exact(logits, RATE)), flat(task.exact(logits, RATE)))
    task.loss(logits).mean().backward()
    found = [weight.grad for weight in task.backbone.parameters()]
    expected = torch.autograd.grad(
        task.loss(task.forward(nullcontext)[0]).mean(), list(task.backbone.parameters())
    )
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("own_step", [True, False])
def test_the_activations_are_free_after_the_backbone_s_step(own_step: bool) -> None:
    """Whether it takes a backward pass of its own, or follows the look-ahead's gradient and lets go."""
    task = problem()
    activations = []
    for layer in task.backbone.body:
        layer.register_forward_hook(lambda _, inputs, output: activations.append(weakref.ref(output)))
    logits = task.forward()[0]
    found = task.exact_step(logits, RATE)
    assert any(activation() is not None for activation in activations)
    if own_step:
        task.loss(logits).mean().backward()
    else:
        del logits
    assert not any(activation() is not None for activation in activations)
    assert found.backbone_gradients


def test_exact_in_mixed_precision_stays_close() -> None:
    """To .2 on average over networks: how one of them rounds in bf16 depends on the processor's kernels."""
    errors = [mixed_precision_error(seed) for seed in range(2)]
    assert sum(errors) / len(errors) <= 0.2


def mixed_precision_error(seed: int) -> float:
    """Of the gradient in bf16 against float32, on an untrained network."""
    torch.manual_seed(seed)
    backbone = backbones.build("cnn8", C, 16).to(memory_format=torch.channels_last)
    images, trusted_images = (
        torch.randn(n, 3, 16, 16).contiguous(memory_format=torch.channels_last) for n in (128, 64)
    )
    scores = torch.randn(C, C).requires_grad_()
    given = torch.randint(C, (len(images),))

    def loss(logits: Tensor) -> Tensor:
        return F.nll_loss(
            (torch.softmax(logits, dim=1) @ scores.softmax(dim=1)).log(), given, reduction="none"
        )

    def meta_gradient(dtype: torch.dtype | None) -> Tensor:
        compute = Compute(torch.device("cpu"), dtype)
        with compute.autocast(), linearizable():
            outputs = backbone(images)
        trusted = TrustedBatch(trusted_images, torch.arange(len(trusted_images)) % C)
        step = LookAhead(backbone, *outputs, loss, [scores], trusted, 0.1, compute.autocast)
        return flat(hypergradient.exact(step).gradients)

    return relative_error(meta_gradient(torch.bfloat16), meta_gradient(None))
