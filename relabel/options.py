"""How a flag is declared once: a dataclass field is a flag of a command and a keyword of the same name.

`relabel.config` declares the flags. From them `relabel.cli.flags` makes the command line's parameters, and
`build` makes a config out of the keywords that a caller gives in Python.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from inspect import get_annotations
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from relabel.errors import RelabelError
from relabel.types import Saved

Config = TypeVar("Config")


if TYPE_CHECKING:
    InMemory = Any  # a `data.in_memory.Frame`, which this module lies below
else:

    class InMemory:
        """A table in memory in the place of a file: a `data.in_memory.Frame`."""


@dataclass(frozen=True)
class Words:
    """What the command line says of an option beside its name, type and default.

    help: a sentence, in which $correctors, $presets and $options stand for what is registered; argument:
    given by its place, not by a flag; usual: the command line's default where the keyword's is None;
    required: on the command line alone; hidden: a keyword that is no flag; keyword: the help of the keyword
    where it is another.
    """

    help: str
    short: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    argument: bool = False
    usual: str | None = None
    required: bool = False
    hidden: bool = False
    keyword: str | None = None


def flag(help: str, default: Any = MISSING, **words: Any) -> Any:  # noqa: ANN401
    """A field that is a flag and a keyword; without a default it must be given; words: of `Words`."""
    metadata = {"words": Words(help, **words)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One flag and keyword; group: the config's attribute that holds it, None for the config itself."""

    name: str
    group: str | None
    hint: Any
    default: Any
    words: Words

    @property
    def flag(self) -> str:
        """As on the command line, where a switch that is on by default can be turned off."""
        name = self.name.replace("_", "-")
        return f"--no-{name}" if self.default is True else f"--{name}"

    @property
    def called(self) -> str:
        """What a message calls it: the flag, or an argument's place holder."""
        return str(self.words.metavar) if self.words.argument else self.flag

    @property
    def types(self) -> tuple[Any, ...]:
        """What a value may be, None apart; the first is what the command line takes."""
        united = get_origin(self.hint) in (Union, UnionType)
        kinds = get_args(self.hint) if united else (self.hint,)
        return tuple(get_origin(kind) or kind for kind in kinds if kind is not NoneType)

    @property
    def is_needed(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING


_FOUND: dict[type, tuple[Option, ...]] = {}


def options_of(config: type[Any]) -> tuple[Option, ...]:
    """The options of a config class in the order of its help: its own before its base's, then its groups'."""
    if config not in _FOUND:  # --help asks for some of them six times
        _FOUND[config] = _options_of(config)
    return _FOUND[config]


def _options_of(config: type[Any]) -> tuple[Option, ...]:
    hints = get_type_hints(config)
    known = {each.name: each for each in fields(config)}
    names = dict.fromkeys(name for kind in config.__mro__ for name in get_annotations(kind) if name in known)
    own, grouped = [], []
    for name in names:
        default, factory = known[name].default, known[name].default_factory
        if "words" in known[name].metadata:
            default = default if factory is MISSING else factory()
            own.append(Option(name, None, hints[name], default, known[name].metadata["words"]))
        elif is_dataclass(hints[name]):
            grouped += [replace(option, group=name) for option in options_of(hints[name])]
    return tuple(own + grouped)


def command_of(config: type) -> str:
    """The command, and the Python function, that a config class is for."""
    return config.__name__.removesuffix("Config").lower()


def build(config: type[Config], /, **keywords: Any) -> Config:  # noqa: ANN401
    """A config from flat keywords; RelabelError for an unknown one, or for a value of another type."""
    options = {option.name: option for option in options_of(config)}
    command = command_of(config)
    for name in keywords:
        if name not in options:
            close = get_close_matches(name, options, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"See help(relabel.{command})."
            raise RelabelError(f"{command} has no keyword {name}.", hint)
    groups: dict[str | None, dict[str, Any]] = {option.group: {} for option in options.values()}
    for name, option in options.items():
        if name in keywords:
            groups[option.group][name] = _typed(option, keywords[name], command)
        elif option.is_needed:
            raise RelabelError(f"{command} needs {name}.", f"See help(relabel.{command}).")
    own = groups.pop(None)
    hints = get_type_hints(config)
    return config(**own, **{str(group): hints[str(group)](**values) for group, values in groups.items()})


def changed(config: Config, /, **keywords: Any) -> Config:  # noqa: ANN401
    """The config with other values of some of its options, wherever in it they are."""
    groups = {option.name: option.group for option in options_of(type(config))}
    for name, value in keywords.items():
        group = groups[name]
        inner = {name: value} if group is None else {group: replace(getattr(config, group), **{name: value})}
        config = replace(config, **inner)  # type: ignore[type-var]
    return config


def values_of(config: object) -> dict[str, Any]:
    """The value of every option of a config, by what a message calls it."""
    return {
        option.called: getattr(getattr(config, option.group) if option.group else config, option.name)
        for option in options_of(type(config))
    }


def _typed(option: Option, value: Any, command: str) -> Any:  # noqa: ANN401
    """The value as its option's type; the sentence on another one is the command line's."""
    if value is None and NoneType in get_args(option.hint):
        return None
    wrong = f"Invalid value for '{option.called}'"
    hint = f"See help(relabel.{command})."
    choices = option.words.choices
    if choices and value not in choices:
        raise RelabelError(f"{wrong}: {value!r} is not one of {', '.join(map(repr, choices))}.", hint)
    for kind in option.types:
        for accepts, convert in _TYPES[kind].accepted:
            if accepts(value):
                return convert(value)
    raise RelabelError(f"{wrong}: not {_TYPES[option.types[0]].called}.", hint)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's, which is not imported here


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_table(value: object) -> bool:
    return hasattr(value, "table") and hasattr(value, "name")


def _are_paths(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(map(_is_path, value))


def _are_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(text, str) for pair in value.items() for text in pair
    )


def _itself(value: Any) -> Any:  # noqa: ANN401
    return value


@dataclass(frozen=True)
class _Type:
    """What a message calls a type, which values are of it, and how each becomes one."""

    called: str
    accepted: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...]


_TYPES: dict[Any, _Type] = {
    bool: _Type("true or false", ((_is_truth, bool),)),
    int: _Type("a valid integer", ((_is_whole, int),)),
    float: _Type("a valid number", ((_is_number, float),)),
    str: _Type("a text", ((_is_path, os.fspath),)),
    Path: _Type("a path", ((_is_path, Path),)),
    tuple: _Type(
        "a list of paths",
        (
            (_is_path, lambda value: (os.fspath(value),)),
            (_are_paths, lambda value: tuple(map(os.fspath, value))),
        ),
    ),
    Mapping: _Type("a mapping of names to values", ((_are_texts, dict),)),
    InMemory: _Type("a table", ((_is_table, _itself),)),
    Saved: _Type("a trained object", ((lambda value: isinstance(value, Saved), _itself),)),
}
