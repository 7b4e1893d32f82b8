"""The flags of the commands, made from the config classes; those that only the command line has are here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from enum import StrEnum
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from relabel.cli.checks import parse_options
from relabel.correctors.registry import in_words
from relabel.options import Option, build, options_of

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


def takes(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a config class; it gets them as one such value named `config`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = signature(command, eval_str=True)
        options = {_name(option): option for option in options_of(config) if not option.words.hidden}

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:  # noqa: ANN401
            given = {option.name: _value(option, values.pop(name)) for name, option in options.items()}
            command(**values, config=build(config, **given))

        own = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for parameter in taken.parameters.values()
            if parameter.name != "config"
        ]
        made = [_parameter(name, option) for name, option in options.items()]
        wrapped.__signature__ = taken.replace(parameters=[*made, *own])  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _name(option: Option) -> str:
    """The parameter's name: a switch that is on by default has one for its opposite."""
    return f"no_{option.name}" if option.default is True else option.name


def _parameter(name: str, option: Option) -> Parameter:
    """The typer parameter of an option."""
    words = option.words
    help_text = in_words(words.help)
    kind = option.types[0]
    annotation: Any = list[str] if kind is tuple or kind is Mapping else kind
    if words.choices:
        make: Any = StrEnum  # of a name and members that a type checker cannot know
        annotation = make(option.name, {choice.replace("-", "_"): choice for choice in words.choices})
    default = words.usual or option.default
    if kind is bool:
        default = False
    if option.is_needed or words.required:
        default = Parameter.empty
    elif default is None or kind is Mapping:
        default, annotation = None, annotation | None
    if words.argument:
        place = typer.Argument(metavar=words.metavar, help=help_text)
    else:
        names = [option.flag, *([words.short] if words.short else [])]
        place = typer.Option(*names, metavar=words.metavar, help=help_text)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, place])


def _value(option: Option, value: Any) -> Any:  # noqa: ANN401
    """What a keyword would have been given."""
    if option.default is True:
        return not value
    if isinstance(value, StrEnum):
        return value.value
    return parse_options(value or []) if option.types[0] is Mapping else value
