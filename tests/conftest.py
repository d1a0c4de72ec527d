"""Fixtures every room's tests may use."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

# the first example of a test compiles numba code: a deadline an example would measure that, and the machine's load
settings.register_profile("mlbot", deadline=None)
settings.load_profile("mlbot")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def archive_dir() -> Path:
    """The recorded market data, or a skip that says where it was looked for (a failure where it is required)."""
    folder = Path(os.environ.get("MLBOT_ARCHIVE_DIR") or ROOT.parent / "shared" / "data")
    if not (folder / "btcusdt_perp_1h.parquet").exists():
        message = f"no recorded data in {folder}; set MLBOT_ARCHIVE_DIR to run this test"
        if os.environ.get("MLBOT_REQUIRE_ARCHIVE"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Postgres of its own on loopback, or a skip (a failure where it is required)."""
    # Debian keeps the server's programs out of the PATH
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    initdb, pg_ctl = (shutil.which(name, path=os.pathsep.join(places)) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        if os.environ.get("MLBOT_REQUIRE_POSTGRES"):
            pytest.fail("Postgres (initdb, pg_ctl) is required here and absent")
        pytest.skip("no Postgres on this machine (initdb, pg_ctl)")
    folder = Path(tmp_path_factory.mktemp("postgres"))
    # Postgres refuses to run as root
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if who:
        for parent in (folder, *folder.parents):
            if parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        folder.chmod(0o777)
    data = folder / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run([initdb, "-D", data, "-U", "me", "-A", "trust"], check=True, capture_output=True, cwd=folder, **who)
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    start = [pg_ctl, "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    yield f"postgresql://me@127.0.0.1:{port}/postgres"
    subprocess.run(
        [pg_ctl, "-D", data, "-m", "fast", "-t", "240", "stop"], check=True, capture_output=True, cwd=folder, **who
    )


@pytest.fixture(scope="session")
def oracle_environment() -> Callable[[str, Path], Path]:
    """Return the interpreter of an environment of its own, for an oracle whose dependencies are not ours.

    Called with a name and a requirements file. The environment lies in the git-ignored cache of the checkout and is
    made anew when the requirements change; where it cannot be made, the test is skipped (failed where it is required).
    """

    def make(name: str, requirements: Path) -> Path:
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
        folder = ROOT / ".cache" / f"{name}-{digest}"
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            (folder / ".gitignore").write_text("*\n", encoding="utf-8")
            command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
            installed = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            if installed.returncode != 0:
                message = f"{name} could not be installed into {folder}: {installed.stderr[-500:]}"
                if os.environ.get("MLBOT_REQUIRE_ARCHIVE"):
                    pytest.fail(message)
                pytest.skip(message)
            (folder / "complete").touch()
        return python

    return make


@dataclass(frozen=True)
class RegistryBench:
    """A home with a registry, a trial ledger and real LightGBM artefacts."""

    home: Path
    clock: Any
    template: Path
    features: tuple[str, ...]
    url: str | None = None

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def ledger(self) -> Any:
        from mlbot_core.validation.trials import TrialLedger

        return TrialLedger(self.home, self.clock)

    @property
    def registry(self) -> Any:
        from mlbot_core.models.registry import Registry

        return Registry(self.home, self.clock, url=self.url, who="ann@desk")

    def slot(self, **changes: str) -> Any:
        from mlbot_core.models.registry import Slot

        return Slot(**{"source": "archive", "symbol": "BTC", "timeframe": "2h", "model_type": "lightgbm", **changes})

    def register(self, seed: int = 1, *, identity: str = "", slot: Any = None, **inputs: Any) -> Any:
        """Store the artefact of a version that depends on ``seed``, and register it."""
        from mlbot_core.models.canonical import canonical_json, sha256_hex
        from mlbot_core.models.version import library_versions

        made = {
            "code": "c" * 64,
            "feature_set": "f" * 16,
            "libraries": library_versions("lightgbm"),
            "params": {"num_leaves": 7},
            "partitions": {"features|BTC-2h|2024-01": "v1"},
            "seed": seed,
            **inputs,
        }
        version = sha256_hex(canonical_json(made))
        if not (self.models_dir / version).exists():
            shutil.copytree(self.template, self.models_dir / version)
        return self.registry.register(
            version,
            slot=slot or self.slot(),
            identity=identity,
            start_ms=1_704_067_200_000,
            end_ms=1_738_627_200_000,
            data_as_of_ms=1_738_700_000_000,
            inputs=made,
            models_dir=self.models_dir,
            run_id="run-1",
        )

    def record(self, entry: Any, **changes: Any) -> Any:
        """Return a gate record that passes, with a head that the ledger really holds."""
        from mlbot_core.models.gate import GateRecord
        from mlbot_core.validation.criteria import Measured, Statistics
        from mlbot_core.validation.namespaces import namespace_of
        from mlbot_core.validation.trials import DailyReturns

        namespace = namespace_of(entry.slot.source, entry.registration.identity)
        returns = DailyReturns(0, np.random.default_rng(3).normal(0.001, 0.01, 400))
        row = self.ledger.append(namespace, {"model": entry.version}, returns, data_version="d", run_id="r").row
        good = Measured(1.5, 0.4, 2.6, 0.9, 0.1, 400, 150)
        values = {
            "registration": entry.registration,
            "traded": good,
            "unit": good,
            "statistics": Statistics(0.97, 0.1, 40),
            "ledger_head": str(row.head),
            "backtest_start_ms": 1_704_067_200_000,
            "backtest_end_ms": 1_738_627_200_000,
            "backtest_version": "b" * 16,
            "conditions": "c" * 16,
            "made_at_ms": self.clock.now_ms(),
        }
        return GateRecord(**{**values, **changes})

    def promote(self, entry: Any, **changes: Any) -> Any:
        """Promote with a record that passes unless ``changes`` say otherwise."""
        record = self.record(entry, **changes)
        return self.registry.promote(record, models_dir=self.models_dir, ledger=self.ledger, why="better")


@pytest.fixture(scope="session")
def lightgbm_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored artefact of a small LightGBM model of the features f_0 to f_3."""
    from mlbot_core.config import load_settings
    from mlbot_core.models import create_model

    config = load_settings({"MLBOT_THREADS": "1"}).models
    small = config.model_copy(update={"lightgbm": config.lightgbm.model_copy(update={"n_estimators": 5})})
    rng = np.random.default_rng(1)
    index = pd.Index(1_704_067_200_000 + 7_200_000 * np.arange(600, dtype=np.int64), name="ts")
    X = pd.DataFrame(rng.normal(size=(600, 4)), columns=[f"f_{i}" for i in range(4)], index=index)
    label = np.sign(np.round(X["f_0"] + rng.normal(size=600)))
    y = pd.DataFrame({"label": label, "score": label, "width": 0.01, "next_ret": 0.0}, index=index)
    folder = tmp_path_factory.mktemp("artefact") / "model"
    create_model("lightgbm", small, 1).fit(X, y).save(folder)
    return folder


@pytest.fixture
def registry_bench(tmp_path: Path, lightgbm_artefact: Path) -> RegistryBench:
    """A fresh home whose registry is empty."""
    from mlbot_core.clock import FixedClock

    home = tmp_path / "home"
    return RegistryBench(home, FixedClock(1_740_000_000_000), lightgbm_artefact, ("f_0", "f_1", "f_2", "f_3"))
