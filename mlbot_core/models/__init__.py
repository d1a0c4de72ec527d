"""Direction models: one protocol, a registry, walk-forward training, versions. Heavy libraries load on use."""

from mlbot_core.models.artefact import ArtefactError
from mlbot_core.models.base import (
    LABELS,
    MODEL_TYPES,
    PROBABILITIES,
    DirectionModel,
    FeatureMismatchError,
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
    "LABELS",
    "MODEL_TYPES",
    "PROBABILITIES",
    "ArtefactError",
    "DirectionModel",
    "FeatureMismatchError",
    "Fold",
    "FrameError",
    "LeakError",
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
