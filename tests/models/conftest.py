"""Made data and small configurations for the tests of models; ``kind`` runs a test for every registered type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlbot_core.config import ModelsConfig, load_settings
from mlbot_core.models import MODEL_TYPES, Model, create_model

BAR_MS = 7_200_000
START_MS = 1_700_006_400_000
PLAIN = tuple(f"f_{i}" for i in range(8))


@dataclass(frozen=True)
class Kind:
    """What the suite has to know about a model type to test it; a new type without an entry gets the defaults.

    Parameters
    ----------
    name
        As registered.
    section
        Changes of its section of ``models.yaml`` that make it small.
    columns
        Eight feature names; the first two decide the made outcomes, the last is never known.
    rows
        Bars of made data.
    draws
        Another seed gives another model.
    learns
        It finds from data what decides; else its forecast is a rule or a constant.
    skill
        Rank correlation of forecast and outcome that it must reach on the made data.
    any_threads
        Its bytes do not depend on the number of threads.
    tolerance
        How far a row forecast alone may lie from the same row in a batch; 0: not a bit.
    slow
        Too slow for the quick suite.
    """

    name: str
    section: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = PLAIN
    rows: int = 1500
    draws: bool = True
    learns: bool = True
    skill: float = 0.5
    any_threads: bool = True
    tolerance: float = 0.0
    slow: bool = False

    def config(self, models: ModelsConfig) -> ModelsConfig:
        """The configuration with this type made small."""
        whole = getattr(models, self.name)
        small = type(whole).model_validate({**whole.model_dump(), **self.section})
        return models.model_copy(update={self.name: small})


KINDS = {
    kind.name: kind
    for kind in (
        Kind("lightgbm", {"n_estimators": 40, "num_leaves": 7, "min_child_samples": 30}),
        Kind("catboost", {"iterations": 60, "learning_rate": 0.1, "l2_leaf_reg": 3.0}),
        Kind(
            "tft",
            {
                "decoder_steps": 1,
                "encoder_length": 3,
                "hidden_size": 8,
                "hidden_continuous_size": 4,
                "attention_heads": 2,
                "max_features": 4,
                "max_unknown": 0.5,
                "dropout": 0.0,
                "batch_size": 32,
                "block": 4,
                "learning_rate": 0.01,
                "max_epochs": 4,
            },
            rows=900,
        ),
        Kind("ridge", {"penalty": 0.1}, draws=False),
        Kind("momentum", {}, ("efficiency_24", *PLAIN[1:]), draws=False, learns=False, skill=0.3),
        Kind("constant", {}, draws=False, learns=False, skill=0.0),
        Kind(
            "meta",
            {"penalties": [0.001, 0.1]},
            ("a_score", "b_score", "c_score", "d_score", "a_age", "b_age", "c_age", "d_age"),
            draws=False,
        ),
    )
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes a ``kind`` once for each registered model type."""
    if "kind" in metafunc.fixturenames:
        kinds = [KINDS.get(name) or Kind(name) for name in MODEL_TYPES]
        params = [pytest.param(kind, marks=[pytest.mark.slow] if kind.slow else []) for kind in kinds]
        metafunc.parametrize("kind", params, ids=[kind.name for kind in kinds])


@dataclass(frozen=True)
class Sample:
    """Aligned features and outcomes of two-hour bars."""

    X: pd.DataFrame
    y: pd.DataFrame

    def __len__(self) -> int:
        return len(self.X)

    def head(self, n: int) -> Sample:
        return Sample(self.X.iloc[:n], self.y.iloc[:n])


