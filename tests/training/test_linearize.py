"""The region in which a graph's second backward pass computes the tangent alone, in float64."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.training.linearize import linearizable

ROWS, D = 9, 5
Region = Callable[[], AbstractContextManager[None]]


class Formula(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def attention(x: Tensor) -> Tensor:
    rows = x.flatten(2)
    return F.scaled_dot_product_attention(rows, 2 * rows, rows.tanh()).view_as(x)


def attention_spelled_out(x: Tensor) -> Tensor:
    rows = x.flatten(2)
    weights = torch.softmax(rows @ (2 * rows).transpose(1, 2) / rows.shape[2] ** 0.5, dim=2)
    return (weights @ rows.tanh()).view_as(x)


def bias_only(layer: nn.Module) -> nn.Module:
    layer.weight.requires_grad_(False)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution, strided and dilated": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2),
    "convolution, depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same", bias=False),
    "convolution, bias only": lambda: bias_only(nn.Conv2d(4, 4, 3)),
    "BatchNorm without weights": lambda: nn.BatchNorm2d(4, affine=False),
    "BatchNorm without running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "BatchNorm in evaluation mode": lambda: nn.BatchNorm2d(4).eval(),
    "BatchNorm, bias only": lambda: bias_only(nn.BatchNorm2d(4)),
    "pooling, overlapping": lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    "pooling with indices": lambda: Formula(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "transformer's norm": lambda: nn.LayerNorm([4, 6, 6]),
    "hard sigmoid": nn.Hardsigmoid,
    "attention": lambda: Formula(attention),
}
# What autograd cannot differentiate twice, in a form that it can.
SPELLED_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "hard sigmoid": lambda x: F.relu6(x + 3) / 6,
    "attention": attention_spelled_out,
}


def body_with(layer: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(D))
    body.double()(torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    return body


def images() -> Tensor:
    return torch.randn(ROWS, 3, 6, 6, generator=torch.Generator().manual_seed(4)).double()


def derivatives(body: nn.Module, inputs: Tensor, region: Region) -> tuple[Tensor, list[Tensor], Tensor]:
    """The values [N, D], their first derivatives along a cotangent, and their tangent along a direction."""
    generator = torch.Generator().manual_seed(5)
    weights = [weight for weight in body.parameters() if weight.requires_grad]
    cotangent = torch.randn(ROWS, D, generator=generator).double().requires_grad_()
    direction = [torch.randn(weight.shape, generator=generator).double() for weight in weights]
    with region():
        values = body(inputs)
    gradients = torch.autograd.grad(values, weights, cotangent, create_graph=True)
    (tangent,) = torch.autograd.grad(gradients, cotangent, direction)
    return values.detach(), [gradient.detach() for gradient in gradients], tangent


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_linearised_as_autograd_would(name: str, memory_format: torch.memory_format) -> None:
    body = body_with(LAYERS[name]()).to(memory_format=memory_format)
    inputs = images().contiguous(memory_format=memory_format)
    values, gradients, tangent = derivatives(body, inputs, linearizable)
    if name in SPELLED_OUT:
        body[1] = Formula(SPELLED_OUT[name])
    plain_values, plain_gradients, plain_tangent = derivatives(body, inputs, nullcontext)
    torch.testing.assert_close(values, plain_values)
    torch.testing.assert_close(gradients, plain_gradients)
    tolerance = 1e-7 if name == "hard sigmoid" else 1e-9  # torch keeps its 1/6 in float32
    assert plain_tangent.norm() > 1e-3
    assert (tangent - plain_tangent).norm() <= tolerance * plain_tangent.norm()


def test_the_tangent_is_the_derivative_along_the_direction() -> None:
    """By central differences, through a BatchNorm in training and overlapping pooling."""
    body, inputs = body_with(nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(3, stride=2))), images()
    _, _, tangent = derivatives(body, inputs, linearizable)
    generator, step = torch.Generator().manual_seed(5), 1e-6
    torch.randn(ROWS, D, generator=generator)  # the cotangent
    direction = [torch.randn(weight.shape, generator=generator).double() for weight in body.parameters()]
    values = []
    with torch.no_grad():
        for share in (1, -2):  # a step up, then two down
            for weight, along in zip(body.parameters(), direction, strict=True):
                weight.add_(share * step * along)
            values.append(body(inputs))
    difference = (values[0] - values[1]) / (2 * step)
    assert (tangent - difference).norm() <= 1e-6 * difference.norm()


def test_the_costly_layers_go_by_their_own_rules() -> None:
    def nodes(node: Any) -> list[str]:
        return [node.name(), *(name for parent, _ in node.next_functions if parent for name in nodes(parent))]

    body = body_with(nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Hardsigmoid()))
    with linearizable():
        values = body(images())
    assert nodes(values.grad_fn).count("_LayerBackward") == 4
    assert "_LayerBackward" not in nodes(body(images()).grad_fn)
