"""What the Kubernetes files rest on, by plain processes: one home trains on an export, the other finds its models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

pytestmark = [pytest.mark.prove, pytest.mark.timeout(2400)]

FROM, TRAIN_FROM, TO, CLOCK = "2024-01-01", "2024-06-01", "2024-07-01", "fixed:2024-07-05T00:10:00Z"


class Pod:
    """A home of its own; books and Dagster's storage in the common Postgres, models in the common folder."""

    def __init__(self, folder: Path, name: str, url: str, config: Path) -> None:
        self.home = folder / name
        self.home.mkdir()
        (folder / "shared" / "models").mkdir(parents=True, exist_ok=True)
        (self.home / "models").symlink_to(folder / "shared" / "models")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        self.environment = kept | {
            "MLBOT_HOME": str(self.home),
            "MLBOT_CONFIG_DIR": str(config),
            "MLBOT_SOURCE": "emulator",
            "MLBOT_CLOCK": CLOCK,
            "MLBOT_PG_URL": url,
            "MLBOT_THREADS": "1",
        }

    def mlbot(self, *words: str) -> Any:
        command = [sys.executable, "-m", "mlbot_core.cli.main", *words, "--json"]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def count(url: str, table: str) -> int:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as con:
        found = con.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
    engine.dispose()
    return int(found)


def test_what_one_pod_trains_the_pod_with_the_warehouse_finds_and_does_not_train_again(
    tmp_path: Path, make_home: Any, postgres_url: str
) -> None:
    config = Path(make_home("unused").environment["MLBOT_CONFIG_DIR"])
    owner = Pod(tmp_path, "owner", postgres_url, config)
    owner.mlbot("backfill", "--from", FROM, "--to", TO, "-i", "2h")
    export = tmp_path / "shared" / "export"
    owner.mlbot("db", "export", str(export))

    # the first model of a registry makes the key that signs it; whoever registers or loads a model needs that very key
    owner.mlbot("train", "-i", "2h", "-m", "constant", "--from", TRAIN_FROM, "--to", TO)
    worker = Pod(tmp_path, "worker", postgres_url, config)
    shutil.copy(owner.home / "registry.key", worker.home / "registry.key")
    worker.mlbot("db", "import", str(export))
    train = ("train", "-i", "2h", "-m", "lightgbm", "--from", TRAIN_FROM, "--to", TO)
    worker.mlbot(*train)
    trained = contents(tmp_path / "shared" / "models")
    assert any(name.startswith("folds/") for name in trained)
    models, trials = worker.mlbot("models", "list", "--all")["models"], count(postgres_url, "trials")
    assert len(models) == 2

    owner.mlbot(*train)
    # nothing was fitted a second time, nothing registered or counted twice, and the forecasts are where they belong
    assert contents(tmp_path / "shared" / "models") == trained
    assert [one["model"] for one in owner.mlbot("models", "list", "--all")["models"]] == [
        one["model"] for one in models
    ]
    assert count(postgres_url, "trials") == trials
    (backtest,) = owner.mlbot("backtest", "-i", "2h", "-m", "lightgbm")["summaries"]
    assert backtest["model_type"] == "lightgbm"
    assert backtest["folds"] >= 1
