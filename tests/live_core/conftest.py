"""A small home whose models were trained on the emulator's planted market, and copies of it to live in."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.execution import OrdersConfig
from mlbot_core.config.secrets import KeyPair
from mlbot_core.decision.costs import Costs, costs_from_fees
from mlbot_core.decision.state import Forecast
from mlbot_core.emulator import SyntheticMarket
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.bybit_market import BybitMarket
from mlbot_core.emulator.bybit_public import PublicMarket
from mlbot_core.emulator.exchange import ApiKey, Exchange, ExchangeOptions
from mlbot_core.emulator.exchange.adapter import InProcess
from mlbot_core.errors import SourceError
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.safety import Lease, Permit, SafetyFiles
from mlbot_core.execution.sending import ExecutionRules
from mlbot_core.execution.trader import Status, Trader
from mlbot_core.features.dataset import DatasetRequest, materialize_features
from mlbot_core.live.observation import forecast_to_decide
from mlbot_core.market import CORE_SERIES
from mlbot_core.models.meta_training import base_timeframes, train_meta
from mlbot_core.models.registration import register_trained
from mlbot_core.models.training import train
from mlbot_core.models.training_data import TrainRequest
from mlbot_core.sources import open_source
from mlbot_core.targets.dataset import materialize_targets
from mlbot_core.timeframe import HOUR_MS, Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import IngestRequest, ingest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "emulator"
TWO, FOUR = Market.parse("BTC-2h"), Market.parse("BTC-4h")
MONTHS = tuple(Month.span(Month(2024, 1).start_ms, Month(2024, 9).end_ms))
NOW = parse_utc_ms("2024-09-20T00:00:05Z")
"""The moment of training: the decision time of bars that closed at midnight."""
FIRST = parse_utc_ms("2024-09-20T00:00:00Z")
"""The first bar that is lived through."""
ACCOUNT = "emulator:100001"
DAY_EDGES = (0.01, 0.01, -0.01, -0.01, math.nan, 0.01, 0.0, -0.01, -0.002, 0.004, 0.01)
"""What is said of the bars of a day."""


@dataclass
class Home:
    """A home and what is open on it."""

    settings: Settings
    clock: FixedClock
    url: str

    @property
    def store(self) -> Warehouse:
        """The store, opened anew: as another process would."""
        return Warehouse(self.settings.warehouse_path, self.clock, timeout_s=20)

    @property
    def identity(self) -> str:
        return self.settings.intervals.emulator.identity

    def source(self) -> Any:
        return open_source(SOURCE, self.settings, self.clock, base_url=self.url)

    def at(self, text: str) -> int:
        """Move the clock and return the time."""
        self.clock.set_ms(parse_utc_ms(text))
        return self.clock.now_ms()

    def pull(
        self, market: Market = TWO, ts: int | None = None, change: Callable[[Altered], None] | None = None, **more: Any
    ) -> Any:
        from mlbot_core.live.pull import pull

        with self.source() as opened:
            source = Altered(opened, self.clock)
            if change is not None:
                change(source)
            return pull(self.store, source, self.settings, market, ts, run_id="test", identity=self.identity, **more)

    def forecast(self, market: Market = TWO, ts: int | None = None, **more: Any) -> Any:
        from mlbot_core.live.signals import forecast_newest

        return forecast_newest(self.store, self.settings, SOURCE, market, ts, run_id="test", **more)


class Altered:
    """A source whose answers a test delays, takes away or changes; everything else is the emulator's."""

    def __init__(self, source: Any, clock: FixedClock) -> None:
        self._source, self._clock, self.name = source, clock, source.name
        self.hidden: dict[tuple[str, int], int] = {}
        """(series, open time) -> from when on it is served, UTC ms."""
        self.factor: dict[tuple[str, int], float] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def served(self, series: str, market: Market) -> Any:
        return self._source.served(series, market)

    def why_not(self, series: str, market: Market) -> str:
        return self._source.why_not(series, market)

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> Any:
        self.asked.append(series)
        if series in self.broken:
            raise SourceError(f"{series} is broken here")
        batch = self._source.fetch(series, market, start_ms, end_ms)
        ts = batch.table.column("ts").to_numpy()
        keep = [self.hidden.get((series, int(at)), 0) <= self._clock.now_ms() for at in ts]
        table = batch.table.filter(pa.array(keep, pa.bool_()))
        for at, factor in ((at, f) for (name, at), f in self.factor.items() if name == series):
            for name in (n for n in table.column_names if n not in ("ts", "observed_at")):
                values = table.column(name).to_numpy().astype(float).copy()
                values[table.column("ts").to_numpy() == at] *= factor
                table = table.set_column(table.column_names.index(name), name, pa.array(values))
        return dataclasses.replace(batch, table=table)


