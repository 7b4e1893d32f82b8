"""Label correctors: one paper, one file, one contract (`base.Corrector`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from string import Template
from typing import TYPE_CHECKING, Any

from relabel.config import DEFAULT_CORRECTOR
from relabel.errors import RelabelError
from relabel.schedule import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from relabel.correctors.base import Corrector


@dataclass(frozen=True)
class Entry:
    """A registered corrector: its dotted class name, its options' values, the default first, and which of
    them exclude which others.

    pretrained: the option's value with which φ begins at the parameters that come with relabel, unless a
    value that it excludes was chosen.
    presets: the names of the class's `presets`, and what of the paper each leaves out beside `_ALL_PAPERS`.
    """

    path: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    pretrained: tuple[str, str] | None = None
    presets: Mapping[str, str] = field(default_factory=dict)


_ALL_PAPERS = (
    "the look-ahead moves the last layer alone unless --meta-gradient is exact, SGD has Nesterov momentum, "
    "one-dimensional parameters do not decay, and the backbone is cnn8 unless --backbone names another"
)
"""What every preset leaves out of its paper."""

REGISTRY = {
    "mslc": Entry(
        "relabel.correctors.mslc.MSLC",
        {"targets": ("soft", "hard"), "start": ("trusted", "random")},
        presets={
            "mslc-paper": "β's loss is taken against the likeliest class of the previous soft label, and the "
            "look-ahead has the current learning rate"
        },
    ),
    "mlc": Entry(
        "relabel.correctors.mlc.MLC",
        {"transition": ("softmax", "projection"), "start": ("trusted", "identity")},
        presets={
            "mlc-paper": "T acts on probabilities and its rows sum to 1, and the length of training is ours"
        },
    ),
    "metalabelnet": Entry(
        "relabel.correctors.meta_label_net.MetaLabelNet",
        {"start": ("classifier", "random")},
        presets={
            "metalabelnet-paper": "the generator still returns to its best state when the trusted rows' loss "
            "rises"
        },
    ),
    "tmlc": Entry(
        "relabel.correctors.tmlc_net.TMLCNet",
        {
            "target": ("trusted", "given"),
            "without": ("nothing", "nnp", "tse", "sd"),
            "start": ("pretrained", "random"),
        },
        # What comes with relabel learned to name the true class, from these inputs.
        {("start", "pretrained"): (("target", "given"), ("without", "nnp"), ("without", "tse"))},
        ("start", "pretrained"),
        {
            "tmlc-paper": "the corrector scores each pair of row and class, it has 300 steps before its "
            "first soft label, it replays 8 of at most 16 kept epochs, and the meta-learner's rate is ours"
        },
    ),
    "none": Entry("relabel.correctors.plain.Plain"),
}
"""Listing the correctors and their options imports none of them, and so no torch."""


PRESETS = {preset: name for name, entry in REGISTRY.items() for preset in entry.presets}
"""The corrector of every preset."""


def chosen(name: str | None, preset: str | None = None) -> str:
    """The corrector that a name or a preset asks for, by default `DEFAULT_CORRECTOR`.

    RelabelError for an unknown preset, and for one of another corrector.
    """
    if preset is None:
        return name or DEFAULT_CORRECTOR
    if preset not in PRESETS:
        raise RelabelError(f"--preset {preset}: there is no such one.", f"Use {' or '.join(PRESETS)}.")
    if name not in (None, PRESETS[preset]):
        raise RelabelError(f"--preset {preset} is for {PRESETS[preset]}, not {name}.", "Drop --corrector.")
    return PRESETS[preset]


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
    start: dict[str, Any] = {"pretrained": pretrained} if begins_pretrained(name, options) else {}
    return class_of(name)(num_classes, num_features, **options, **start)


def settings_of(name: str, preset: str | None = None) -> Settings:
    """A corrector's own recipe, or one of its presets."""
    corrector = class_of(name)
    return Settings(corrector.recipe) if preset is None else corrector.presets[preset]


def class_of(name: str) -> type[Corrector]:
    """The class of a registered corrector; importing it imports torch."""
    module, _, attribute = REGISTRY[name].path.rpartition(".")
    found: type[Corrector] = getattr(import_module(module), attribute)
    return found


def in_words(help_text: str) -> str:
    """A help text with what is registered in the place of $correctors, $presets and $options."""
    options = (
        f"{name}={'|'.join(values)} ({corrector})"
        for corrector, entry in REGISTRY.items()
        for name, values in entry.options.items()
    )
    presets = (
        f"{preset} ({left_out})" for entry in REGISTRY.values() for preset, left_out in entry.presets.items()
    )
    return Template(help_text).safe_substitute(
        correctors=" or ".join(REGISTRY),
        presets=f"{', '.join(presets)}. In all of them {_ALL_PAPERS}",
        options=", ".join(options),
    )
