"""Dagster's code server, which may keep a warm process to fork runs from.

A run of Dagster begins as a cold Python that imports Dagster and the definitions: two to three seconds between the
decision time and the first line of ours. With ``--warm`` one process imports everything once and runs are forked from
it. For that the name ``multiprocessing`` in Dagster's server module is replaced: a private place, so where it is not
as expected the server says so and starts runs cold, as without the option.

The server looks twice a second for runs whose process died. Where the database does not answer at such a moment,
Dagster's thread would end and no later death be seen; here it looks again.

    python -m mlbot_dagster.code_server [--warm] --port PORT
"""

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

PRELOADED = "mlbot_dagster.warm"
_log = logging.getLogger("mlbot.code_server")


class ForkingInsteadOfSpawning:
    """``multiprocessing`` in which "spawn" means forking from a warm server; all else is as it was."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED])

    def get_context(self, method: str | None = None) -> Any:
        """Return the warm context for "spawn"."""
        return self._context if method == "spawn" else multiprocessing.get_context(method)

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def warm_up() -> bool:
    """Make runs fork from a warm process; return whether Dagster is built as that needs."""
    from dagster._grpc import server

    if getattr(server, "multiprocessing", None) is not multiprocessing:
        _log.warning("this release of Dagster starts runs in another way than expected; they start cold")
        return False
    server.multiprocessing = ForkingInsteadOfSpawning()  # type: ignore[assignment]
    _start_now()
    return True


def _start_now() -> None:
    """Start the warm process before the first run needs it."""
    from multiprocessing import forkserver

    forkserver.ensure_running()


def look_again() -> bool:
    """Make the look for dead runs survive a database that does not answer; return whether Dagster is built so.

    Twice is once: ``mlbot_dagster.definitions`` asks too, for servers that Dagster starts itself (``mlbot up``, a pod).
    """
    from dagster._grpc import server

    look = getattr(server.DagsterApiServer, "_check_for_orphaned_runs", None)
    if look is None:
        _log.warning("this release of Dagster looks for dead runs in another way than expected; it is left as it is")
        return False
    if look.__name__ == "patient":
        return True

    def patient(self: Any) -> None:
        try:
            look(self)
        except Exception as error:  # noqa: BLE001 - whatever a storage raises: the next look comes in half a second
            _log.warning("could not look for dead runs, will again: %s", type(error).__name__)

    server.DagsterApiServer._check_for_orphaned_runs = patient  # type: ignore[method-assign]
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until ended by a signal."""
    parser = argparse.ArgumentParser(prog="python -m mlbot_dagster.code_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--warm", action="store_true", help="fork runs from a process that has imported everything")
    parser.add_argument("--location-name", default="mlbot", help="as the UI shows it")
    chosen = parser.parse_args(arguments)
    if chosen.warm:
        warm_up()
    look_again()
    from dagster._cli import create_dagster_cli

    command = ["api", "grpc", "--host", "127.0.0.1", "--port", str(chosen.port), "-m", "mlbot_dagster.definitions"]
    command += ["--location-name", chosen.location_name, "--use-python-environment-entry-point"]
    create_dagster_cli()(command, prog_name="dagster")


if __name__ == "__main__":
    main(sys.argv[1:])
