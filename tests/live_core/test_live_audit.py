"""Every order leads back to the raw rows, and every decision comes out again, to the bit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import UsageError
from mlbot_core.execution.trader import Status
from mlbot_core.live.observation import forecast_to_decide
from mlbot_core.live.signal_store import TABLE
from mlbot_core.observability.audit import Audit, explain
from mlbot_core.observability.audit_replay import replay
from mlbot_core.observability.audit_text import chain_lines
from mlbot_core.timeframe import HOUR_MS

BAR = parse_utc_ms("2024-09-20T00:00:00Z")
BARS = 4


@pytest.fixture
def audit(desk: Any) -> Audit:
    return Audit.open(desk.home.settings, desk.home.clock)


@pytest.mark.slow
def test_every_order_is_explained_and_every_decision_comes_out_again(desk, audit, tools):
    decided = [desk.bar(n) for n in range(BARS)]
    assert {one.status for one in decided} == {Status.DECIDED}
    fills = desk.ledger.executions()
    orders = [order for order in desk.ledger.orders() if order.order_link_id]
    assert fills, "nothing was traded: the test shows nothing"
    assert orders
    # later restatements, and a bar more, change nothing of it
    desk.bar(BARS, lambda source: source.factor.__setitem__(("price", BAR), 1.01))
    traded = [fill.exec_id for fill in fills if fill.order_link_id]
    assert traded
    for name in [*(order.order_link_id for order in orders), *traded, orders[0].order_id]:
        chain = explain(audit, name)
        json.dumps(chain)
        assert chain["decision"]["result"]["action"] in ("target", "rebalance", "trim", "flatten")
        meta = chain["forecast"]
        assert (meta["model_type"], meta["digest"]) == ("meta", desk_digest(desk, chain))
        assert [event["event"] for event in meta["model"]["history"]] == ["registered"]
        base = next(one for one in meta["base_forecasts"] if one["name"] == "2h_lightgbm")["forecast"]
        assert len(base["contributions"]) == 10
        assert sum(one["contribution"] for one in meta["contributions"]) == pytest.approx(meta["score"], rel=1e-9)
        price = next(series for series in base["raw"] if series["series"] == "price")
        newest = price["rows"][-1]
        assert newest["ts"] == base["bar"]
        assert newest["observed_at"] <= base["decision_time"]
        assert newest["values"]["close"] > 0
        text = "\n".join(chain_lines(chain))
        for word in ("fill", "order", "intent", "decision", "risk state after", "forecast of meta", "raw price"):
            assert word in text
    for fill in fills:
        if not fill.order_link_id:
            told = explain(audit, fill.exec_id)
            assert (told["decision"], told["fills"][0]["kind"]) == (None, "Funding")
            assert told["position_of"] in {one.decision_id for one in decided}
    for one in decided:
        again = replay(audit, one.decision_id)
        assert again.passed, again
        assert again.code_changes == ()
        assert {part.outcome for part in again.parts} == {"same"}
        names = {part.name for part in again.parts}
        assert {
            "step",
            "signal",
            "features BTC-2h lightgbm",
            "forecast BTC-2h lightgbm",
            "features BTC-2h meta",
        } <= names


def desk_digest(desk, chain):
    return desk.ledger.decision(chain["decision"]["id"]).details["caller"]["signal"]["digest"]


@pytest.mark.slow
def test_a_restated_past_is_seen_as_it_was(desk, audit, tools):
    first = desk.bar(0)
    desk.bar(1, lambda source: source.factor.__setitem__(("open_interest", BAR), 1.5))
    assert replay(audit, first.decision_id).passed
    rows = explain(audit, first.decision_id)["forecast"]["base_forecasts"][0]["forecast"]["raw"]
    (seen,) = [series["rows"][-1] for series in rows if series["series"] == "open_interest"]
    assert seen["versions"] == 1
    with desk.home.store.read() as con:
        (count,) = con.execute("SELECT count(*) FROM open_interest WHERE ts = ? AND timeframe = '2h'", [BAR]).fetchone()
    assert count == 2


@pytest.mark.slow
def test_a_late_series_is_named_in_the_decision_and_replays(desk, audit, tools):
    desk.bar(0)
    ts = BAR + 2 * HOUR_MS

    def late(source: Any) -> None:
        source.hidden[("liquidations", ts)] = ts + 3 * HOUR_MS

    done = desk.bar(1, late)
    assert done.decision.target == 0.0
    told = explain(audit, done.decision_id)
    assert "liquidations late" in told["decision"]["stale"]
    assert told["decision"]["forecast"]["edge"] is None
    desk.bar(2)
    assert replay(audit, done.decision_id).passed


@pytest.mark.slow
def test_old_bars_are_never_decided(desk, tools):
    desk.bar(0)
    home = desk.home
    home.at("2024-09-20T11:00:00Z")
    home.pull(tools.TWO)
    for n in range(1, 4):
        ts = BAR + n * 2 * HOUR_MS
        told = home.forecast(tools.TWO, ts, wait_s=0.0)
        assert told.late
        said = forecast_to_decide(home.store, home.settings, told)
        done = desk.trader.decide(ts, said.forecast, {"signal": said.as_json()})
        assert done.status is Status.NOTHING
        assert done.reason
    assert len(desk.ledger.rows("decisions")) == 1


def test_what_was_changed_afterwards_is_found(desk, audit, tools):
    done = desk.bar(0)
    with desk.home.store.write() as con:
        con.execute("UPDATE price SET close = close * 1.0001 WHERE timeframe = '2h' AND ts = ?", [BAR - 40 * HOUR_MS])
    again = replay(audit, done.decision_id)
    assert not again.passed
    (found,) = [part for part in again.parts if part.outcome == "differs"]
    assert found.name == "features BTC-2h lightgbm"
    with desk.home.store.write() as con:
        con.execute(f"UPDATE {TABLE} SET score = 0.5 WHERE model_type = 'meta'")
    assert "signal" in {
        part.name.split()[0] for part in replay(audit, done.decision_id).parts if part.outcome == "differs"
    }


@pytest.mark.slow
def test_other_code_is_listed_and_not_taken_for_a_difference(desk, audit, tools, monkeypatch):
    from mlbot_core.live import code
    from mlbot_core.observability import audit_replay

    done = desk.bar(0)
    now = code.code_now()
    other = code.Code("0" * 64, {**now.files, "features/price.py": "x", "features/new.py": "y"})
    monkeypatch.setattr(audit_replay, "code_now", lambda: other)
    with desk.home.store.write() as con:
        con.execute("UPDATE price SET close = close * 1.0001 WHERE timeframe = '2h' AND ts = ?", [BAR - 40 * HOUR_MS])
    again = replay(audit, done.decision_id)
    assert again.passed
    assert {part.outcome for part in again.parts} == {"same", "code changed"}
    assert again.code_changes == ("features/price.py changed", "features/new.py is new")


def test_an_id_that_is_nobodys_says_so(desk, audit, tools):
    done = desk.bar(0)
    with pytest.raises(UsageError, match="no decision, intent, order or fill"):
        explain(audit, "dnothing")
    with pytest.raises(UsageError, match="shorter than 6"):
        replay(audit, "d")
    assert explain(audit, done.decision_id[:12])["asked"]["id"] == done.decision_id
    flat = desk.trader.flatten("person", "a test")
    assert flat.clean
    for row in desk.ledger.rows("decisions"):
        told = explain(audit, row["decision_id"])
        if row["trigger"] != "bar":
            assert "no forecast was asked" in told["note"]
            assert replay(audit, row["decision_id"]).parts[0].outcome == "nothing to replay"
