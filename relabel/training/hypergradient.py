"""Meta-gradients of one look-ahead step, as pure functions of one signature.

With w' = w − α ∇_w (1/B) Σ_i ℓ_i(z_i; φ) and the trusted loss L_meta(w'), the chain rule gives

    dL_meta/dφ = −(α/B) · ∂/∂φ Σ_i ⟨∂ℓ_i/∂z_i, ż_i⟩,    ż_i = J_i v,    v = ∇L_meta(w')

so the corrector's parameters φ are reached by a double backward over C-dimensional logits; no
second-order graph of the backbone exists. Nothing here changes a parameter, a buffer or a random state.

This is the bilevel step of MW-Net, MLC and MSLC: `exact` takes it with every weight of the backbone,
`last_layer` with the classifier alone, much as FaMUS (Xu et al. 2021) takes it with the top block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from relabel.backbones import Backbone, untracked

LossFunction = Callable[[Tensor], Tensor]


class TrustedBatch(NamedTuple):
    """Trusted rows that judge a look-ahead step: inputs [M, ...] and labels [M].

    features: [M, D] under the weights before the step, for `last_layer`; None for `exact`.
    """

    inputs: Tensor
    labels: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class LookAhead:
    """One look-ahead step of a backbone on a noisy batch, and the trusted batch that judges it.

    logits: [B, C], features: [B, D] of the noisy batch, logits = head(features); loss: logits [B, C] to
    losses [B], differentiable in logits and φ; parameters: φ; learning_rate: α; autocast: opens the
    mixed-precision region of a trusted forward.
    """

    backbone: Backbone
    logits: Tensor
    features: Tensor
    loss: LossFunction
    parameters: Sequence[Tensor]
    trusted: TrustedBatch
    learning_rate: float
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext


class Hypergradient(NamedTuple):
    """dL_meta/dφ, one gradient per parameter, and L_meta, the mean trusted loss after the look-ahead step.

    backbone_gradients: from `exact`, ∇_w (1/B) Σ_i ℓ_i by weight, which the look-ahead step followed.
    """

    gradients: list[Tensor]
    trusted_loss: Tensor
    backbone_gradients: Mapping[str, Tensor] = MappingProxyType({})


def last_layer(step: LookAhead) -> Hypergradient:
    """dL_meta/dφ when the look-ahead step moves the classifier layer only.

    Equals the exact form with every parameter but the head frozen: z depends on the head linearly, so
    ż_i = V_W h_i + v_b. Costs four products with the head's matrix.
    """
    head, features, trusted_features = step.backbone.head, step.features.detach(), step.trusted.features
    assert trusted_features is not None
    labels, rows = step.trusted.labels, len(features)
    grad_logits = _grad_logits(step.logits, step.loss)
    with torch.no_grad():
        moved = grad_logits * (step.learning_rate / rows)
        weight = head.weight - moved.T @ features
        bias = head.bias - moved.sum(dim=0)
        trusted_logits = trusted_features @ weight.T + bias
        trusted_loss = F.cross_entropy(trusted_logits, labels)
        residual = torch.softmax(trusted_logits, dim=1) - F.one_hot(labels, trusted_logits.shape[1])
        residual /= len(labels)
        tangent = features @ (residual.T @ trusted_features).T + residual.sum(dim=0)
    gradients = _grad_parameters(grad_logits, tangent, step.parameters, -step.learning_rate / rows)
    return Hypergradient(gradients, trusted_loss)


def exact(step: LookAhead) -> Hypergradient:
    """dL_meta/dφ when the look-ahead step moves every weight that is not frozen.

    The logits need the graph of the forward that the backbone's own step will use; the graph is kept. Run
    that forward under `linearize.linearizable()`: without, the result is the same where autograd has one, at
    several times the cost. The trusted forward runs in the backbone's present mode and leaves its running
    statistics as they are.
    With u = ∂ℓ/∂z, ż = J v is the derivative of ⟨Jᵀu, v⟩ in u: dropout and BatchNorm's statistics are those
    of the one noisy forward. Costs two backward passes of B rows and a step of M rows. The first of the two
    is the backbone's own, for who lets it follow `backbone_gradients`.
    """
    backbone, loss = step.backbone, step.loss
    grad_logits = _grad_logits(step.logits, lambda z: loss(z) / len(z))
    weights = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
    with torch.enable_grad():
        cotangent = grad_logits.detach().requires_grad_()
        found = torch.autograd.grad(
            step.logits, list(weights.values()), cotangent, create_graph=True, allow_unused=True
        )
        gradients = {
            name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None
        }
        followed = {name: gradient.detach() for name, gradient in gradients.items()}
        moved = {
            name: (weights[name].detach() - step.learning_rate * gradient).requires_grad_()
            for name, gradient in followed.items()
        }
        trusted_logits = _logits_at(moved, backbone, step.trusted.inputs, step.autocast)
        trusted_loss = F.cross_entropy(trusted_logits, step.trusted.labels)
        direction = torch.autograd.grad(trusted_loss, list(moved.values()), materialize_grads=True)
        (tangent,) = torch.autograd.grad(list(gradients.values()), cotangent, direction)
    found_gradients = _grad_parameters(grad_logits, tangent, step.parameters, -step.learning_rate)
    return Hypergradient(found_gradients, trusted_loss.detach(), followed)


HYPERGRADIENTS: dict[str, Callable[[LookAhead], Hypergradient]] = {
    "last-layer": last_layer,
    "exact": exact,
}
"""The forms of the meta-gradient, by what `--meta-gradient` calls them."""


def _grad_logits(logits: Tensor, loss: LossFunction) -> Tensor:
    """∂ℓ_i/∂z_i [B, C], with a graph to φ and none to the backbone."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(loss(logits).sum(), logits, create_graph=True)[0]


def _grad_parameters(
    grad_logits: Tensor, tangent: Tensor, parameters: Sequence[Tensor], factor: float
) -> list[Tensor]:
    """factor · ∂/∂φ Σ_i ⟨∂ℓ_i/∂z_i, ż_i⟩ for ∂ℓ/∂z and ż [B, C], one gradient per parameter."""
    gradients = torch.autograd.grad(grad_logits, list(parameters), grad_outputs=tangent)
    return [gradient * factor for gradient in gradients]


def _logits_at(
    weights: Mapping[str, Tensor],
    backbone: Backbone,
    inputs: Tensor,
    autocast: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Logits [M, C] of the backbone with some weights replaced, leaving no trace in it or in the RNG."""
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices), untracked(backbone), autocast():
        logits: Tensor = functional_call(backbone, dict(weights), (inputs,))[0]
    return logits
