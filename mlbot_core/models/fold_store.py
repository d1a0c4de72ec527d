"""The models of a walk-forward run on disk: a killed run goes on where it stopped, and
every forecast of the newest version can be explained by the model that made it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlbot_core.models.artefact import META
from mlbot_core.models.base import Model, load_model

FOLDS: Final = "folds"


@dataclass(frozen=True)
class FoldStore:
    """Artefacts of one model version.

    Each is written whole or not at all and verified when it is read, and a version is the hash of everything that
    decides its bytes: what is there is what would be trained again.

    Parameters
    ----------
    models_dir
        Where all versions lie: the newest model of a version in ``<version>/``, that of a fold in
        ``folds/<version>/<number>/``.
    version
        See :mod:`mlbot_core.models.version`.
    threads
        Cores that a loaded model may use.
    """

    models_dir: Path
    version: str
    threads: int = 1

    def path(self, fold: int | None) -> Path:
        """Return the folder of a fold's model; None: of the one trained last, for what comes after the data."""
        return self.models_dir / self.version if fold is None else self.models_dir / FOLDS / self.version / f"{fold:03}"

    def load(self, fold: int | None) -> Model | None:
        """Return the stored model, None if there is none.

        Raises
        ------
        ArtefactError
            If it is there but damaged: the message says how to go on.
        """
        folder = self.path(fold)
        return load_model(folder, self.threads) if (folder / META).exists() else None

    def forget_folds(self) -> None:
        """Remove the models of the folds; they can be trained again, bit for bit, from the version's inputs."""
        shutil.rmtree(self.models_dir / FOLDS / self.version, ignore_errors=True)

    def save(self, fold: int | None, model: Model) -> None:
        """Write a fitted model."""
        model.save(self.path(fold))