def configure(folder: Path) -> Path:
    """Write a small configuration."""
    config = folder / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("api_keys.yaml"))
    models = yaml.safe_load((config / "models.yaml").read_text())
    models["walk_forward"] = {
        "train_days": 120, "min_train_days": 90, "test_days": 30, "embargo_bars": 12,
        "models": {"meta": {"min_train_days": 60}},
    }  # fmt: skip
    models["features"]["zscore_window"] = 60
    models["lightgbm"]["n_estimators"] = 20
    models["meta"]["models"] = ["lightgbm"]
    (config / "models.yaml").write_text(yaml.safe_dump(models))
    intervals = yaml.safe_load((config / "intervals.yaml").read_text())
    intervals["timeframes"] = ["2h", "4h"]
    (config / "intervals.yaml").write_text(yaml.safe_dump(intervals))
    return config


def read_settings(home: Path, config: Path) -> Settings:
    return load_settings({"MLBOT_HOME": str(home), "MLBOT_CONFIG_DIR": str(config), "MLBOT_THREADS": "1"})


def derive(home: Home, market: Market, months: tuple[Month, ...] = MONTHS) -> None:
    """Make features and targets of what is stored, as known now."""
    delay = home.settings.intervals.settle_delay_ms(SOURCE)
    request = DatasetRequest(SOURCE, market, months, delay, home.clock.now_ms(), "test")
    materialize_features(home.store, request, home.settings.models.features)
    materialize_targets(home.store, request, home.settings.models.targets)


def train_request(home: Home, market: Market, model_type: str) -> TrainRequest:
    delay = home.settings.intervals.settle_delay_ms(SOURCE)
    return TrainRequest(SOURCE, market, model_type, None, None, delay, home.clock.now_ms(), 1, "test")


