"""The Dagster UI as people meet it: a real server, a real Chromium, real clicks."""

from __future__ import annotations

import json
import os
import re
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

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ROOT = Path(__file__).resolve().parents[2]
NOW = "2025-07-01T00:10:00Z"
GROUPS = ("raw", "features", "targets", "models", "backtests")
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


# ---------------------------------------------------------------------------------------------- servers and browser


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


# ------------------------------------------------------------------------------------------------------------ looks


def test_graph_shows_every_group_in_the_order_of_the_flow(eyes: Eyes) -> None:
    page = eyes.open("/asset-groups")
    left = {}
    for group in GROUPS:
        node = page.locator("foreignObject").get_by_text(group, exact=True)
        node.wait_for()
        left[group] = node.bounding_box()["x"]
    assert left["raw"] < left["features"] < left["models"] < left["backtests"]
    assert left["raw"] < left["targets"] < left["models"]
    assert page.get_by_text("Join the Dagster community").count() == 0, "no dialog over the first page"


def test_asset_page_shows_plot_numbers_and_checks(eyes: Eyes) -> None:
    page = eyes.open("/assets/backtests/backtest")
    page.get_by_text("The out-of-fold forecasts traded with fees, slippage and funding").wait_for()
    # at a glance: without a click
    width, height = drawn(page.locator("td img[src^='data:image/svg+xml']"))
    assert (width, height) == (400, 90)
    page.get_by_text("growth of 1, unit exposure").wait_for()
    page.get_by_text("emulator (a SYNTHETIC market)").wait_for()
    for name in ("sharpe", "max_drawdown", "hit_rate", "trades", "period", "verdict"):
        page.get_by_role("cell", name=name, exact=True).wait_for()
    page.get_by_text("[Show Markdown]").first.click()
    width, height = drawn(page.get_by_role("dialog").locator("img[src^='data:image/png']"))
    assert width >= 600
    assert height >= 400
    page.get_by_role("dialog").get_by_role("button", name="Close").click()

    page = eyes.open("/assets/backtests/backtest?view=checks")
    page.get_by_text("An independent bookkeeping (vectorbt) of the same fills has the same equity.").wait_for()
    page.get_by_text("vectorbt_relative_difference").wait_for()
    page.get_by_text("criteria", exact=True).first.wait_for()
    page.get_by_text("blocking", exact=True).wait_for()


