"""Meta-gradients of one look-ahead step, as pure functions chosen from a plain dict.

With w' = w − α ∇_w (1/B) Σ_i ℓ_i(z_i; φ) and the trusted loss L_meta(w'), the chain rule gives

    dL_meta/dφ = −(α/B) · ∂/∂φ Σ_i ⟨∂ℓ_i/∂z_i, ż_i⟩,    ż_i = J_i v,    v = ∇L_meta(w')

so the corrector's parameters φ are reached by a double backward over C-dimensional logits; no
second-order graph of the backbone exists. Nothing here changes a parameter, a buffer or a random state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossFunction = Callable[[Tensor], Tensor]


def last_layer(
    head: nn.Linear,
    features: Tensor,
    logits: Tensor,
    loss: LossFunction,
    parameters: Sequence[Tensor],
    trusted_features: Tensor,
    trusted_labels: Tensor,
    learning_rate: float,
) -> list[Tensor]:
    """dL_meta/dφ when the look-ahead step moves the classifier layer only.

    features: [B, D] and logits: [B, C] of the noisy batch, detached, with logits = head(features);
    loss: logits [B, C] to losses [B], differentiable in logits and φ; parameters: φ;
    trusted_features: [M, D], trusted_labels: [M]; learning_rate: α.
    Equals the exact form with every parameter but the head frozen: z depends on the head linearly, so
    ż_i = V_W h_i + v_b. Costs four products with the head's matrix. Returns one gradient per parameter.
    """
    batch = logits.shape[0]
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        (grad_logits,) = torch.autograd.grad(loss(logits).sum(), logits, create_graph=True)
    with torch.no_grad():
        step = grad_logits * (learning_rate / batch)
        weight = head.weight - step.T @ features
        bias = head.bias - step.sum(dim=0)
        trusted_probability = torch.softmax(trusted_features @ weight.T + bias, dim=1)
        residual = trusted_probability - F.one_hot(trusted_labels, logits.shape[1])
        residual /= len(trusted_labels)
        tangent = features @ (residual.T @ trusted_features).T + residual.sum(dim=0)
    gradients = torch.autograd.grad(grad_logits, list(parameters), grad_outputs=tangent)
    return [gradient * (-learning_rate / batch) for gradient in gradients]
