"""``python -m mlbot_core.observability.exporter``: serves the metrics to Prometheus.

=========================  ===================================================================
variable                   meaning
=========================  ===================================================================
``MLBOT_EXPORTER_HOST``    address to listen on, default 127.0.0.1
``MLBOT_EXPORTER_PORT``    port, default 9464; 0 takes a free one and prints it
=========================  ===================================================================

It needs no key, opens no account and writes nothing: whatever is missing (a fresh home has nothing at all) is shown by
``mlbot_exporter_source_present`` and ``mlbot_exporter_source_up``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from prometheus_client import CollectorRegistry, start_http_server

from mlbot_core import __version__
from mlbot_core.clock import Clock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import ConfigError, MlbotError, UsageError
from mlbot_core.observability.metrics import MetricSource, MlbotCollector
from mlbot_core.observability.metrics_ledger import LedgerMetrics
from mlbot_core.observability.metrics_machine import DagsterMetrics, EmulatorMetrics, SafetyMetrics
from mlbot_core.observability.metrics_models import RegistryMetrics
from mlbot_core.observability.metrics_store import StoreMetrics

HOST: Final = "127.0.0.1"
PORT: Final = 9464


def sources_of(settings: Settings, clock: Clock, environ: Mapping[str, str]) -> list[MetricSource]:
    """Return everything that is read."""
    return [
        LedgerMetrics(settings, environ),
        SafetyMetrics(settings),
        StoreMetrics(settings, clock),
        RegistryMetrics(settings, clock, environ),
        DagsterMetrics(settings, environ),
        EmulatorMetrics(settings),
    ]


class Exporter:
    """Reads and serves while it is entered.

    Parameters
    ----------
    settings, clock, environ
        As everywhere.
    host, port
        Where to listen; port 0 takes a free one.
    """

    def __init__(
        self, settings: Settings, clock: Clock, environ: Mapping[str, str], host: str = HOST, port: int = PORT
    ) -> None:
        build = {
            "version": __version__,
            "venue": settings.execution.venue,
            "source": settings.intervals.source,
            "symbol": settings.execution.contract,
        }
        self.collector = MlbotCollector(sources_of(settings, clock, environ), clock, build)
        self._registry = CollectorRegistry()
        self._registry.register(self.collector)
        self._address = (host, port)
        self.url = ""

    def __enter__(self) -> Self:
        host, port = self._address
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise UsageError(
                f"the exporter cannot listen on {host}:{port} ({error.strerror}); set MLBOT_EXPORTER_PORT to "
                "another port"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        self.collector.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)
        self.collector.stop()


def address_of(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port that the environment asks for.

    Raises
    ------
    ConfigError
        If the port is not one.
    """
    text = environ.get("MLBOT_EXPORTER_PORT") or str(PORT)
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ConfigError(f"MLBOT_EXPORTER_PORT={text!r} is not a port; use a number from 0 to 65535")
    return environ.get("MLBOT_EXPORTER_HOST") or HOST, int(text)


def main() -> int:
    """Serve until told to stop; return the exit status."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopping.set())
    try:
        host, port = address_of(os.environ)
        with Exporter(load_settings(), clock_from_env(), os.environ, host, port) as exporter:
            print(f"metrics on {exporter.url}", flush=True)  # noqa: T201 - the line a person or a script waits for
            stopping.wait()
    except MlbotError as error:
        print(f"mlbot exporter: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