def test_raw_asset_tells_its_columns_and_partitions(eyes: Eyes) -> None:
    page = eyes.open("/assets/raw/price")
    for name in ("observed_at", "known_at", "capture", "volume_coin"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("from when a decision may use it, UTC ms").wait_for()
    assert drawn(page.locator("td img[src^='data:image/svg+xml']")) == (400, 90)

    page = eyes.open("/assets/raw/price?view=partitions")
    page.get_by_text(re.compile(r"Materialized \([1-9]")).wait_for()
    page = eyes.open("/assets/raw/price?view=partitions&partition=BTC-4h%7C2025-02-01")
    page.get_by_text("BTC-4h|2025-02-01").first.wait_for()
    # its own rows, not those of the whole run: 28 days of 4h bars
    row = page.get_by_role("row").filter(has_text="dagster/row_count")
    row.get_by_text("168", exact=True).wait_for()


def test_run_of_the_command_line_is_under_its_job_and_can_be_repeated(eyes: Eyes, served: Served) -> None:
    known = served.runs()
    train = next(run for run in known.values() if run["jobName"] == "train")
    page = eyes.open("/locations/mlbot/jobs/train/runs")
    page.get_by_text(train["runId"][:8]).first.wait_for()
    page = eyes.open(f"/runs/{train['runId']}")
    page.get_by_text("Success", exact=True).first.wait_for()
    page.get_by_role("button", name="Re-execute all").click()
    (again,) = served.finished(list(known), 90)
    assert (again["status"], again["jobName"], again["parentRunId"]) == ("SUCCESS", "train", train["runId"])


# ----------------------------------------------------------------------------------------------------------- clicks


def launch(page: Any, markets: Sequence[str], months: str) -> None:
    """Choose partitions in the dialog of an asset's page and launch."""
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    by_month = dialog.get_by_placeholder("ex: 2020")
    by_month.wait_for()  # the dialog is rebuilt when it learns which dimension is time
    dialog.get_by_text("Select a partition").click()
    for market in markets:
        page.get_by_title(market, exact=True).last.click()
    page.keyboard.press("Escape")
    by_month.fill(months)
    by_month.press("Enter")
    button = dialog.get_by_role("button", name=re.compile("Launch"))
    button.click()
    dialog.wait_for(state="hidden")


def test_one_partition_is_materialized_by_clicking(eyes: Eyes, served: Served) -> None:
    known = list(served.runs())
    page = eyes.open("/assets/raw/price")
    launch(page, ["BTC-2h"], "2025-03-01")
    (run,) = served.finished(known, 60)
    assert run["status"] == "SUCCESS"
    assert "BTC-2h|2025-03-01" in served.materialized("raw", "price")
    assert served.stored("price", "BTC-2h") == {"2025-03-01": 31 * 12}
    page.get_by_text("BTC-2h|2025-03-01").first.wait_for()


def test_range_of_partitions_is_backfilled_through_the_daemon(eyes: Eyes, served: Served) -> None:
    known = list(served.runs())
    page = eyes.open("/assets/raw/liquidations")
    launch(page, ["BTC-1h", "BTC-2h"], "[2025-03-01...2025-05-01]")
    wanted = {f"{market}|2025-0{month}-01" for market in ("BTC-1h", "BTC-2h") for month in (3, 4, 5)}

    def status() -> str:
        answer = served.ask("{ partitionBackfillsOrError { ... on PartitionBackfills { results { status } } } }")
        return ",".join(item["status"] for item in answer["partitionBackfillsOrError"]["results"])

    # the daemon looks every 30 s
    wait(lambda: status() == "COMPLETED_SUCCESS", 150, lambda: status() + served.log.read_text())
    runs = served.finished(known, 5)
    assert [run["status"] for run in runs] == ["SUCCESS", "SUCCESS"], "one run a market, not one a month"
    assert wanted <= served.materialized("raw", "liquidations")
    assert set(served.stored("liquidations", "BTC-1h")) == {"2025-03-01", "2025-04-01", "2025-05-01"}
    assert served.stored("liquidations", "BTC-2h")["2025-04-01"] == 30 * 12


def test_nothing_worrying_was_said_by_the_server(served: Served) -> None:
    text = served.log.read_text()
    assert re.findall(r".*(?:WARNING|Warning|ERROR|Traceback).*", text) == []


# ------------------------------------------------------------------------------------------------------- dagster dev


def test_dagster_dev_works_on_an_empty_home_and_shares_it_with_the_command_line(tmp_path: Path) -> None:
    """``dagster dev`` in the checkout, DAGSTER_HOME unset, nothing backfilled, no emulator running."""
    env, port = environment(tmp_path), free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-p", str(port), "-h", "127.0.0.1"]
    launch_run = """
        mutation ($params: ExecutionParams!) {
          launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
        }
    """
    selector = {
        "repositoryLocationName": "mlbot",
        "repositoryName": "__repository__",
        "pipelineName": "ingest",
    }
    params = {
        "selector": selector,
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "BTC-4h|2025-02-01"}]},
    }
    for dev in serve(tmp_path, env, command, port):
        answer = dev.ask(launch_run, params=params)
        assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        (run,) = dev.finished([], 90)
        assert run["status"] == "SUCCESS", dev.log.read_text()[-3000:]
        assert dev.stored("price", "BTC-4h") == {"2025-02-01": 28 * 6}

        made = dev.mlbot("backfill", "--interval", "4h", "--from", "2025-02-01", "--to", "2025-03-01")
        runs = dev.runs()
        assert len(runs) == 2, "both show the same runs"
        assert runs[made["runs"][0]["run_id"]]["status"] == "SUCCESS"
    # what dagster dev keeps is in our home, and stays
    assert dev.materialized("raw", "price") == {"BTC-4h|2025-02-01"}
    assert (tmp_path / "home" / "dagster" / "history" / "runs.db").exists()
    assert len(dev.materialized("features", "core")) == 1
