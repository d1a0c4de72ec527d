"""Servers of the web UI on homes of their own, and a browser that looks at them; shared by the tests of the UI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOW = "2025-07-01T00:10:00Z"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# generous: the machine may be busy with other things
PATIENCE_MS = 45_000


@dataclass
class Served:
    """A home whose UI is up."""

    path: Path
    url: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def mlbot(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "mlbot_core.cli.main", *words, "--json"],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=ROOT,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        data: dict[str, Any] = found["data"]
        return data

    def runs(self) -> dict[str, dict[str, Any]]:
        answer = self.ask("{ runsOrError { ... on Runs { results { runId status jobName parentRunId } } } }")
        return {run["runId"]: run for run in answer["runsOrError"]["results"]}

    def finished(self, known: Sequence[str], seconds: float) -> list[dict[str, Any]]:
        """Wait until there are new runs and all have ended; return the new ones."""
        ended = ("SUCCESS", "FAILURE", "CANCELED")

        def new() -> list[dict[str, Any]]:
            return [run for name, run in self.runs().items() if name not in known]

        wait(lambda: bool(new()) and all(run["status"] in ended for run in new()), seconds, lambda: str(new()))
        return new()

    def materialized(self, *key: str) -> set[str]:
        """Return the materialized partitions of an asset as Dagster's instance of this home knows them."""
        script = (
            "import sys, json, dagster as dg\n"
            "with dg.DagsterInstance.from_config(sys.argv[1]) as instance:\n"
            "    print(json.dumps(sorted(instance.get_materialized_partitions(dg.AssetKey(sys.argv[2:])))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(ROOT), *key],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout))

    def stored(self, asset: str, market: str) -> dict[str, int]:
        """Return the rows of each stored month of a market, from the warehouse itself."""
        from mlbot_core.clock import SystemClock
        from mlbot_core.warehouse import Warehouse

        with Warehouse(self.path / "warehouse.duckdb", SystemClock()).read() as con:
            rows = con.execute(
                "SELECT split_part(partition, '|', 2), max(rows) FROM partitions WHERE asset = ? "
                "AND split_part(partition, '|', 1) = ? GROUP BY ALL",
                [asset, market],
            ).fetchall()
        return dict(rows)


def wait(ready: Callable[[], bool], seconds: float, words: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not within {seconds} s: {words()[-3000:]}"
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def environment(folder: Path) -> dict[str, str]:
    config = folder / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
    return {
        **kept,
        "MLBOT_HOME": str(folder / "home"),
        "MLBOT_CONFIG_DIR": str(config),
        "MLBOT_SOURCE": "emulator",
        "MLBOT_CLOCK": f"fixed:{NOW}",
    }


def serve(folder: Path, env: dict[str, str], command: Sequence[str], port: int) -> Iterator[Served]:
    """Run a server process in its own session until it answers; in the end stop it by its own handle."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )
    served = Served(folder / "home", f"http://127.0.0.1:{port}", env, process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(served.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"))
        except OSError:
            return False

    try:
        wait(answers, 120, log.read_text)
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``mlbot up`` over half a year of 4h bars that were pulled, trained and backtested before it started."""
    folder = tmp_path_factory.mktemp("ui")
    env, port = environment(folder), free_port()
    months = {"first": "BTC-4h|2025-01-01", "last": "BTC-4h|2025-07-01"}
    model = {"first": "BTC-4h|lightgbm", "last": "BTC-4h|lightgbm"}
    plan = [
        {"job": "data", "title": "data", "source": "emulator", **months},
        {"job": "train", "title": "train", "source": "emulator", **model},
        {"job": "backtest", "title": "backtest", "source": "emulator", **model},
    ]
    # the launching process of the command line, given three commands at once
    done = subprocess.run(
        [sys.executable, "-m", "mlbot_dagster.launch"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    command = [sys.executable, "-m", "mlbot_core.cli.main", "up", "--port", str(port)]
    yield from serve(folder, env, command, port)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, or a skip that says what is missing (a failure where it is required)."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    missing = None if program else "no chromium on the PATH (Debian: apt-get install chromium)"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "the playwright package is not installed (make install)"
    if missing is not None:
        if os.environ.get("MLBOT_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Eyes:
    """A page, and the errors that its console showed."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)

    def open(self, path: str) -> Any:
        self.page.goto(self.url + path)
        return self.page


@pytest.fixture
def eyes(chromium: Any, served: Served) -> Iterator[Eyes]:
    page = chromium.new_page(viewport={"width": 1500, "height": 1600})
    page.set_default_timeout(PATIENCE_MS)
    seen = Eyes(page, served.url)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    yield seen
    page.close()
    assert seen.errors == []


def drawn(image: Any) -> tuple[int, int]:
    """Return the natural size of an image once it has arrived: an image that is refused has none."""
    image.wait_for()
    size = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    return (size[0], size[1])
