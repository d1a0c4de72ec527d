"""Dagster's own storage inside our home, chosen by the environment, from ONE ``dagster.yaml``.

``dagster dev`` in the checkout and ``mlbot up`` read the same file; neither may depend on where DAGSTER_HOME points
(``dagster dev`` without it uses a folder that it deletes on exit). With ``MLBOT_PG_URL`` set, runs, events and
schedules live in Postgres; otherwise in SQLite under ``$MLBOT_HOME/dagster``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.compute_log_manager import ComputeLogManager
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.event import listens_for
from sqlalchemy.pool import QueuePool

from mlbot_core.config import load_settings
from mlbot_core.warehouse.locks import FileLock

_BUSY_TIMEOUT_S = 60.0
# one for the index and a few for the runs of the moment
_MOST_ENGINES = 8


def home() -> Path:
    """Return Dagster's folder inside our home, created."""
    folder = load_settings().dagster_home
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class HomeEventLog(SqliteEventLogStorage):
    """SQLite event log that keeps its connections.

    The stock one makes a new SQLAlchemy engine and connection for each event: every statement is compiled again, and
    closing the last connection to a file makes SQLite write its log back and wait for the disk. A backfill of hundreds
    of partitions then spends most of its time there. ``_db_lock`` admits one thread at a time, so one connection a
    file is enough.
    """

    def __init__(self, base_dir: str) -> None:
        super().__init__(base_dir)
        self._engines: OrderedDict[str, Engine] = OrderedDict()

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock, self._engine(shard).connect() as con, con.begin():
            yield con

    def _engine(self, shard: str) -> Engine:
        engine = self._engines.pop(shard, None)
        if engine is None:
            engine = _kept(self.conn_string_for_shard(shard))
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
        self._engines[shard] = engine
        while len(self._engines) > _MOST_ENGINES:
            self._engines.popitem(last=False)[1].dispose()
        return engine

    def wipe(self) -> None:
        """Let go of the files of runs, then remove them."""
        self._let_go()
        super().wipe()

    def dispose(self) -> None:
        """Stop watching and close the connections."""
        super().dispose()
        self._let_go()

    def _let_go(self) -> None:
        with self._db_lock:
            while self._engines:
                self._engines.popitem()[1].dispose()


class _KeptConnections:
    """Gives a SQLite storage of one file a pool in place of a new engine for each statement."""

    _conn_string: str

    @cached_property
    def _engine(self) -> Engine:
        return _kept(self._conn_string)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engine.connect() as con, con.begin():
            yield con

    def dispose(self) -> None:
        self._engine.dispose()


class HomeRunStorage(_KeptConnections, SqliteRunStorage):
    """SQLite run storage that keeps its connections."""


class HomeScheduleStorage(_KeptConnections, SqliteScheduleStorage):
    """SQLite schedule storage that keeps its connections."""


def _kept(url: str) -> Engine:
    """Return an engine with a pool, patient with other processes.

    ``synchronous=NORMAL`` under WAL survives any crash of a process; a power cut can cost the last lines of what
    Dagster remembers, never the store, which has its own file and transactions.
    """
    engine = create_engine(
        url,
        poolclass=QueuePool,
        # connections wander between threads, one at a time
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    listens_for(engine, "connect")(_relax)
    return engine


def _relax(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


class HomeSqliteStorage(DagsterSqliteStorage):
    """SQLite storage that keeps its connections and is created whole or not at all."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        _create_whole(Path(base_dir))
        super().__init__(base_dir, inst_data)
        runs, schedules = self._run_storage, self._schedule_storage
        assert isinstance(runs, SqliteRunStorage)
        assert isinstance(schedules, SqliteScheduleStorage)
        self._run_storage = HomeRunStorage(runs._conn_string)
        self._schedule_storage = HomeScheduleStorage(schedules._conn_string)
        self._event_log_storage = HomeEventLog(str(Path(base_dir) / "history" / "runs"))


def _create_whole(base: Path) -> None:
    """Create Dagster's databases aside and move them into place.

    Dagster creates tables, then says which version they have: killed in between, it would take its own new tables
    for old ones for ever after. The caller holds a lock.
    """
    if (base / "history").exists():
        return
    for left in base.glob(".storage-*"):  # of one that was killed at this
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=base, prefix=".storage-") as aside:
        made = DagsterSqliteStorage(aside)
        made._run_storage.set_cursor_values(_no_events_yet())
        made.dispose()
        # "history" last: where it is, all is
        for name in ("schedules", "history"):
            if not (base / name).exists():
                (Path(aside) / name).rename(base / name)


def _no_events_yet() -> dict[str, str]:
    """Return where a new home's events begin: the daemon that repeats runs warns of a home that does not say so."""
    from dagster._daemon.auto_run_reexecution.event_log_consumer import DAGSTER_EVENT_TYPES, _create_cursor_key

    return {_create_cursor_key(kind): "0" for kind in DAGSTER_EVENT_TYPES}


class EnvStorage(DagsterSqliteStorage):
    """SQLite under our home; Postgres where MLBOT_PG_URL is set."""

    @classmethod
    def config_type(cls) -> Any:
        """Take no configuration: the environment decides."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> DagsterStorage:  # type: ignore[override]
        """Build the storage the environment asks for."""
        url = os.environ.get("MLBOT_PG_URL")
        if not url:
            # two processes that first open a new home would both create Dagster's tables, and one would fail
            with FileLock(home() / "storage").exclusive():
                return HomeSqliteStorage(str(home()), inst_data)
        from dagster_postgres.storage import DagsterPostgresStorage

        # a bare postgresql:// means psycopg 3 to today's SQLAlchemy, which dagster-postgres cannot use
        _, _, rest = url.partition("://")
        return DagsterPostgresStorage(f"postgresql+psycopg2://{rest}", inst_data=inst_data)


class HomeArtifactStorage(LocalArtifactStorage):
    """Artifacts under our home."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir=str(home()), inst_data=inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """Take no configuration: the home decides."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Build it under our home."""
        return cls(inst_data=inst_data)


class HomeComputeLogManager(LocalComputeLogManager):
    """Logs of runs under our home."""

    @classmethod
    def config_type(cls) -> Any:
        """Take no configuration: the home decides."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> ComputeLogManager:  # type: ignore[override]
        """Build it under our home."""
        return LocalComputeLogManager(base_dir=str(home() / "logs"), inst_data=inst_data)
