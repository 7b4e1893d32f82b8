"""A run with its checkpoint, and the files that it writes beside the labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relabel.config import FitConfig, TrainingConfig
from relabel.errors import DivergedError, RelabelError
from relabel.labels.table import Labels
from relabel.progress import Watcher


@contextmanager
def checkpointed(config: TrainingConfig, watcher: Watcher, named: bool) -> Iterator[None]:
    """The block trains and writes; its checkpoint goes when all is written, or would only fail again.

    named: whether the user named the checkpoint. Raises RelabelError where that is another kind of file.
    """
    state = config.run.checkpoint
    if state and state.exists() and not config.run.resume:
        from relabel.training.checkpoint import is_checkpoint

        if named and not is_checkpoint(state):
            raise RelabelError(
                f"--checkpoint {state} is damaged or another kind of file.",
                "Name another file, or remove this one.",
            )
        watcher.warn(f"Starting afresh replaces the checkpoint {state}; --resume would continue it.")
    try:
        yield
    except DivergedError:
        if state:
            state.unlink(missing_ok=True)
        raise
    if state:
        state.unlink(missing_ok=True)


def save_trained(config: TrainingConfig, labels: Labels) -> None:
    """Write the corrector and the model where the config asks for them."""
    if isinstance(config, FitConfig) and config.outputs.save_corrector:
        labels.corrector.save(config.outputs.save_corrector)
    if isinstance(config, FitConfig) and config.outputs.save_model:
        labels.model.save(config.outputs.save_model)


def written_by(config: TrainingConfig) -> list[Path]:
    """The files that the run writes at its end."""
    output = config.outputs.output
    paths = [None if output in (None, "-") else Path(str(output))]
    if isinstance(config, FitConfig):
        paths += [config.outputs.save_corrector, config.outputs.save_model]
    return [path for path in paths if path]
