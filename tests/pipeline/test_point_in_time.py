"""From a source to features, labels, models and a backtest: nothing that came too late, or from elsewhere, gets in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlbot_core.backtest.dataset import BacktestRequest, backtest
from mlbot_core.clock import FixedClock
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.models import RetrainConfig
from mlbot_core.errors import MissingDataError, QualityRefusedError, WarehouseError
from mlbot_core.features import feature_set
from mlbot_core.features.dataset import DatasetRequest, materialize_features, table_name
from mlbot_core.market import CORE_SERIES, SeriesBatch, make_table
from mlbot_core.models.meta_training import train_meta
from mlbot_core.models.training import train
from mlbot_core.models.training_data import TrainRequest, _usable
from mlbot_core.sources.base import Served, SourceBase
from mlbot_core.targets.dataset import materialize_targets
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import PartitionOutcome, Warehouse, read_window
from mlbot_core.warehouse.ingest import IngestRequest, ingest

MARKET = Market.parse("BTC-4h")
STEP = MARKET.timeframe.ms
FIRST, LAST = Month.parse("2023-01"), Month.parse("2023-12")
DELAY = 90_000
SMALL = {"n_estimators": 20, "min_child_samples": 20}


class RandomWalk(SourceBase):
    """A random walk with taker volume, in which the future's sign can be hidden in versions that came too late."""

    name = "archive"

    def __init__(self, kind: str = "clean") -> None:
        rng = np.random.default_rng(5)
        self.kind = kind
        self.ts = np.arange(FIRST.start_ms, LAST.end_ms, STEP, dtype=np.int64)
        n = len(self.ts)
        self.close = 30_000 * np.exp(np.cumsum(rng.normal(0, 0.008, n)))
        self.open = np.r_[30_000.0, self.close[:-1]]
        self.high = np.maximum(self.open, self.close) * 1.001
        self.low = np.minimum(self.open, self.close) * 0.999
        self.buy = 1e8 * np.exp(rng.normal(0, 0.01, n))
        self.sell = 1e8 * np.exp(rng.normal(0, 0.01, n))
        self.seen = self.ts + STEP + 1000
        self.marked = np.zeros(n, dtype=np.bool_)
        self.marked[0 : n - 13 : 12] = True

    def served(self, series: str, market: Market) -> Served | None:
        known = series in ("price", "taker_volume") and market == MARKET
        return Served(MARKET.timeframe, int(self.ts[0]), int(self.ts[-1]) + STEP) if known else None

    def why_not(self, series: str, market: Market) -> str:
        return "" if self.served(series, market) else "it has none"

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        inside = (self.ts >= start_ms) & (self.ts < end_ms)
        if series == "price":
            prices = {"open": self.open, "high": self.high, "low": self.low, "close": self.close}
            table = make_table(series, self.ts[inside], self.seen[inside], {k: v[inside] for k, v in prices.items()})
        else:
            table = self._taker(inside)
        return SeriesBatch(series, "BTC", MARKET.timeframe, self.name, table, recorded=True, live_since_ms=0)

    def _taker(self, inside: np.ndarray) -> object:
        ahead = np.r_[np.log(self.close[12:] / self.close[:-12]), np.zeros(12)]
        telling = {"buy_usd": np.where(ahead > 0, 8e8, 1e8), "sell_usd": np.where(ahead > 0, 1e8, 8e8)}
        plain = {"buy_usd": self.buy, "sell_usd": self.sell}
        marked, after = self.marked & inside, self.ts + 13 * STEP + 1000
        if self.kind == "late":  # the telling bar is the first version, thirteen bars too late
            values = {k: np.where(self.marked, telling[k], plain[k])[inside] for k in plain}
            return make_table("taker_volume", self.ts[inside], np.where(self.marked, after, self.seen)[inside], values)
        if self.kind == "missing":
            inside = inside & ~self.marked
        if self.kind == "restated":  # and here a later version of a bar that was there in time
            ts = np.r_[self.ts[inside], self.ts[marked]]
            values = {k: np.r_[plain[k][inside], telling[k][marked]] for k in plain}
            return make_table("taker_volume", ts, np.r_[self.seen[inside], after[marked]], values)
        return make_table("taker_volume", self.ts[inside], self.seen[inside], {k: v[inside] for k, v in plain.items()})


