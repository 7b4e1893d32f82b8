"""One command line from its words to an exit code: every failure becomes a sentence on standard error."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Sequence

import typer

from relabel.cli.streams import abandon_stdout
from relabel.errors import RelabelError
from relabel.interrupts import Stopped


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line; every failure becomes one sentence on standard error and an exit code."""
    try:
        invoke(app, list(arguments))
        code = 0
    except typer.Exit as leave:
        code = leave.exit_code
    except RelabelError as error:
        code = _fail(error, f"Error: {error}", error.exit_code)
    except Stopped as stop:
        code = _fail(stop, str(stop), 128 + stop.signum)
    except KeyboardInterrupt as interrupt:
        code = _fail(interrupt, "Interrupted.", 130)
    except BrokenPipeError:
        abandon_stdout()
        code = 1
    except Exception as error:
        code = _fail_unexpected(error, arguments)
    return code


def _fail_unexpected(error: Exception, arguments: Sequence[str]) -> int:
    # Typer's own errors share no public class across its versions.
    if hasattr(error, "format_message"):
        return _fail(error, f"Error: {_usage_sentence(error, error.format_message(), arguments)}", 2)
    # Raised by Python's own tests of whether a file is there, wherever they are.
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _fail(error, f"Error: There is no file {error.filename}: the name is too long.", 2)
    reason = " ".join(str(error).split())
    return _fail(error, f"Error: {type(error).__name__}: {reason} (RELABEL_DEBUG=1 shows where).", 1)


def invoke(app: typer.Typer, arguments: list[str]) -> None:
    """Run one command; not `app()`, which would swallow KeyboardInterrupt and BrokenPipeError."""
    _check_words(arguments)
    command = typer.main.get_command(app)
    with command.make_context("relabel", list(arguments), obj=arguments) as context:
        command.invoke(context)


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse an empty word: as a path it would be the current folder, and as a name no name at all."""
    for before, word in zip(["relabel", *arguments], arguments, strict=False):
        flag, equals, value = word.partition("=")
        bare = bool(equals) and not value and flag.startswith("--")
        if bare or not word:
            raise RelabelError(
                f"After {flag if bare else before} there is an empty word.",
                "Write what belongs there; a shell variable that is not set leaves nothing.",
            )


def _usage_sentence(error: Exception, message: str, arguments: Sequence[str]) -> str:
    message = " ".join(message.split()).replace("Value error, ", "")
    message = re.sub(r"Input should be a valid (\w+).*", r"not a valid \1", message)
    context = getattr(error, "ctx", None)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    where = context.command_path if context else f"relabel {command}".strip()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See {where} --help."


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("RELABEL_DEBUG") == "1":
        traceback.print_exception(error)
    typer.echo(message, err=True)
    return code
