"""The exceptions a user can meet; `relabel.cli` turns each into one sentence and an exit code.

RelabelError          exit 2: a mistake in the command, the flags or the input
├── ImageError        one image cannot be used: becomes that row's `error`, never ends a run
└── RunError          exit 1: the input was fine, the run itself could not go on
    └── DivergedError and would not with its checkpoint either
"""


class RelabelError(Exception):
    """A user's mistake: `message` names the file, row or flag; `hint` says what to do."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ImageError(RelabelError):
    """One image that cannot be used; the text becomes the row's `error`."""


class RunError(RelabelError):
    """The input was fine but the run could not go on (disk full, loss not finite)."""

    exit_code = 1


class DivergedError(RunError):
    """Training led to values that are not finite, and would again."""
