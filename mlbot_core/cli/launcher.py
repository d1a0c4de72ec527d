"""Starts the launching process and draws its progress.

The core does not import Dagster; the command line reaches it through a process of its own, which also keeps
``mlbot --help`` quick and a crash of a run away from the terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mlbot_core.cli.selection import Run
from mlbot_core.clock import clock_from_env
from mlbot_core.config import Settings
from mlbot_core.errors import MlbotError
from mlbot_core.timeframe import Market


class LaunchError(MlbotError):
    """The launching process itself ended without a result."""


@dataclass
class RunResult:
    """How one run ended.

    Parameters
    ----------
    failed_checks
        Checks that hold back what rests on them, as ``asset: check: finding``.
    advisories
        The same of checks that hold back nothing.
    """

    title: str
    run_id: str = ""
    success: bool = False
    seconds: float = 0.0
    step_seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)
    advisories: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(self.__dict__)


def launch(runs: Sequence[Run], settings: Settings, console: Console, *, steps: Mapping[str, int]) -> list[RunResult]:
    """Run the plan and return how each run ended, drawing progress on ``console``.

    The runs of one market follow one another in one process; markets are shared out over as many processes as there
    are cores (``MLBOT_THREADS``), which uses them better than threads inside one fit.

    Parameters
    ----------
    steps
        How many steps each job has, for the bars.

    Raises
    ------
    LaunchError
        If a process died; its last words are in the log that the message names.
    """
    results = [RunResult(run.title) for run in runs]
    shares = _share_out(runs, settings.threads)
    log_dir = settings.home / "logs"
    log_dir.mkdir(parents=True, exist_ok=True)
    with _ends_when_told() as told, _emulator(runs, settings) as url, _bars(console) as bars:
        tasks = [bars.add_task(run.title, total=len(run.assets) or steps.get(run.job), step="waiting") for run in runs]
        environment = child_environment(settings, max(1, settings.threads // len(shares)))
        if url:
            environment["MLBOT_EMULATOR_URL"] = url
        workers: list[_Worker] = []

        def show(event: Mapping[str, Any]) -> None:
            told.leave_if_told()
            _show(event, results, bars, tasks)

        try:
            with told.held():
                for share in shares:
                    workers.append(_Worker([runs[i] for i in share], share, environment, log_dir))
            _follow(workers, show)
            told.leave_if_told()
        finally:
            for worker in workers:
                worker.stop()
    for worker in workers:
        worker.require_finished()
    return results


class _Told:
    """Whether the process was asked to end: it leaves by an exception, so that no worker stays behind.

    Python loses an exception that a handler raises inside a finaliser; whoever waits for something long therefore asks
    again whether it was told.
    """

    def __init__(self) -> None:
        self._number = 0
        self._held = False

    def hear(self, number: int, _frame: object) -> None:
        """Take the signal; the handler of it."""
        self._number = number
        if not self._held:
            self.leave_if_told()

    def leave_if_told(self) -> None:
        """Leave with the status of the signal if there was one."""
        if self._number:
            sys.exit(128 + self._number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Leave at the end of the block and not within it: what is half made there would be forgotten."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.leave_if_told()


@contextlib.contextmanager
def _ends_when_told() -> Iterator[_Told]:
    """Hear when the process is asked to end or its terminal closes, for the length of a ``with`` block."""
    told = _Told()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, told.hear)
    try:
        yield told
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _share_out(runs: Sequence[Run], processes: int) -> list[list[int]]:
    """Return positions of runs for each process: a market stays whole, the heaviest markets go first."""
    groups: dict[str, list[int]] = {}
    for at, run in enumerate(runs):
        groups.setdefault(run.first.partition("|")[0], []).append(at)
    count = max(1, min(processes, len(groups)))
    loads = [0.0] * count
    shares: list[list[int]] = [[] for _ in range(count)]
    for market in sorted(groups, key=lambda name: -_weight(name)):
        lightest = loads.index(min(loads))
        loads[lightest] += _weight(market)
        shares[lightest] += groups[market]
    return shares


def _weight(market: str) -> float:
    return Market.parse(market).timeframe.bars_per_day


class _Worker:
    """One launching process: takes its runs on standard input, says an event a line."""

    def __init__(
        self, runs: Sequence[Run], positions: Sequence[int], environment: Mapping[str, str], log_dir: Path
    ) -> None:
        self.positions = list(positions)
        self.ended = 0
        handle, name = tempfile.mkstemp(dir=log_dir, prefix="launch-", suffix=".log")
        self.log = Path(name)
        with os.fdopen(handle, "wb") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlbot_dagster.launch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=dict(environment),
                text=True,
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: require_finished says so
            json.dump([run.as_json() for run in runs], self.process.stdin)
            self.process.stdin.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield events until the process closes its output; run numbers are those of the whole plan."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            event["run"] = self.positions[int(event["run"])]
            self.ended += event["event"] == "end"
            yield event
        self.process.wait()

    def stop(self) -> None:
        """End the process if it still runs, and close the pipe."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def require_finished(self) -> None:
        """Remove the log of a process that did its work; point to it otherwise."""
        if self.ended < len(self.positions):
            raise LaunchError(
                f"a launching process ended early (status {self.process.returncode}); its log is {self.log}"
            )
        if self.process.returncode == 0:
            self.log.unlink()


