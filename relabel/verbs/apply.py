"""Labels by a corrector from other data, which learns nothing more."""

from __future__ import annotations

from pathlib import Path

from relabel import hub
from relabel.config import SHIPPED_CORRECTOR, ApplyConfig, FitConfig
from relabel.labels.table import Labels
from relabel.options import Saved
from relabel.progress import Watcher
from relabel.verbs.fit import fit


def apply(config: ApplyConfig, watcher: Watcher | None = None) -> Labels:
    """Train a backbone on SOURCE under a pretrained corrector; trusted rows, if any, only calibrate.

    Errors as for `fit`.
    """
    pretrained: Path | Saved = SHIPPED_CORRECTOR
    if isinstance(config.corrector, str):
        pretrained = hub.resolve(config.corrector, "--corrector", SHIPPED_CORRECTOR.name)
    elif config.corrector is not None:
        pretrained = config.corrector
    return fit(
        FitConfig(
            source=config.source,
            trusted=config.trusted,
            pretrained=pretrained,
            labels=config.labels,
            reading=config.reading,
            network=config.network,
            training=config.training,
            run=config.run,
            compute=config.compute,
            cache=config.cache,
            precision=config.precision,
        ),
        watcher,
    )
