"""A forward pass whose graph gives the tangent ż = J v of the logits at the cost of one more backward pass.

The Jacobian-vector product is taken by two backward passes (Townsend 2017). Autograd's own second pass also
computes what a graph to the layers' inputs would need; the rules here compute the tangent alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def linearizable() -> Iterator[None]:
    """The region of the noisy batch's forward when `hypergradient.exact` follows.

    Values and first derivatives are those of any forward. What changes is the second backward pass, which
    turns v into ż: autograd's own also computes what the graph of a convolution or a BatchNorm would need
    if its inputs moved with φ, at several times the cost. Here the layers of `_RULES` compute the tangent
    alone, so nothing but `exact` may differentiate twice through this graph. Other layers keep
    autograd's formulas; attention takes its plain form, the only one that has a second derivative. The
    first backward pass without `create_graph`, the backbone's own, frees the graph.
    """
    with sdpa_kernel(SDPBackend.MATH), _Linearize():
        yield


@dataclass(frozen=True)
class _Call:
    """One layer's y = f(x, θ) with a graph of its own, whose leaves are the inputs, None where f takes none.

    push_forward: J, this call and one tangent per input, None for zero, to the tangent of y.
    """

    inputs: Sequence[Tensor | None]
    output: Tensor
    push_forward: Callable[..., Tensor]

    def pull_back(self, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Jᵀ: the gradient of y to those of the inputs, None for an input that requires none."""
        wanted = [x for x in self.inputs if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(self.output, wanted, grad_output, retain_graph=True))
        return tuple(next(found) if x is not None and x.requires_grad else None for x in self.inputs)


class _Context(Protocol):
    call: _Call | None

    def set_materialize_grads(self, value: bool) -> None: ...


class _Layer(torch.autograd.Function):
    """f, whose backward pass is `_PullBack`."""

    @staticmethod
    def forward(
        ctx: _Context,
        function: Callable[..., Tensor],
        push_forward: Callable[..., Tensor],
        *inputs: Tensor | None,
    ) -> Tensor:
        leaves = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
        with torch.enable_grad():
            output = function(*leaves)
        ctx.call = _Call(leaves, output, push_forward)
        return output.detach()

    @staticmethod
    def backward(ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        if not torch.is_grad_enabled():
            ctx.call = None  # as autograd frees what it saved, or the activations would outlive the step
        gradients: tuple[Tensor | None, ...] = _PullBack.apply(call, grad_output)
        return None, None, *gradients


class _PullBack(torch.autograd.Function):
    """Jᵀ on the gradient of y. It is linear, so its own backward pass is its transpose J."""

    @staticmethod
    def forward(ctx: _Context, call: _Call, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return call.pull_back(grad_output)

    @staticmethod
    def backward(ctx: _Context, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        assert ctx.call is not None
        return None, ctx.call.push_forward(ctx.call, *tangents)


_Size = int | tuple[int, ...]
_pool: Callable[..., tuple[Tensor, Tensor]] = F.max_pool2d_with_indices


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor:
    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def push_forward(call: _Call, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor:
        dtype = call.output.dtype  # under autocast not that of the weights
        terms = []
        if dx is not None:
            terms.append(function(dx.to(dtype), weight.to(dtype)))
        if dweight is not None:
            terms.append(function(x.to(dtype), dweight.to(dtype)))
        if dbias is not None:
            terms.append(dbias.to(dtype)[:, None, None].expand_as(call.output))
        return _sum(terms)

    return _layer(function, push_forward, x, weight, bias)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    def push_forward(call: _Call, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor:
        terms = []
        if dx is not None:
            by_x, *_ = call.pull_back(dx)  # the Jacobian in x is symmetric
            assert by_x is not None
            terms.append(by_x)
        if dweight is not None or dbias is not None:
            scale = torch.zeros_like(weight) if dweight is None and weight is not None else dweight
            statistics = (None, None) if training else (running_mean, running_var)
            terms.append(F.batch_norm(x, *statistics, scale, dbias, training, 0.0, eps))
        return _sum(terms)

    return _layer(function, push_forward, x, weight, bias)


def _max_pool2d(
    x: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    pool: Callable[[Tensor], tuple[Tensor, Tensor]] = partial(
        _pool,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )
    assert not return_indices  # with indices it is another function
    indices = torch.empty(0)

    def function(x: Tensor) -> Tensor:
        nonlocal indices
        output, indices = pool(x)
        return output

    def push_forward(_: _Call, dx: Tensor) -> Tensor:
        # Along the memory when the channels are last, as the loader lays images out.
        place = indices.movedim(-3, -1)
        picked = dx.movedim(-3, -1).flatten(-3, -2).gather(-2, place.flatten(-3, -2))
        return picked.view_as(place).movedim(-1, -3)

    return _layer(function, push_forward, x)


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    def push_forward(call: _Call, dx: Tensor) -> Tensor:
        (tangent,) = call.pull_back(dx)  # the Jacobian is diagonal
        assert tangent is not None
        return tangent

    return _layer(F.hardsigmoid, push_forward, x)


_RULES: dict[Callable[..., object], Callable[..., object]] = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.max_pool2d: _max_pool2d,
    F.hardsigmoid: _hardsigmoid,
}


class _Linearize(TorchFunctionMode):
    """Runs the functions of `_RULES` by their rules and all others as they are."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return _RULES.get(func, func)(*args, **(kwargs or {}))


def _layer(
    function: Callable[..., Tensor], push_forward: Callable[..., Tensor], *inputs: Tensor | None
) -> Tensor:
    output: Tensor = _Layer.apply(function, push_forward, *inputs)
    return output


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total, *rest = terms
    for term in rest:
        total.add_(term)
    return total