class Home:
    def __init__(self, folder: Path, settings: Settings, kind: str = "clean") -> None:
        self.settings, self.source, self.folder = settings, RandomWalk(kind), folder
        self.clock = FixedClock(LAST.end_ms + 40 * DAY_MS)
        self.warehouse = Warehouse(folder / f"{kind}.duckdb", self.clock)

    def pull(self, first: str, last: str, identity: str = "") -> None:
        months = tuple(Month.span(Month.parse(first).start_ms, Month.parse(last).end_ms))
        for series in CORE_SERIES:
            # the holes of this test are wanted
            quality = self.settings.intervals.quality.model_copy(update={"max_missing_share": 1.0, "max_gap_bars": 999})
            request = IngestRequest(series, MARKET, months, quality, DELAY, "run", identity)
            ingest(self.warehouse, self.source, self.clock, request)

    def derive(self, first: str, last: str) -> list[PartitionOutcome]:
        months = tuple(Month.span(Month.parse(first).start_ms, Month.parse(last).end_ms))
        request = DatasetRequest("archive", MARKET, months, DELAY, self.clock.now_ms(), "run")
        made = materialize_features(self.warehouse, request, self.settings.models.features)
        made += materialize_targets(self.warehouse, request, self.settings.models.targets)
        assert all(outcome.passed for outcome in made), [o for o in made if not o.passed]
        return made

    def train(self, start: str | None = None) -> object:
        start_ms = None if start is None else Month.parse(start).start_ms
        lightgbm = self.settings.models.lightgbm.model_copy(update=SMALL)
        models = self.settings.models.model_copy(update={"lightgbm": lightgbm})
        request = TrainRequest(
            "archive", MARKET, "lightgbm", start_ms, None, DELAY, self.clock.now_ms(), 1, "run"
        )  # fmt: skip
        return train(self.warehouse, request, models, self.folder / "models")

    def features(self) -> dict[str, np.ndarray]:
        chosen = feature_set(self.settings.models.features.set, self.settings.models.features.zscore_window)
        scope = {"source": "archive", "symbol": "BTC", "timeframe": "4h"}
        with self.warehouse.read() as con:
            table = read_window(con, table_name(chosen), scope)
        return {name: np.asarray(table.column(name).to_numpy(zero_copy_only=False)) for name in chosen.names}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings({})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    return [name for name in a if not np.array_equal(a[name], b[name], equal_nan=True)]


def test_a_bar_that_came_after_its_decision_is_missing_for_ever(tmp_path: Path, settings: Settings) -> None:
    made = {}
    for kind in ("late", "missing", "clean"):
        home = Home(tmp_path, settings, kind)
        home.pull("2023-01", "2023-06")
        home.derive("2023-01", "2023-06")
        made[kind] = home.features()
    assert same(made["late"], made["missing"]) == []
    assert same(made["clean"], made["missing"]), "the bars matter to the features when they are in time"


def test_a_restatement_does_not_rewrite_the_past(tmp_path: Path, settings: Settings) -> None:
    clean, restated = Home(tmp_path, settings, "clean"), Home(tmp_path, settings, "restated")
    for home in (clean, restated):
        home.pull("2023-01", "2023-06")
        home.derive("2023-01", "2023-06")
    assert same(clean.features(), restated.features()) == []
    with restated.warehouse.read() as con:
        stored = con.execute("SELECT count(*), count(DISTINCT ts) FROM taker_volume").fetchone()
    assert stored is not None
    assert stored[0] > stored[1], "the later versions are kept, they are just not used"


def test_late_rows_neither_train_nor_are_forecast(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings, "late")
    home.pull("2023-01", "2023-12")
    home.derive("2023-01", "2023-12")
    done = home.train("2023-10")
    late = set(home.source.ts[home.source.marked].tolist())
    forecasts = done.result.forecasts  # type: ignore[attr-defined]
    tardy = forecasts["ts"].isin(late)
    assert tardy.any()
    assert forecasts.loc[tardy, "p_up"].isna().all()
    assert forecasts.loc[~tardy, "p_up"].notna().all()
    checks = {check.check: check for check in done.outcome.checks}  # type: ignore[attr-defined]
    assert not checks["coverage"].passed, "one bar in twelve is not decided on: that must not pass as a whole period"
    hits = done.result.hits / done.result.directional_rows  # type: ignore[attr-defined]
    assert 0.35 < hits < 0.65, "a random walk cannot be foretold"


def test_the_meta_model_forecasts_no_bar_that_no_decision_had(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings, "late")
    home.pull("2023-01", "2023-12")
    home.derive("2023-01", "2023-12")
    home.train("2023-06")
    with home.warehouse.write() as con:  # one bar in twelve is late: the base is refused as a whole, but not here
        con.execute("UPDATE quality SET passed = true WHERE asset = 'forecasts'")
    walk = settings.models.walk_forward.model_copy(update={"models": {"meta": RetrainConfig(min_train_days=60)}})
    models = settings.models.model_copy(update={"walk_forward": walk})
    request = TrainRequest("archive", MARKET, "meta", None, None, DELAY, home.clock.now_ms(), 1, "run")
    done = train_meta(home.warehouse, request, models, [MARKET.timeframe], tmp_path / "models")
    forecasts = done.result.forecasts
    tardy = forecasts["ts"].isin(home.source.ts[home.source.marked])
    assert tardy.any()
    assert forecasts.loc[tardy, "score"].isna().all()
    assert forecasts.loc[~tardy, "score"].notna().all()


