"""The Dagster UI as people meet it: a real server, a real Chromium, real clicks."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlbot_core.cli.views import view_address

sys.path.insert(0, str(Path(__file__).parent))

from ui import Eyes, Served, chromium, drawn, environment, eyes, free_port, serve, served, wait

__all__ = ("chromium", "eyes", "served")  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.browser]

GROUPS = ("raw", "features", "targets", "models", "backtests")


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


@pytest.mark.parametrize(
    ("view", "groups"),
    [
        ("research", ["backtests", "bandit", "features", "models", "targets"]),
        ("live", ["live", "models"]),
        ("audit", ["audit", "features", "live", "models", "raw", "targets"]),
    ],
)
def test_each_view_shows_its_groups(eyes: Eyes, view: str, groups: list[str]) -> None:
    page = eyes.open(view_address("", view))
    node = page.locator("foreignObject")
    for group in groups:
        node.get_by_text(group, exact=True).first.wait_for()
    for other in {*GROUPS, "bandit", "live", "audit"} - set(groups):
        assert node.get_by_text(other, exact=True).count() == 0, other


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


def test_a_sensor_is_turned_on_and_off_by_its_switch(eyes: Eyes, served: Served) -> None:
    name = "live_run_failed"

    def state() -> str:
        selector = {"repositoryLocationName": "mlbot", "repositoryName": "__repository__", "sensorName": name}
        query = (
            "query ($of: SensorSelector!) { sensorOrError(sensorSelector: $of) "
            "{ ... on Sensor { sensorState { status } } } }"
        )
        found: str = served.ask(query, of=selector)["sensorOrError"]["sensorState"]["status"]
        return found

    assert state() == "STOPPED", "what trades is off until somebody turns it on"
    page = eyes.open("/automation")
    page.get_by_text(name, exact=True).wait_for()
    row = page.locator("[data-index]").filter(has=page.get_by_text(name, exact=True))
    # beside the box that selects the row; it comes when the state is known
    switch = row.locator("label").nth(1)
    switch.click()
    wait(lambda: state() == "RUNNING", 30, state)
    switch.click()
    wait(lambda: state() == "STOPPED", 30, state)


def test_lineage_leads_from_a_report_back_to_what_was_pulled(eyes: Eyes) -> None:
    page = eyes.open("/assets/backtests/report?view=lineage&lineageScope=upstream&lineageDepth=6")
    left = {}
    for name in ("price", "core", "labels", "forecasts", "backtest", "report"):
        node = page.locator("foreignObject").get_by_text(name, exact=True).first
        node.wait_for()
        left[name] = node.bounding_box()["x"]
    order = ["price", "core", "forecasts", "backtest", "report"]
    assert sorted(order, key=left.__getitem__) == order
    assert left["price"] < left["labels"] < left["forecasts"]


def test_the_report_that_the_page_names_can_be_read(eyes: Eyes, served: Served) -> None:
    page = eyes.open("/assets/backtests/report")
    path = page.get_by_text(re.compile(r"/reports/.+\.html")).first
    path.wait_for()
    found = Path(str(path.inner_text()).strip())
    assert found.is_relative_to(served.path)
    page.goto(found.as_uri())
    page.get_by_text("SYNTHETIC", exact=False).first.wait_for()
    page.get_by_role("heading", level=1).wait_for()
    assert page.locator("svg, img, canvas").count() >= 3


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