def make_sample(columns: tuple[str, ...] = PLAIN, rows: int = 1500, seed: int = 5, signal: float = 1.0) -> Sample:
    """Bars whose first two features decide the outcome; the second is unknown at places, the last always."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, len(columns)))
    ages = [name.endswith("_age") for name in columns]
    values[:, ages] = np.abs(values[:, ages]).round()
    score = signal * (values[:, 0] + 0.7 * values[:, 1]) + generator.normal(size=rows)
    label = np.where(score > 0.6, 1.0, np.where(score < -0.6, -1.0, 0.0))
    values[generator.random(rows) < 0.3, 1] = np.nan
    values[:, -1] = np.nan
    ts = START_MS + BAR_MS * np.arange(rows, dtype=np.int64)
    index = pd.Index(ts, name="ts")
    t1 = ts + BAR_MS * (1 + generator.integers(1, 13, rows))
    y = pd.DataFrame({"label": label, "score": score, "width": 0.01, "next_ret": 0.001 * score, "t1": t1}, index=index)
    return Sample(pd.DataFrame(values, columns=list(columns), index=index), y)


@pytest.fixture(scope="session")
def models_config() -> ModelsConfig:
    """The repository's own configuration with every type made small, so that a test takes seconds."""
    config = load_settings({"MLBOT_THREADS": "1"}).models
    for name in MODEL_TYPES:
        config = (KINDS.get(name) or Kind(name)).config(config)
    return config


@pytest.fixture(scope="session")
def make_model(models_config: ModelsConfig) -> Callable[..., Model]:
    """Return an unfitted model of a type; further words replace values of its section."""

    def make(model_type: str = "lightgbm", threads: int = 1, **changes: Any) -> Model:
        section = getattr(models_config, model_type)
        changed = type(section).model_validate({**section.model_dump(), **changes})
        return create_model(model_type, models_config.model_copy(update={model_type: changed}), threads)

    return make


@pytest.fixture(scope="session")
def sample_of() -> Callable[..., Sample]:
    """Return :func:`make_sample`; the same arguments give the same data."""
    return make_sample


@pytest.fixture(scope="session")
def sample_for() -> Callable[[Kind], Sample]:
    """Return the made data that suits a type."""
    made: dict[str, Sample] = {}

    def get(kind: Kind) -> Sample:
        if kind.name not in made:
            made[kind.name] = make_sample(kind.columns, kind.rows)
        return made[kind.name]

    return get


@pytest.fixture(scope="session")
def fitted(make_model: Callable[..., Model], sample_for: Callable[[Kind], Sample]) -> Callable[[Kind], Model]:
    """Return a type's model, trained once on its made data; not to be changed."""
    models: dict[str, Model] = {}

    def get(kind: Kind) -> Model:
        if kind.name not in models:
            sample = sample_for(kind)
            models[kind.name] = make_model(kind.name).fit(sample.X, sample.y)
        return models[kind.name]

    return get


_ELSEWHERE = """
import sys, pathlib, pandas
from mlbot_core.config import ModelsConfig
from mlbot_core.models import create_model
at = pathlib.Path(sys.argv[1])
config = ModelsConfig.model_validate_json((at / "config.json").read_text())
X, y = pandas.read_parquet(at / "x.parquet"), pandas.read_parquet(at / "y.parquet")
create_model(sys.argv[2], config, 1).fit(X, y).save(at / "there")
"""


@pytest.fixture
def fit_elsewhere(models_config: ModelsConfig, tmp_path: Path) -> Callable[[Kind, Sample], Path]:
    """Fit in another process with another number of BLAS threads and another hash seed; return the artefact."""

    def fit(kind: Kind, sample: Sample) -> Path:
        sample.X.to_parquet(tmp_path / "x.parquet")
        sample.y.to_parquet(tmp_path / "y.parquet")
        (tmp_path / "config.json").write_text(models_config.model_dump_json())
        threads = "2" if kind.any_threads else "1"
        env = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "77"}
        command = [sys.executable, "-c", _ELSEWHERE, str(tmp_path), kind.name]
        subprocess.run(command, check=True, timeout=240, env=env)
        return tmp_path / "there"

    return fit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "v1"


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, bytes]]:
    """Return the content of every file of a folder."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def same_bits() -> Callable[[npt.ArrayLike, npt.ArrayLike], None]:
    """Assert that two frames of numbers agree in every bit."""

    def check(a: Any, b: Any) -> None:
        assert list(a.columns) == list(b.columns)
        np.testing.assert_array_equal(a.to_numpy(dtype=np.float64), b.to_numpy(dtype=np.float64))

    return check
