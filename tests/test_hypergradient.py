import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel import hypergradient
from relabel.backbones import Backbone
from relabel.correctors.mslc import MSLC

B, M, C = 9, 6, 4


@dataclass
class Problem:
    """A noisy batch, a trusted batch and a corrector's loss with its parameters, all in float64."""

    backbone: Backbone
    images: Tensor
    trusted_images: Tensor
    trusted_labels: Tensor
    loss: Callable[[Tensor], Tensor]
    parameters: list[Tensor]

    def last_layer(self, learning_rate: float) -> list[Tensor]:
        with torch.no_grad():
            logits, features = self.backbone(self.images)
            trusted_features = self.backbone(self.trusted_images)[1]
        return hypergradient.last_layer(
            self.backbone.head,
            features,
            logits,
            self.loss,
            self.parameters,
            trusted_features,
            self.trusted_labels,
            learning_rate,
        )

    def trusted_loss_after_a_step(self, learning_rate: float) -> Tensor:
        """The definition: one step of plain SGD on the head, with a graph to φ."""
        head = self.backbone.head
        logits = self.backbone(self.images)[0]
        mean_loss = self.loss(logits).mean()
        gradients = torch.autograd.grad(mean_loss, [head.weight, head.bias], create_graph=True)
        weight, bias = (
            p - learning_rate * g for p, g in zip((head.weight, head.bias), gradients, strict=True)
        )
        features = self.backbone(self.trusted_images)[1].detach()
        return F.cross_entropy(F.linear(features, weight, bias), self.trusted_labels)


class FloatBackbone(Backbone):
    """`Backbone` in float64, which its forward would leave."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(inputs)
        return self.head(features), features


def problem(name: str) -> Problem:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Tanh())
    backbone = FloatBackbone(body, nn.Linear(5, C)).double().eval()
    given = torch.randint(C, (B,), generator=generator)
    parameters: list[Tensor]
    if name == "mslc":
        corrector = MSLC().double()
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
        torch.randn(B, 3, 2, 2, generator=generator).double(),
        torch.randn(M, 3, 2, 2, generator=generator).double(),
        torch.randint(C, (M,), generator=generator),
        loss,
        parameters,
    )


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 1e-6
    return float((found - expected).norm() / expected.norm())


problems = pytest.mark.parametrize("name", ["mslc", "forward-correction"])
RATE = 0.7  # far enough that a gradient taken at w instead of w' would be caught


@problems
def test_last_layer_equals_the_unrolled_gradient(name: str) -> None:
    task = problem(name)
    unrolled = torch.autograd.grad(task.trusted_loss_after_a_step(RATE), task.parameters)
    assert relative_error(flat(task.last_layer(RATE)), flat(list(unrolled))) <= 1e-10


@problems
def test_last_layer_equals_central_differences(name: str) -> None:
    task, step = problem(name), 1e-5
    differences, found = [], []
    for parameter, gradient in zip(task.parameters, task.last_layer(RATE), strict=True):
        values = parameter.data.view(-1)
        for i in range(0, len(values), 1 + len(values) // 10):
            start = values[i].item()
            values[i] = start + step
            above = task.trusted_loss_after_a_step(RATE).item()
            values[i] = start - step
            below = task.trusted_loss_after_a_step(RATE).item()
            values[i] = start
            differences.append((above - below) / (2 * step))
            found.append(gradient.view(-1)[i])
    assert relative_error(torch.stack(found), torch.tensor(differences, dtype=torch.float64)) <= 1e-6


@problems
def test_no_step_no_gradient(name: str) -> None:
    task = problem(name)
    gradients = task.last_layer(0.0)
    assert [g.shape for g in gradients] == [p.shape for p in task.parameters]
    assert not flat(gradients).any()


@problems
def test_nothing_is_changed(name: str) -> None:
    task = problem(name)
    optimizer = torch.optim.SGD(task.backbone.parameters(), lr=0.1, momentum=0.9)
    task.backbone.train()
    F.cross_entropy(task.backbone(task.images)[0], torch.zeros(B, dtype=torch.long)).backward()
    optimizer.step()
    task.backbone.eval()

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

    before = everything()
    task.last_layer(RATE)
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)


@problems
def test_works_for_callers_without_gradients(name: str) -> None:
    task = problem(name)
    expected = flat(task.last_layer(RATE))
    with torch.no_grad():
        found = task.last_layer(RATE)
    assert torch.equal(flat(found), expected)
    assert not any(gradient.requires_grad for gradient in found)