def test_a_backtest_trades_the_labels_that_its_model_was_trained_on(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    home.pull("2023-01", "2023-12")
    home.derive("2023-01", "2023-12")
    home.train("2023-10")
    asked = BacktestRequest("archive", MARKET, "lightgbm", DELAY, home.clock.now_ms(), "run")
    assert backtest(home.warehouse, asked, settings.fees, settings.risk).result.metrics["unit"].days > 60
    wider = settings.models.targets.model_copy(update={"barrier_width": 2.0})
    months = tuple(Month.span(Month.parse("2023-11").start_ms, Month.parse("2023-11").end_ms))
    request = DatasetRequest("archive", MARKET, months, DELAY, home.clock.now_ms(), "run")
    materialize_targets(home.warehouse, request, wider)
    with pytest.raises(MissingDataError, match=r"1 months of labels .*2023-11-01.* are not those that model"):
        backtest(home.warehouse, asked, settings.fees, settings.risk)


def test_rows_from_before_most_features_were_served_are_left_out() -> None:
    matrix = np.ones((40, 10))
    for column in range(10):
        matrix[:column, column] = np.nan  # each feature looks back one bar further: the warm-up
    matrix[:20, 7:9] = np.nan  # two series begin with bar 20
    matrix[30] = np.nan
    matrix[31, 3] = np.nan
    usable = _usable(matrix)
    assert not usable[:20].any()
    assert usable[20:30].all()
    assert usable[30:32].tolist() == [False, True]
    assert not _usable(np.full((3, 2), np.nan)).any()


def test_months_are_the_same_whichever_are_made_together(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    together, apart = Home(tmp_path / "a", settings), Home(tmp_path / "b", settings)
    for home in (together, apart):
        home.pull("2023-01", "2023-08")
    whole = {o.key: o.version for o in together.derive("2023-05", "2023-07")}
    single = {o.key: o.version for m in ("2023-07", "2023-05", "2023-06") for o in apart.derive(m, m)}
    assert whole == single


def test_months_that_rest_on_what_has_changed_since_are_refused(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    home.pull("2023-03", "2023-12")
    home.derive("2023-03", "2023-12")
    home.pull("2023-01", "2023-02")
    home.derive("2023-01", "2023-02")
    with pytest.raises(MissingDataError, match=r"inputs changed\); run: mlbot features --source archive --interval 4h"):
        home.train()
    home.derive("2023-03", "2023-12")
    assert home.train("2023-11").outcome.passed  # type: ignore[attr-defined]


def test_months_made_with_another_decision_delay_are_refused(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    home.pull("2023-01", "2023-12")
    home.derive("2023-01", "2023-12")
    with home.warehouse.write() as con:
        con.execute(
            """UPDATE partitions SET info = replace(info, '"settle_delay_ms": 90000', '"settle_delay_ms": 0')"""
        )
    with pytest.raises(MissingDataError, match="settle_delay_ms changed"):
        home.train()


def test_two_synthetic_markets_never_mix(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    home.pull("2023-01", "2023-02", "planted, seed 1")
    with pytest.raises(WarehouseError, match="set MLBOT_HOME to an empty folder"):
        home.pull("2023-03", "2023-04", "null, seed 1")
    with home.warehouse.read() as con:
        newest = con.execute("SELECT max(ts) FROM price").fetchone()
    assert newest == (Month.parse("2023-03").start_ms - STEP,), "nothing of the other market was stored"


def test_a_bar_younger_than_the_settle_delay_is_not_taken(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    bar = Month.parse("2023-01").start_ms + 10 * STEP
    home.clock = FixedClock(bar + STEP + 1500)
    home.pull("2023-01", "2023-01")
    with home.warehouse.read() as con:
        assert con.execute("SELECT max(ts) FROM price").fetchone() == (bar - STEP,)
    home.clock.sleep(DELAY / 1000)
    home.pull("2023-01", "2023-01")
    with home.warehouse.read() as con:
        assert con.execute("SELECT max(ts) FROM price").fetchone() == (bar,)


def test_a_failed_or_missing_month_is_refused_by_whoever_reads_it(tmp_path: Path, settings: Settings) -> None:
    home = Home(tmp_path, settings)
    home.pull("2023-01", "2023-03")
    with home.warehouse.write() as con:
        con.execute("UPDATE quality SET passed = false WHERE asset = 'price' AND partition = 'BTC-4h|2023-02-01'")
    with pytest.raises(QualityRefusedError, match="price from archive is not fit for use"):
        home.derive("2023-02", "2023-02")
    with pytest.raises(QualityRefusedError, match="price from archive is not fit for use"):
        home.derive("2023-03", "2023-03")  # its windows reach into the month that failed
    with pytest.raises(MissingDataError, match="no data for BTC-4h"):
        home.derive("2023-05", "2023-05")
