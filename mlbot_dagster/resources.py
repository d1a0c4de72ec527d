"""Resources: the store behind its lock, and the chosen source of market data."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field, PrivateAttr

from mlbot_core.clock import Clock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.settings import SOURCE_NAMES
from mlbot_core.errors import UsageError
from mlbot_core.sources import Source, open_source
from mlbot_core.warehouse import Warehouse
from mlbot_dagster.priority import give_way_unless_live


class WarehouseResource(DuckDBResource):
    """DuckDB behind a lock between processes.

    The stock resource opens the file for as long as an asset runs and retries for minutes when another process has
    it. Here every visit is short: queue, open, copy in or out, close.
    """

    database: str = Field(description="The DuckDB file.")
    timeout_s: float = Field(default=60.0, description="Longest wait for other processes, in seconds.")
    _store: Warehouse | None = PrivateAttr(default=None)

    def open(self, clock: Clock) -> Warehouse:
        """Return the store; opening it connects nothing yet."""
        if self._store is None:
            self._store = Warehouse(Path(self.database), clock, timeout_s=self.timeout_s)
        return self._store

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection that may read; the lock is held until it is closed."""
        with self.open(clock_from_env()).read() as con:
            yield con


class MarketData(dg.ConfigurableResource):
    """Where market data comes from in this run, and the clock everything is stamped by."""

    source: str | None = Field(
        default=None,
        description=f"One of {', '.join(SOURCE_NAMES)}; empty: as in config/intervals.yaml (or MLBOT_SOURCE).",
    )

    _source: Source | None = PrivateAttr(default=None)
    _opened: ExitStack = PrivateAttr(default_factory=ExitStack)

    @cached_property
    def settings(self) -> Settings:
        """The configuration, read once a run."""
        return load_settings()

    @cached_property
    def clock(self) -> Clock:
        """The clock of this process."""
        return clock_from_env()

    @property
    def name(self) -> str:
        """The chosen source.

        Raises
        ------
        UsageError
            If the name is unknown.
        """
        name = self.source or self.settings.intervals.source
        if name not in SOURCE_NAMES:
            raise UsageError(f"source {name!r} is unknown; choose one of {', '.join(SOURCE_NAMES)}")
        return name

    @property
    def identity(self) -> str:
        """Which market it serves, where a source has several: an emulated Bybit is not the real one."""
        if self.name == "bybit":
            return self.settings.bybit_url or ""
        return self.settings.intervals.emulator.identity if self.name == "emulator" else ""

    @property
    def settle_delay_ms(self) -> int:
        """From a bar's close to its decision, ms."""
        return self.settings.intervals.settle_delay_ms(self.name)

    def asked_now(self, run_id: str) -> dict[str, Any]:
        """Return what every request for stored data has in common: from where, how settled, known by when, for whom."""
        return {
            "source": self.name,
            "settle_delay_ms": self.settle_delay_ms,
            "known_by_ms": self.clock.now_ms(),
            "run_id": run_id,
        }

    def open(self) -> Source:
        """Return the source, opened once a run: what it has to ask of itself (a plan, what is served) is asked once.

        For the emulator it is a server of this process, where none is running already.
        """
        if self._source is None:
            with ExitStack() as opening:
                url = opening.enter_context(self._server())
                self._source = opening.enter_context(open_source(self.name, self.settings, self.clock, base_url=url))
                self._opened = opening.pop_all()
        return self._source

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Let live bars go first."""
        give_way_unless_live(context.run)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 - as Dagster calls it
        """Close the source at the end of the run, however it ended."""
        self._source = None
        self._opened.close()

    @contextmanager
    def _server(self) -> Iterator[str | None]:
        if self.name != "emulator" or self.settings.emulator_url:
            yield self.settings.emulator_url if self.name == "emulator" else None
            return
        with start_emulator(self.settings, self.clock) as url:
            yield url


def start_emulator(settings: Settings, clock: Clock) -> AbstractContextManager[str]:
    """Run the configured emulator on a free loopback port for the length of a ``with`` block; yields its URL."""
    # its server stack is of no use to runs that read recorded or real data
    from mlbot_core.emulator.launch import serve

    return serve(settings.intervals.emulator, clock)