def _follow(workers: Sequence[_Worker], show: Callable[[dict[str, Any]], None]) -> None:
    """Show the events of all processes as they come, from this thread only."""
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read(worker: _Worker) -> None:
        try:
            for event in worker.events():
                inbox.put(event)
        finally:
            inbox.put(None)

    readers = [threading.Thread(target=read, args=(worker,), daemon=True) for worker in workers]
    for reader in readers:
        reader.start()
    open_ends = len(readers)
    while open_ends:
        event = inbox.get()
        if event is None:
            open_ends -= 1
        else:
            show(event)
    for reader in readers:
        reader.join()


@contextlib.contextmanager
def _emulator(runs: Sequence[Run], settings: Settings) -> Iterator[str | None]:
    """Run one emulator for all processes, where the plan needs one and none is given."""
    needed = any((run.source or settings.intervals.source) == "emulator" for run in runs)
    if not needed or settings.emulator_url:
        yield settings.emulator_url
        return
    from mlbot_core.emulator.launch import serve

    with serve(settings.intervals.emulator, clock_from_env()) as url:
        yield url


def child_environment(settings: Settings, threads: int | None = None) -> dict[str, str]:
    """Return the environment of child processes: the same home, and thread counts said explicitly."""
    environment = dict(os.environ)
    environment["MLBOT_HOME"] = str(settings.home)
    environment.setdefault("MLBOT_CONFIG_DIR", str(settings.config_dir))
    environment["MLBOT_THREADS"] = str(threads or settings.threads)
    environment.setdefault("OMP_NUM_THREADS", environment["MLBOT_THREADS"])
    # spinning OpenMP threads were measured to make a fit ten times slower when another process wants the cores
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _show(event: Mapping[str, Any], results: list[RunResult], bars: Progress, tasks: Sequence[Any]) -> None:
    """Draw one event; an ``end`` fills the run's result."""
    number, kind = int(event["run"]), event["event"]
    task, result = tasks[number], results[number]
    if kind == "start":
        bars.reset(task)
    elif kind == "step_start":
        bars.update(task, step=readable(str(event["step"])))
    elif kind == "step_success":
        bars.advance(task)
        if not bars.console.is_terminal:
            bars.console.print(f"{result.title}: {readable(str(event['step']))} done")
    elif kind == "log" and event.get("text"):
        bars.update(task, step=str(event["text"]))
    elif kind == "end":
        for name in ("run_id", "success", "seconds", "step_seconds", "errors", "failed_checks", "advisories"):
            setattr(result, name, event[name])
        bars.update(task, step="done" if result.success else "failed")


def readable(step: str) -> str:
    """Return an asset's step name for people: ``raw__price`` is ``raw/price``."""
    return step.replace("__", "/")
