"""Models: one protocol, a registry, walk-forward training, versions. Heavy libraries load on use."""

from mlbot_core.models.artefact import ArtefactError, LibraryMismatchError
from mlbot_core.models.base import (
    FORECAST,
    LABELS,
    MODEL_TYPES,
    OUTCOMES,
    PROBABILITIES,
    FeatureMismatchError,
    Model,
    ModelError,
    NotFittedError,
    TrainingDataError,
    create_model,
    load_model,
    model_class,
)
from mlbot_core.models.version import VersionInputs, code_version, library_versions, model_version
from mlbot_core.models.walkforward import Fold, FrameError, LeakError, WalkForwardResult, walk_forward

__all__ = [
    "FORECAST",
    "LABELS",
    "MODEL_TYPES",
    "OUTCOMES",
    "PROBABILITIES",
    "ArtefactError",
    "FeatureMismatchError",
    "Fold",
    "FrameError",
    "LeakError",
    "LibraryMismatchError",
    "Model",
    "ModelError",
    "NotFittedError",
    "TrainingDataError",
    "VersionInputs",
    "WalkForwardResult",
    "code_version",
    "create_model",
    "library_versions",
    "load_model",
    "model_class",
    "model_version",
    "walk_forward",
]
