"""An independent witness: ccxt, which nobody here wrote, trades on the emulator and agrees with its books.

ccxt pins its dependencies, so it lives in an environment of its own in the git-ignored cache of the checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import DEFAULT_TRADE_KEY, DEFAULT_TRADE_SECRET, ExchangeOptions

pytestmark = pytest.mark.slow

ORACLE = Path(__file__).resolve().parent / "ccxt_oracle"
START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-08-01T10:37:21Z")


@pytest.fixture(scope="module")
def ccxt_python(oracle_environment: Callable[[str, Path], Path]) -> Path:
    """The interpreter of ccxt's environment."""
    return oracle_environment("ccxt", ORACLE / "requirements.txt")


@pytest.fixture(scope="module")
def told(ccxt_python: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ccxt understood, and the emulator's truth afterwards."""
    trading = ExchangeOptions(auth_time="wall", limits="off")
    options = BybitOptions(ip_calls=100_000)
    with EmulatorServer(seed=7, start_ms=START, clock=FixedClock(NOW), bybit=options, trading=trading) as server:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(
            [str(ccxt_python), str(ORACLE / "drive.py"), server.url, DEFAULT_TRADE_KEY, DEFAULT_TRADE_SECRET],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout), server.exchange.truth()


def test_markets_and_prices(told) -> None:
    seen, _ = told
    assert seen["markets"] == ["BTC/USDT:USDT", "ETH/USDT:USDT"]
    assert seen["market"] == {
        "swap": True,
        "linear": True,
        "settle": "USDT",
        "amount_step": 0.001,
        "price_step": 0.1,
        "min_amount": 0.001,
        "max_leverage": 100,
        "active": True,
    }
    assert seen["server_time"] == NOW
    assert seen["ticker"]["bid"] <= seen["ticker"]["last"] < seen["ticker"]["ask"]
    assert seen["book"]["bids"][0][0] == seen["ticker"]["bid"]
    assert [row[0] % 7_200_000 for row in seen["ohlcv"]] == [0] * 5
    assert seen["ohlcv"][-1][4] == pytest.approx(seen["ticker"]["last"], rel=1e-3)
    assert (seen["funding_history"], seen["tiers"]) == (3, 9)
    assert seen["fee"] == {"taker": 0.00055, "maker": 0.0002}


def test_orders_and_refusals(told) -> None:
    seen, truth = told
    last = seen["ticker"]["last"]
    assert seen["balance"]["total"] == 100_000
    assert seen["open"] == [[seen["resting"], 0.02, pytest.approx(last - 150), "open"]]
    assert sorted(kinds[:2] for kinds in seen["open_kinds"]) == [["", "PO"], ["Stop", "IOC"]]
    assert seen["left_open"] == 0
    assert seen["duplicate"] == "InvalidOrder"
    assert seen["too_dear"] == "InsufficientFunds"
    assert seen["cancel_again"] == "OrderNotFound"
    assert seen["nothing_to_reduce"] == "InvalidOrder"
    assert seen["wrong_secret"] == "AuthenticationError"
    assert seen["same_leverage"] == "BadRequest"
    links = [row["orderLinkId"] for row in truth["accounts"]["100001"]["orders"] if row["orderLinkId"]]
    assert sorted(links) == ["ccxt-entry-1", "ccxt-rest-1"]


def test_money(told) -> None:
    """Fills, fees, position and ledger as ccxt sees them are the emulator's books."""
    seen, truth = told
    account = truth["accounts"]["100001"]
    assert seen["position"]["side"] == "long"
    assert (seen["position"]["contracts"], seen["position"]["leverage"]) == (0.05, 7)
    entry = [trade for trade in seen["trades"] if trade[0] == seen["entry"]]
    assert sum(trade[2] for trade in entry) == pytest.approx(0.05)
    average = sum(trade[2] * trade[3] for trade in entry) / 0.05
    assert seen["position"]["entryPrice"] == pytest.approx(average, rel=1e-9)
    assert {trade[5] for trade in entry} == {"taker"}
    assert sum(trade[4] for trade in entry) == pytest.approx(0.05 * average * 0.00055, abs=1e-6)
    assert [seen["entry"], "closed", 0.05] in seen["closed"]
    assert [seen["resting"], "canceled"] in seen["cancelled"]
    assert seen["flat"] == 0
    assert seen["final"] == pytest.approx(float(account["wallet"]["USDT"]), abs=1e-8)
    total = sum((Decimal(row["change"]) for row in account["transaction_log"]), Decimal(0))
    assert total == Decimal(account["wallet"]["USDT"])
    assert len(seen["ledger"]) == len(account["transaction_log"])
