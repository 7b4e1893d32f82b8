"""Label correctors: one paper, one file, one contract (`base.Corrector`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from relabel.errors import RelabelError

if TYPE_CHECKING:
    from torch import Tensor

    from relabel.correctors.base import Corrector


@dataclass(frozen=True)
class Entry:
    """A registered corrector: its dotted class name, its options' values, the default first, and which of
    them, when asked for, exclude which others.

    pretrained: the option's value with which φ begins at the parameters that come with relabel, unless a
    value that it excludes was chosen.
    """

    path: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    pretrained: tuple[str, str] | None = None


REGISTRY = {
    "mslc": Entry(
        "relabel.correctors.mslc.MSLC", {"targets": ("soft", "hard"), "start": ("trusted", "random")}
    ),
    "mlc": Entry(
        "relabel.correctors.mlc.MLC",
        {"transition": ("softmax", "projection"), "start": ("trusted", "identity")},
    ),
    "metalabelnet": Entry(
        "relabel.correctors.meta_label_net.MetaLabelNet", {"start": ("classifier", "random")}
    ),
    "tmlc": Entry(
        "relabel.correctors.tmlc_net.TMLCNet",
        {
            "target": ("verified", "given"),
            "without": ("nothing", "nnp", "tse", "sd"),
            "start": ("pretrained", "random"),
        },
        # What comes with relabel learned to name the verified class, from these inputs.
        {("start", "pretrained"): (("target", "given"), ("without", "nnp"), ("without", "tse"))},
        ("start", "pretrained"),
    ),
    "none": Entry("relabel.correctors.plain.Plain"),
}
"""Listing the correctors and their options imports none of them, and so no torch."""


def check(name: str, options: Mapping[str, str]) -> None:
    """RelabelError for an unknown corrector, option or value, and for options that exclude each other."""
    if name not in REGISTRY:
        raise RelabelError(f"--corrector {name}: no such corrector.", f"Use {' or '.join(REGISTRY)}.")
    known = REGISTRY[name].options
    for option, value in options.items():
        if option not in known:
            choice = f"It has {', '.join(known)}." if known else "It has none."
            raise RelabelError(f"--option {option}={value}: {name} has no such option.", choice)
        if value not in known[option]:
            raise RelabelError(
                f"--option {option}={value}: no such value.", f"Use {' or '.join(known[option])}."
            )
        for other, excluded in REGISTRY[name].excluded.get((option, value), ()):
            if options.get(other) == excluded:
                raise RelabelError(
                    f"--option {option}={value} and --option {other}={excluded} exclude each other.",
                    "Leave one of them out.",
                )


def begins_pretrained(name: str, options: Mapping[str, str]) -> bool:
    """Whether φ begins at the parameters that come with relabel."""
    entry = REGISTRY[name]
    if entry.pretrained is None:
        return False
    option, value = entry.pretrained
    excluded = entry.excluded.get(entry.pretrained, ())
    return options.get(option, entry.options[option][0]) == value and not any(
        options.get(other) == chosen for other, chosen in excluded
    )


def create(
    name: str,
    num_classes: int,
    num_features: int,
    options: Mapping[str, str] | None = None,
    pretrained: Mapping[str, Tensor] | None = None,
) -> Corrector:
    """A fresh corrector for C classes and D penultimate features; RelabelError as `check`.

    pretrained: the state dict that φ begins at where `begins_pretrained`; not needed to load another one.
    """
    options = options or {}
    check(name, options)
    module, _, attribute = REGISTRY[name].path.rpartition(".")
    start = {"pretrained": pretrained} if begins_pretrained(name, options) else {}
    corrector: Corrector = getattr(import_module(module), attribute)(
        num_classes, num_features, **options, **start
    )
    return corrector
