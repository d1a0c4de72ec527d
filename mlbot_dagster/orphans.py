"""Runs of the command line whose process was killed.

Such a run would count as running for ever: it fills a place in the queue of ``mlbot up`` (``dagster.yaml`` limits
them), and a few of them stop every later run from the UI. So each launching process holds a lock that the kernel drops
when it dies, its runs carry the name of that lock, and whoever finds the lock free ends them.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from mlbot_core.config import load_settings

TAG = "mlbot/launcher"
_EVERY_S = 30


@contextmanager
def alive() -> Iterator[str]:
    """Show for the length of a ``with`` block that this process lives; yields the value of :data:`TAG` for its runs."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    fd = _take(folder / name)
    try:
        yield name
    finally:
        (folder / name).unlink(missing_ok=True)
        os.close(fd)


def _take(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # a sweeper may have found the file between the two calls, free, and removed it
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


def sweep(instance: dg.DagsterInstance) -> list[str]:
    """Report the unfinished runs of dead processes as failed; return their ids."""
    statuses = [dg.DagsterRunStatus.NOT_STARTED, *IN_PROGRESS_RUN_STATUSES]
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        name = run.tags.get(TAG)
        # a run that repeats another has inherited its tags, but belongs to the servers
        if name is None or run.parent_run_id is not None or _lives(_folder() / name):
            continue
        # it may have finished between the two looks: what a process says of its runs, it says before it lets go
        current = instance.get_run_by_id(run.run_id)
        if current is None or current.status not in statuses:
            continue
        instance.report_run_failed(
            current,
            "The process that executed this run is gone (killed?). Nothing partial was stored; launch it again.",
        )
        ended.append(run.run_id)
    for lock in _folder().glob("*"):
        _remove_if_free(lock)
    return ended


def build() -> list[dg.SensorDefinition]:
    """Return the sensor that sweeps while ``mlbot up`` or ``dagster dev`` runs."""

    @dg.sensor(
        name="end_orphaned_runs",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs of killed mlbot commands as failed, so that they do not hold up the queue.",
    )
    def end_orphaned_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = sweep(context.instance)
        return dg.SkipReason(f"ended {', '.join(ended)}" if ended else "no orphaned runs")

    return [end_orphaned_runs]


def _lives(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _remove_if_free(lock: Path) -> None:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _folder() -> Path:
    return load_settings().dagster_home / "launchers"