def build(home: Home) -> None:
    """Pull, derive, train two base models and the meta-model that stacks them, and register them."""
    delay = home.settings.intervals.settle_delay_ms(SOURCE)
    store, settings = home.store, home.settings
    for market in (TWO, FOUR):
        with home.source() as source:
            for series in CORE_SERIES:
                request = IngestRequest(
                    series, market, MONTHS, settings.intervals.quality, delay, "test", home.identity
                )
                ingest(store, source, home.clock, request)
        derive(home, market)
        request = train_request(home, market, "lightgbm")
        trained = train(store, request, settings.models, settings.models_dir)
        register_trained(store, request, trained, settings.models_dir)
    request = train_request(home, TWO, "meta")
    timeframes = base_timeframes(settings.models.meta, settings.intervals.timeframes)
    trained = train_meta(store, request, settings.models, timeframes, settings.models_dir)
    register_trained(store, request, trained, settings.models_dir)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The home right after training; tests work on copies."""
    from mlbot_core.emulator.launch import serve

    folder = tmp_path_factory.mktemp("live")
    settings = read_settings(folder / "home", configure(folder))
    clock = FixedClock(NOW)
    with serve(settings.intervals.emulator, clock) as url:
        home = Home(settings, clock, url)
        build(home)
        yield home


@pytest.fixture
def home(trained: Home, tmp_path: Path) -> Iterator[Home]:
    """A copy of the trained home with its own clock and emulator; the first pull of both markets began the watch."""
    from mlbot_core.emulator.launch import serve

    shutil.copytree(trained.settings.home, tmp_path / "home")
    settings = read_settings(tmp_path / "home", trained.settings.config_dir)
    clock = FixedClock(NOW)
    with serve(settings.intervals.emulator, clock) as url:
        copy = Home(settings, clock, url)
        for market in (TWO, FOUR):
            copy.pull(market)
        yield copy


class Desk:
    """A home that trades: the emulator's exchange on the market that its data come from."""

    def __init__(self, home: Home, exchange: Exchange, broker: BybitBroker) -> None:
        self.home, self.exchange, self.broker = home, exchange, broker
        self.ledger = ExecutionLedger(home.settings.home, home.clock, ACCOUNT)
        # so small that a model of twenty trees trades
        self.costs = Costs(0.00001, 0.00001, 0.00001)

    @property
    def trader(self) -> Trader:
        """A new one each time: nothing is remembered outside of the book."""
        settings, clock = self.home.settings, self.home.clock
        lease = Lease(10.0, clock)
        permit = Permit(SafetyFiles(settings.live_dir, ACCOUNT, clock), lease)
        rules = ExecutionRules("mlbot", OrdersConfig(participation=None), settings.risk, Decimal("0.1"))
        return Trader(
            self.ledger, self.broker, clock, permit, rules, settings.execution.timeframe, self.costs, "BTCUSDT",
            renew=lease.renew,
        )  # fmt: skip

    def bar(self, n: int, change: Callable[[Any], None] | None = None) -> Any:
        """One bar as a live run does it; return what the trader made of it."""
        home = self.home
        ts = FIRST + n * 2 * HOUR_MS
        home.clock.set_ms(max(home.clock.now_ms(), ts + 2 * HOUR_MS + 5_000))
        if n % 2:
            home.pull(FOUR)
            home.forecast(FOUR, wait_s=0.0)
        home.pull(TWO, ts, change)
        told = home.forecast(TWO, ts, wait_s=0.0)
        said = forecast_to_decide(home.store, home.settings, told)
        done = self.trader.decide(ts, said.forecast, {"signal": said.as_json()})
        self.trader.finish(home.clock.now_ms() + 60_000)
        return done


@pytest.fixture
def desk(home: Home) -> Iterator[Desk]:
    emulator = home.settings.intervals.emulator
    market = BybitMarket(SyntheticMarket(emulator.seed, emulator.start_ms, emulator.mode))
    public = PublicMarket({"BTCUSDT": market}, BybitOptions())
    options = ExchangeOptions(keys=(ApiKey("key", "secret", parent_uid=1),))
    with ExitStack() as stack:
        exchange = Exchange.synthetic({"BTCUSDT": market}, home.clock, options=options, public=public)
        keys = KeyPair(key=SecretStr("key"), secret=SecretStr("secret"))
        broker = BybitBroker(Venue.EMULATOR, keys, home.clock, adapter=InProcess(exchange))
        stack.callback(broker.close)
        yield Desk(home, exchange, broker)


@pytest.fixture
def day(desk: Desk) -> Desk:
    """Half a day of decisions on made forecasts, at the configured costs."""
    desk.costs = costs_from_fees(desk.home.settings.fees)
    for n, edge in enumerate(DAY_EDGES):
        ts = FIRST + n * 2 * HOUR_MS
        desk.home.clock.set_ms(ts + 2 * HOUR_MS + 5_000)
        desk.home.pull(TWO, ts)
        desk.home.clock.sleep(1.2)
        trader = desk.trader
        done = trader.decide(ts, Forecast(edge, 1.0, 0), {})
        assert done.status is Status.DECIDED
        trader.finish(desk.home.clock.now_ms() + 60_000)
    desk.home.at("2024-09-21T00:00:30Z")
    desk.home.pull(TWO)
    return desk


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What the tests of this room share."""
    helpers: dict[str, Callable[..., Any]] = {"derive": derive, "train_request": train_request}
    return SimpleNamespace(
        SOURCE=SOURCE, TWO=TWO, FOUR=FOUR, MONTHS=MONTHS, NOW=NOW, EDGES=DAY_EDGES, ACCOUNT=ACCOUNT, **helpers
    )
