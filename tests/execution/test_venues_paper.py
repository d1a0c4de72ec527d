"""The paper venue as processes: an emulator plays Bybit, the paper exchange is killed, Bybit goes silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlbot_core.clock import SystemClock
from mlbot_core.config import load_settings
from mlbot_core.execution.broker import Accepted, DefiniteReject, Next, Venue, VenueRefusedError
from mlbot_core.execution.types import OrderRequest, OrderType, Side, TimeInForce
from mlbot_core.execution.venues import OpenedVenue, open_broker, paper_command, paper_folder

# each starts processes of its own
pytestmark = pytest.mark.slow


def spawn(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return process, json.loads(line)["url"]


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.communicate()


def wait_for(what, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


class Paper:
    """A paper exchange over a Bybit that is played by an emulator, each a process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        start = (datetime.now(UTC) - timedelta(days=3)).date().isoformat()
        bybit, self.bybit_url = spawn([sys.executable, "-m", "mlbot_core.emulator", "--start", start])
        self.bybit = bybit
        self.stack = stack
        stack.callback(end, bybit)
        # the first answer compiles; a real Bybit has answered before
        for path in ("kline", "mark-price-kline", "tickers", "orderbook"):
            params = {"category": "linear", "symbol": "BTCUSDT", "interval": "1"}
            httpx.get(f"{self.bybit_url}/v5/market/{path}", params=params, timeout=60).raise_for_status()
        base = load_settings({"MLBOT_HOME": str(folder), "MLBOT_BYBIT_URL": self.bybit_url})
        self.settings = base.model_copy(
            update={"execution": base.execution.model_copy(update={"venue": "paper"}), "config_dir": folder}
        )
        self.process, self.url = self.start()

    def start(self) -> tuple[subprocess.Popen[str], str]:
        process, url = spawn([*paper_command(self.settings), "--poll", "0.2", "--stale", "1.5", "--timeout", "0.5"])
        self.process, self.url = process, url
        self.stack.callback(end, process)
        return process, url

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def open(self) -> OpenedVenue:
        opened = open_broker(self.settings, SystemClock(), {}, timeout_s=(2.0, 5.0))
        self.stack.callback(opened.close)
        return opened

    def state(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/_emulator/state").json()

    def accounts(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/_emulator/exchange/truth").json()["accounts"]


@pytest.fixture
def paper(tmp_path) -> Iterator[Paper]:
    with ExitStack() as stack:
        yield Paper(tmp_path, stack)


def order(link: str, side: Side = Side.BUY, qty: str = "0.010", price: Decimal | None = None, **more) -> OrderRequest:
    kind = OrderType.MARKET if price is None else OrderType.LIMIT
    tif = TimeInForce.IOC if price is None else TimeInForce.GTC
    return OrderRequest(link, "BTCUSDT", side, kind, Decimal(qty), price, tif, **more)


def always() -> bool:
    return True


def test_killed_and_started_again_it_goes_on_exactly_there_while_bybit_is_silent_nothing_trades(paper):
    opened = paper.open()
    broker = opened.broker
    assert (opened.venue, opened.account.split(":")[0]) == (Venue.PAPER, "paper")
    assert broker.check_clock().worst_ms < 500
    last = broker.ticker("BTCUSDT").last
    stop = (last * Decimal("0.9")).quantize(Decimal(1))
    assert isinstance(broker.place(order("entry", stop_loss=stop), may_send=always), Accepted)
    far = (last * Decimal("0.995")).quantize(Decimal(1))
    assert isinstance(broker.place(order("resting", price=far), may_send=always), Accepted)
    held = broker.position("BTCUSDT")
    assert (held.size, held.stop_loss) == (Decimal("0.010"), stop)
    fill = broker.executions_since("BTCUSDT", SystemClock().now_ms() - 60_000)[0]
    entry = broker.order("BTCUSDT", "entry")
    # the price it got was observed after it had arrived: the fill is not older than the order
    assert entry is not None
    assert fill.exec_ms >= entry.created_ms

    paper.bybit.send_signal(signal.SIGSTOP)
    wait_for(lambda: paper.state()["paused"])
    refused = broker.place(order("while-silent"), may_send=always)
    assert isinstance(refused, DefiniteReject), refused
    assert (refused.then, refused.code) == (Next.PAUSE, 110066)
    with pytest.raises(VenueRefusedError, match="No live price") as caught:
        broker.ticker("BTCUSDT")
    assert caught.value.then is Next.PAUSE
    before = paper.accounts()

    paper.kill()
    again, url = paper.start()  # with Bybit still silent
    assert url == paper.url == opened.url, "clients find it where it was"
    assert paper.accounts() == before
    assert paper.state()["paused"]
    assert isinstance(broker.place(order("still-silent"), may_send=always), DefiniteReject)
    assert broker.position("BTCUSDT").size == Decimal("0.010")
    # a way out of what rests needs no price
    assert isinstance(broker.cancel("BTCUSDT", "resting"), Accepted)

    paper.bybit.send_signal(signal.SIGCONT)
    wait_for(lambda: not paper.state()["paused"])
    assert isinstance(broker.place(order("exit", Side.SELL, reduce_only=True), may_send=always), Accepted)
    assert wait_for(lambda: broker.position("BTCUSDT").flat)
    with paper.open() as same:
        assert same.account == opened.account
    ids = [row["orderId"] for account in paper.accounts().values() for row in account["orders"]]
    assert len(ids) == len(set(ids)) == 4  # entry, its stop, resting, exit
    again.send_signal(signal.SIGTERM)
    assert again.wait(10) == 0


def test_no_answered_order_is_lost_and_none_is_made_up_by_kills_at_any_moment(paper):
    broker = paper.open().broker
    answered: list[str] = []
    sent: list[str] = []
    stop = threading.Event()

    def trade() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            sent.append(f"n{number}")
            side = Side.BUY if number % 2 else Side.SELL
            if isinstance(broker.place(order(f"n{number}", side, "0.001"), may_send=always), Accepted):
                answered.append(f"n{number}")

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        for delay in (0.31, 0.17, 0.43):
            count = len(answered)
            wait_for(lambda count=count: len(answered) > count + 2)
            time.sleep(delay)
            paper.kill()
            paper.start()
    finally:
        stop.set()
        trader.join(30)
    (account,) = paper.accounts().values()
    links = [row["orderLinkId"] for row in account["orders"]]
    assert set(answered) <= set(links) <= set(sent)
    assert len(links) == len(set(links))
    # wallet and position are what the executions make them
    log = sum((Decimal(row["change"]) for row in account["transaction_log"]), Decimal(0))
    assert Decimal(account["wallet"]["USDT"]) == log
    size = sum(
        (Decimal(row["execQty"]) * (1 if row["side"] == "Buy" else -1) for row in account["executions"]), Decimal(0)
    )
    position = account["positions"]["BTCUSDT"]
    assert size == Decimal(position["size"]) * (-1 if position["side"] == "Sell" else 1)


def test_one_process_serves_a_folder_and_a_new_account_needs_prices(paper, tmp_path):
    second = subprocess.run(paper_command(paper.settings), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "serves" in second.stderr
    command = [sys.executable, "-m", "mlbot_core.emulator.paper", "--folder", str(tmp_path / "other")]
    nowhere = subprocess.run(
        [*command, "--bybit", "http://127.0.0.1:1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert nowhere.returncode == 1
    assert "no usable answer" in nowhere.stderr
    wrong = subprocess.run([*command, "--balance", "much"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert (paper_folder(paper.settings) / "running.json").exists()
