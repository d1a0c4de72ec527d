"""Real money: every condition is refused alone, all of them together are named, and none can be left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock, format_utc, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions
from mlbot_core.execution import limits, preflight
from mlbot_core.execution.broker import ApiKeyInfo
from mlbot_core.execution.identifiers import decision_id
from mlbot_core.execution.ledger import open_ledger
from mlbot_core.execution.ledger_states import DecisionRecord
from mlbot_core.execution.preflight import PreflightError, require_mainnet
from mlbot_core.execution.probe_report import (
    Item,
    ProbeReportError,
    Report,
    folder_of_probes,
    read_reports,
    require_fresh,
    write_report,
)
from mlbot_core.execution.record import open_record
from mlbot_core.execution.rounding import steps_down
from mlbot_core.execution.safety import SafetyFiles, folder_of
from mlbot_core.execution.types import ZERO, ExecType, Execution, Instrument, Side
from mlbot_core.execution.venues import open_broker
from mlbot_core.timeframe import DAY_MS, Timeframe

UID = 55_001
TRADER = ApiKey(
    "canary-trader/1", "canary-trader-secret/2", uid=UID, parent_uid=9, ips=("127.0.0.1",), note="a key bound to here"
)
DEADMAN = dataclasses.replace(TRADER, key="canary-deadman/3", secret="canary-deadman-secret/4")
ENVIRON = {
    "MLBOT_MAINNET": "yes",
    "MLBOT_EMULATOR_TRADE_KEY": TRADER.key,
    "MLBOT_EMULATOR_TRADE_SECRET": TRADER.secret,
    "MLBOT_EMULATOR_DEADMAN_KEY": DEADMAN.key,
    "MLBOT_EMULATOR_DEADMAN_SECRET": DEADMAN.secret,
}
CANARIES = [value for name, value in ENVIRON.items() if name != "MLBOT_MAINNET"]
ACCOUNT = f"emulator:{UID}"
GOOD = Item("fees", "what are the fees?", "GET fee-rate", "0.00055", "as_expected", matters=True)


class Gate:
    """A home in which every condition holds: a promoted champion, a record, a probe; an emulator plays mainnet."""

    def __init__(self, bench: Any, now_ms: int) -> None:
        self.bench = bench
        self.clock = FixedClock(now_ms)
        base = load_settings({"MLBOT_HOME": str(bench.home)})
        slot = bench.slot()
        self.settings = base.model_copy(
            update={
                "config_dir": bench.home,
                "intervals": base.intervals.model_copy(update={"source": slot.source}),
                "execution": base.execution.model_copy(
                    update={
                        "venue": "mainnet",
                        "mainnet": True,
                        "symbol": slot.symbol,
                        "timeframe": Timeframe.parse(slot.timeframe),
                        "model": slot.model_type,
                    }
                ),
            }
        )
        bench.promote(bench.register())
        self.days("paper:7", range(1, 15))
        self.probe()
        self.keys = [TRADER, DEADMAN]
        self.balance = Decimal(100_000)
        self.environ = dict(ENVIRON)
        self.broker: Callable[[Any], None] = lambda opened: None
        self.server: EmulatorServer | None = None
        self.prepare: Callable[[EmulatorServer], None] = lambda server: None

    def days(self, account: str, ago: Any, strategy: str = "mlbot", late_days: int = 0) -> None:
        now = self.clock.now_ms()
        frame = self.settings.execution.timeframe
        clock = FixedClock(0)
        with open_ledger(self.settings.home, clock, account, {}) as ledger:
            for day in sorted(ago, reverse=True):
                bar = (now // DAY_MS - day) * DAY_MS
                clock.set_ms(bar + 7_210_000 + late_days * DAY_MS)
                name = decision_id(account, "BTCUSDT", frame, bar)
                decided = bar + 7_205_000
                ledger.record_decision(
                    DecisionRecord(name, strategy, "BTCUSDT", "bar", str(frame), bar, decided, Decimal(0)), ()
                )

    def probe(self, age_ms: int = DAY_MS, *items: Item, venue: str = "mainnet", account: str = ACCOUNT) -> None:
        at = self.clock.now_ms() - age_ms
        write_report(self.settings.live_dir, Report(venue, account, "f" * 16, False, at, items or (GOOD,)))

    def no_probe(self) -> None:
        for path in folder_of_probes(self.settings.live_dir).iterdir():
            path.unlink()

    def execution(self, **changes: Any) -> None:
        execution = self.settings.execution.model_copy(update=changes)
        self.settings = self.settings.model_copy(update={"execution": execution})

    @contextmanager
    def exchange(self):
        options = ExchangeOptions(keys=tuple(self.keys), balance=self.balance)
        start = parse_utc_ms(format_utc(self.clock.now_ms() - 3 * DAY_MS)[:10])
        with EmulatorServer(seed=7, start_ms=start, clock=self.clock, trading=options) as server:
            self.server = server
            self.prepare(server)

            def opener(settings, clock, environ=None, *, role="trader"):
                there = settings.execution.model_copy(update={"venue": "emulator"})
                moved = settings.model_copy(update={"execution": there, "emulator_url": server.url})
                opened = open_broker(moved, clock, environ, role=role)
                self.broker(opened)
                return opened

            yield opener

    def examine(self) -> dict[str, str]:
        with self.exchange() as opener:
            checks = preflight.preflight(self.settings, self.clock, self.environ, opener=opener)
        text = json.dumps([dataclasses.asdict(check) for check in checks])
        assert not any(canary in text for canary in CANARIES)
        return {check.name: check.text for check in checks if not check.ok}

    def require(self) -> Any:
        with self.exchange() as opener:
            return require_mainnet(self.settings, self.clock, self.environ, opener=opener)


@pytest.fixture
def gate(registry_bench) -> Gate:
    return Gate(registry_bench, registry_bench.clock.now_ms())


def test_where_everything_holds_real_money_may_be_traded(gate):
    checks = gate.require()
    assert [check.name for check in checks] == [
        "switches",
        "champion",
        "account",
        "key",
        "dead-man key",
        "clock",
        "one-way mode",
        "only USDT",
        "smallest NAV",
        "not halted",
        "probe",
        "record",
    ]
    assert all(check.ok and check.text for check in checks)


def change(position: int, **values: Any) -> Callable[[Gate], None]:
    def act(gate: Gate) -> None:
        gate.keys[position] = dataclasses.replace(gate.keys[position], **values)

    return act


def hedge(opened: Any) -> None:
    """The exchange answers as in hedge mode."""
    ask = opened.broker._wire.call

    def call(method: str, params: Any, may_send: Any = None) -> Any:
        reply = ask(method, params, may_send)
        if method == "get_positions":
            for row in reply.result["list"]:
                row["positionIdx"] = 1
        return reply

    opened.broker._wire.call = call


REFUSED: list[tuple[str, str, Callable[[Gate], None]]] = [
    ("switches", "mainnet: true", lambda g: g.execution(mainnet=False)),
    ("switches", "MLBOT_MAINNET=yes", lambda g: g.environ.pop("MLBOT_MAINNET") and None),
    ("champion", "has no champion", lambda g: g.execution(model="catboost")),
    (
        "champion",
        "has no champion",
        lambda g: g.bench.registry.retire(g.bench.registry.state().champion(g.bench.slot()).version, why="x") and None,
    ),
    ("key", "can withdraw", change(0, withdraw=True)),
    ("key", "can transfer", change(0, transfer=True)),
    ("key", "cannot trade", change(0, trade=False)),
    ("key", "cannot trade", change(0, read_only=True)),
    ("key", "bound to no address", change(0, ips=())),
    ("dead-man key", "can withdraw", change(1, withdraw=True)),
    ("dead-man key", "can transfer", change(1, transfer=True)),
    ("dead-man key", "cannot trade", change(1, read_only=True)),
    ("dead-man key", "bound to no address", change(1, ips=())),
    ("dead-man key", "belongs to emulator:55002", change(1, uid=UID + 1)),
    ("dead-man key", "another main account", change(1, parent_uid=10)),
    (
        "dead-man key",
        "is the trader's key",
        lambda g: g.environ.update(MLBOT_EMULATOR_DEADMAN_KEY=TRADER.key, MLBOT_EMULATOR_DEADMAN_SECRET=TRADER.secret),
    ),
    ("dead-man key", "key", lambda g: g.environ.update(MLBOT_EMULATOR_DEADMAN_KEY="unknown")),
    ("one-way mode", "hedge mode", lambda g: setattr(g, "broker", hedge)),
    (
        "only USDT",
        "holds BTC",
        lambda g: setattr(g, "prepare", lambda server: server.exchange.transfer(Decimal("0.1"), "BTC", UID)),
    ),
    ("smallest NAV", "pay in more", lambda g: setattr(g, "balance", Decimal(100))),
    (
        "not halted",
        "mlbot resume",
        lambda g: (
            SafetyFiles(folder_of(g.settings.live_dir, ACCOUNT), ACCOUNT).halt("ann", "drill", g.clock.now_ms())
            and None
        ),
    ),
    ("probe", "no probe of", lambda g: g.no_probe()),
    ("probe", "last 7 days", lambda g: g.no_probe() or g.probe(7 * DAY_MS)),
    ("probe", "last 7 days", lambda g: g.no_probe() or g.probe(-1)),
    ("probe", "no probe of", lambda g: g.no_probe() or g.probe(1, account="mainnet:1")),
    ("probe", "no probe of", lambda g: g.no_probe() or g.probe(1, venue="testnet")),
    ("probe", "confirm fees", lambda g: g.probe(1, dataclasses.replace(GOOD, verdict="differs"))),
    ("probe", "confirm fees", lambda g: g.probe(1, dataclasses.replace(GOOD, verdict="unknown"))),
    ("record", "13 days", lambda g: g.clock.set_ms(g.clock.now_ms() + 16 * DAY_MS) or g.probe()),
]


@pytest.mark.parametrize(("name", "text", "spoil"), REFUSED, ids=[f"{n}-{t}" for n, t, _ in REFUSED])
def test_each_condition_is_refused_alone(gate, name, text, spoil):
    spoil(gate)
    with pytest.raises(PreflightError, match="real money is not traded, 1 of 12") as caught:
        gate.require()
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"  {name}: ")
    assert text in line
    assert not any(canary in repr(caught.getrepr(style="long")) for canary in CANARIES)


def test_a_main_account_is_refused(gate):
    gate.keys = [dataclasses.replace(key, parent_uid=0) for key in gate.keys]
    assert "main account" in gate.examine()["key"]


def test_a_clock_that_is_off_is_refused(gate):
    gate.settings = gate.settings.model_copy(
        update={
            "risk": gate.settings.risk.model_copy(
                update={"gate": gate.settings.risk.gate.model_copy(update={"max_clock_offset_ms": 400})}
            )
        }
    )
    exchange_clock = gate.clock
    with gate.exchange() as opener:
        checks = {
            check.name: check
            for check in preflight.preflight(
                gate.settings, FixedClock(exchange_clock.now_ms() - 600), gate.environ, opener=opener
            )
        }
    assert not checks["clock"].ok
    assert "-600 ms off" in checks["clock"].text


def test_an_account_that_does_not_answer_leaves_nothing_unsaid(gate):
    gate.environ["MLBOT_EMULATOR_TRADE_KEY"] = "nobody"
    found = gate.examine()
    assert set(found) == {
        "account",
        "key",
        "dead-man key",
        "clock",
        "one-way mode",
        "only USDT",
        "smallest NAV",
        "not halted",
        "probe",
        "record",
    }
    with pytest.raises(PreflightError, match="10 of 12"):
        gate.require()


def test_all_that_is_bad_is_named_at_once(gate):
    gate.execution(mainnet=False)
    gate.no_probe()
    gate.balance = Decimal(1)
    with pytest.raises(PreflightError) as caught:
        gate.require()
    for name in ("switches", "probe", "smallest NAV"):
        assert f"\n  {name}: " in str(caught.value)


def test_the_real_opener_is_behind_the_switches(gate):
    gate.environ.pop("MLBOT_MAINNET")
    checks = {check.name: check for check in preflight.preflight(gate.settings, gate.clock, gate.environ)}
    assert "not switched on" in checks["account"].text
    with pytest.raises(PreflightError):
        require_mainnet(gate.settings, gate.clock, gate.environ)


@pytest.mark.parametrize(
    ("venue", "names"),
    [
        ("paper", {"account", "clock", "one-way mode", "only USDT", "smallest NAV", "not halted"}),
        (
            "testnet",
            {"account", "key", "dead-man key", "clock", "one-way mode", "only USDT", "smallest NAV", "not halted"},
        ),
    ],
)
def test_other_venues_ask_for_what_matters_there(gate, venue, names):
    gate.execution(venue=venue, mainnet=False)
    gate.environ.pop("MLBOT_MAINNET")
    # neither an address nor a sub-account is asked for where no money is at stake
    gate.keys = [dataclasses.replace(key, ips=(), parent_uid=0) for key in gate.keys]
    with gate.exchange() as opener:
        checks = preflight.preflight(gate.settings, gate.clock, gate.environ, opener=opener)
        assert require_mainnet(gate.settings, gate.clock, gate.environ, opener=opener) == []
    assert {check.name for check in checks} == names
    assert all(check.ok for check in checks), checks


def test_a_venue_that_does_not_describe_keys_passes_only_without_money():
    assert "does not tell" in preflight._key(None, real=False)
    info = ApiKeyInfo("f", "1", "", False, True, False, False, (), None)
    assert preflight._key(info, real=False)


def test_only_days_of_this_strategy_lived_on_paper_or_demo_make_a_record(gate):
    def best() -> str:
        return gate.examine().get("record", "ok")

    with open_ledger(gate.settings.home, gate.clock, "x:1", {}) as ledger:
        path = ledger._path
    for name in path.parent.glob(f"{path.name}*"):
        name.unlink()
    assert best().startswith("0 days")
    gate.days("emulator:1", range(1, 20))
    gate.days("testnet:1", range(1, 20))
    gate.days("paper:2", range(1, 20), strategy="another")
    assert best().startswith("0 days")
    # written long after it was decided: not a life, a backfill
    gate.days("paper:3", range(1, 20), late_days=3)
    assert best().startswith("0 days")
    gate.days("demo:4", range(0, 13))
    assert best().startswith("13 days")
    gate.days("demo:5", range(0, 14))
    assert best() == "ok"


def test_reports_are_private_files_and_rubbish_is_not_one(tmp_path):
    report = Report("mainnet", "mainnet:1", "f" * 16, True, 1_700_000_000_123, (GOOD,), ("a",))
    path = write_report(tmp_path, report)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.name == "mainnet-20231114T221320Z.json"
    for number, wrong in enumerate(("", "[]", "{}", json.dumps({**report.document(), "kind": "x"}))):
        (path.parent / f"mainnet-{number}.json").write_text(wrong)
    document = report.document()
    document["items"] = [{**document["items"][0], "verdict": "fine"}]
    (path.parent / "mainnet-9.json").write_text(json.dumps(document))
    assert read_reports(tmp_path, "mainnet") == [report]
    assert require_fresh(tmp_path, "mainnet", "mainnet:1", report.at_ms + 1) == report
    with pytest.raises(ProbeReportError, match="mlbot probe --venue mainnet"):
        require_fresh(tmp_path, "mainnet", "mainnet:2", report.at_ms + 1)


# --- limits


def bitcoin(lot: str = "0.001", notional: str = "5") -> Instrument:
    return Instrument(
        "BTCUSDT", Decimal("0.1"), Decimal(lot), Decimal(lot), Decimal(1190), Decimal(500), Decimal(notional)
    )


amounts = st.decimals("0.01", "100000000", places=2, allow_nan=False)
quotes = st.decimals("0.1", "2000000", places=1, allow_nan=False)
caps = st.sampled_from([Decimal(text) for text in ("0.001", "0.02", "0.1", "0.333333", "1")])


@given(amounts, quotes, caps, st.sampled_from(["0.001", "0.01", "1"]))
def test_the_largest_quantity_is_whole_lots_never_above_the_cap_and_one_more_lot_would_be(nav, price, cap, lot):
    rules = bitcoin(lot)
    qty = limits.largest_qty(nav, price, cap, rules)
    assert qty >= 0
    assert qty % rules.lot == 0
    assert qty * price <= nav * cap < (qty + rules.lot) * price


@given(quotes, caps, st.sampled_from(["0", "5", "123.4"]))
def test_the_smallest_nav_can_hold_the_smallest_order_at_the_smallest_multiplier(price, cap, notional):
    rules = bitcoin("0.001", notional)
    least = limits.smallest_nav(price, cap, rules)
    order = limits.smallest_order(price, rules)
    assert order >= rules.min_qty
    assert order * price >= rules.min_notional
    assert abs(least * cap * limits.SMALLEST_MULTIPLIER - order * price) <= order * price * Decimal("1e-20")
    below = steps_down(least * Decimal("0.99"), Decimal("0.01"))
    assert limits.largest_qty(below, price, cap * limits.SMALLEST_MULTIPLIER, rules) < order


def test_sizing_has_no_smaller_multiplier():
    from mlbot_core.decision.bandit import ARMS

    assert Decimal(str(min(arm for arm in ARMS if arm > 0))) == limits.SMALLEST_MULTIPLIER


def test_the_first_day_on_mainnet_has_its_own_cap(gate):
    settings, now = gate.settings, gate.clock.now_ms()
    small, full = Decimal("0.02"), Decimal("0.1")
    for first, wanted in (
        (None, small),
        (now, small),
        (now - DAY_MS + 1, small),
        (now + 1, small),
        (now - DAY_MS, full),
    ):
        assert limits.effective_max_position(settings, first, now) == wanted
    gate.execution(venue="paper")
    assert limits.effective_max_position(gate.settings, None, now) == full
    risk = settings.risk.model_copy(update={"max_position": 0.01})
    assert limits.effective_max_position(settings.model_copy(update={"risk": risk}), None, now) == Decimal("0.01")


def test_the_first_trade_is_the_accounts_own_and_a_trade(gate):
    home, clock = gate.settings.home, gate.clock

    def fill(account: str, exec_id: str, kind: ExecType, at: int) -> None:
        with open_ledger(home, clock, account, {}) as ledger:
            ledger.record_execution(
                Execution(
                    exec_id, kind, "", "", "BTCUSDT", Side.BUY, Decimal(1), Decimal(1), Decimal(1), ZERO, ZERO, False,
                    ZERO, at,
                )
            )  # fmt: skip

    with open_record(home, clock, "mainnet:1", {}) as book:
        assert book.first_trade_ms() is None
        fill("paper:1", "a", ExecType.TRADE, 5)
        fill("mainnet:1", "b", ExecType.FUNDING, 6)
        assert book.first_trade_ms() is None
        fill("mainnet:1", "c", ExecType.TRADE, 9)
        fill("mainnet:1", "d", ExecType.TRADE, 8)
        assert book.first_trade_ms() == 8


def test_prices_and_caps_that_make_no_sense_are_refused():
    from mlbot_core.execution.types import OrderRefusedError

    for price in (ZERO, Decimal(-1), Decimal("NaN")):
        with pytest.raises(OrderRefusedError, match="read the ticker again"):
            limits.largest_qty(Decimal(1), price, Decimal(1), bitcoin())
    with pytest.raises(OrderRefusedError, match="raise max_position"):
        limits.smallest_nav(Decimal(1), ZERO, bitcoin())
    assert limits.largest_qty(Decimal(-5), Decimal(1), Decimal(1), bitcoin()) == 0
