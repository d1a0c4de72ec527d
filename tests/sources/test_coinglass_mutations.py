"""Thousands of damaged answers, made of the emulator's own bytes, through the real client over real sockets.

Every one must be refused with a named error or accepted as exactly what the bytes say by the rules of the reference;
those rules are written down here a second time, in the plainest way. What is a well-formed lie (a digit changed) is
nobody's to see in one answer: there the suite asserts that the lie is stored as told, and that mistakes of the unit
are refused where a bound can tell.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.errors import BadDataError, KeyRejectedError, PlanError, SourceError
from mlbot_core.market import CATALOGUE, SeriesBatch, SeriesSpec
from mlbot_core.market.batch import column
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import RequestRefusedError, Transport, UpstreamError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market

H1 = Market.parse("BTC-1h")
START = parse_utc_ms("2024-01-01")
NOW = parse_utc_ms("2024-03-06T12:10:00Z")
HOURS = (NOW - 24 * HOUR_MS, NOW)
DAYS = (NOW - 30 * DAY_MS, NOW)
SERVED = [name for name, spec in CATALOGUE.items() if spec.endpoint]
NAMED = (BadDataError, UpstreamError, RequestRefusedError, PlanError, KeyRejectedError)
QUICK, ALL = 400, 10_000

Body = dict[str, Any]


@pytest.fixture(scope="module")
def answers() -> dict[str, bytes]:
    """The emulator's bytes for every series: a day of hours, or the whole history of a daily one."""
    found = {}
    with EmulatorServer(seed=11, start_ms=START, clock=FixedClock(NOW)) as server:
        headers = {"CG-API-KEY": server.key}
        for name in SERVED:
            spec = CATALOGUE[name]
            params: dict[str, Any] = {k: v.format(symbol="BTC", pair="BTCUSDT") for k, v in spec.params.items()}
            if spec.native is None:
                params |= {"interval": "1h", "limit": 26}
            found[name] = httpx.get(
                f"{server.url}{spec.endpoint}", params=params, headers=headers, trust_env=False
            ).content
    return found


# ---------------------------------------------------------------- mutations

ODD: list[Any] = [
    None, True, False, "", " ", "abc", "NaN", "nan", "inf", "-Infinity", "1e999", "0x10", "1_000", "١٢٣", "1,5", "--1",
    [], [1.0], {}, {"v": 1}, float("nan"), float("inf"), -float("inf"), 10**400, -1, 0, "0", -0.0, 1e308, "1e308", 1e18,
]  # fmt: skip


def _rows(body: Body) -> list[Any]:
    data = body["data"]
    return data if isinstance(data, list) and data and isinstance(data[0], dict) and "time_list" not in data[0] else []


def _holders(node: Any) -> list[tuple[Any, Any]]:
    """Every place of a value: (container, key)."""
    found: list[tuple[Any, Any]] = []
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, value in items:
        found.append((node, key))
        found += _holders(value)
    return found


def _numbers(body: Body) -> list[tuple[Any, Any]]:
    return [
        (box, key)
        for box, key in _holders(body["data"])
        if isinstance(box[key], (int, float, str)) and not isinstance(box[key], bool)
    ]


def odd_value(body: Body, rng: random.Random) -> None:
    box, key = rng.choice(_holders(body["data"]))
    box[key] = copy.deepcopy(rng.choice(ODD))


def other_type(body: Body, rng: random.Random) -> None:
    for box, key in rng.sample(_numbers(body), k=min(8, len(_numbers(body)))):
        value = box[key]
        box[key] = str(value) if not isinstance(value, str) else _float(value)


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def scaled_value(body: Body, rng: random.Random) -> None:
    box, key = rng.choice(_numbers(body))
    factor = rng.choice([100, 0.01, 1000, 0.001, 60_000, 1 / 60_000, 1e15, -1, 1.0001, 0])
    value = _float(box[key]) if isinstance(box[key], str) else box[key]
    if isinstance(value, (int, float)):
        box[key] = str(value * factor) if isinstance(box[key], str) else value * factor


def shifted_time(body: Body, rng: random.Random) -> None:
    times = [(b, k) for b, k in _numbers(body) if k in ("time", "timestamp")]
    times += [(v, i) for b, k in _holders(body) if k == "time_list" for v in [b[k]] for i in range(len(v))]
    for box, key in rng.sample(times, k=rng.choice([1, 1, len(times)])):
        value = int(box[key])
        change = rng.choice(
            [
                lambda v: v // 1000,
                lambda v: v * 1000,
                lambda v: v * 10**6,
                lambda v: v + rng.choice([1, -1, 60_000, HOUR_MS, -HOUR_MS, DAY_MS, 10 * 365 * DAY_MS]),
                lambda v: -v,
                lambda v: str(v),
                lambda v: float(v),
                lambda v: v + 0.5,
                lambda _v: rng.choice(ODD),
            ]
        )
        box[key] = change(value)


def lost_rows(body: Body, rng: random.Random) -> None:
    rows = _rows(body)
    if rows:
        at = rng.randrange(len(rows))
        del rows[at : at + rng.choice([1, 3, len(rows)])]


def doubled_row(body: Body, rng: random.Random) -> None:
    rows = _rows(body)
    if rows:
        again = copy.deepcopy(rng.choice(rows))
        for name in list(again):
            if rng.random() < 0.3 and isinstance(again[name], (int, float)) and name not in ("time", "timestamp"):
                again[name] = again[name] * 1.01
        rows.insert(rng.randrange(len(rows) + 1), again)


def shuffled(body: Body, rng: random.Random) -> None:
    rng.shuffle(_rows(body))


def other_fields(body: Body, rng: random.Random) -> None:
    boxes = [box for box, _ in _holders(body["data"]) if isinstance(box, dict)]
    for box in rng.sample(boxes, k=min(5, len(boxes))):
        if rng.random() < 0.5:
            box[rng.choice(["x", "close2", "All", "note"])] = rng.choice(ODD)
        elif box:
            value = box.pop(rng.choice(list(box)))
            if rng.random() < 0.3:
                box["renamed"] = value


def other_container(body: Body, rng: random.Random) -> None:
    data = body["data"]
    body["data"] = rng.choice([None, [], {}, "", 0, [data], [data, data], {"data": data}, [None], [[]], [1, 2]])


def other_envelope(body: Body, rng: random.Random) -> None:
    name = rng.choice(["code", "msg", "data"])
    if rng.random() < 0.3:
        body.pop(name)
    elif name == "code":
        body["code"] = rng.choice([0, "00", "", None, "500", "50001", "400", "401", "403", "404", 500, [], True, "1"])
    else:
        body[name] = rng.choice(["Server Error", "Upgrade plan", "api key invalid", None, [], 5])


def unequal_lists(body: Body, rng: random.Random) -> None:
    lists = [box[key] for box, key in _holders(body) if isinstance(box[key], list) and box[key]]
    victim = rng.choice(lists)
    if rng.random() < 0.5:
        victim.pop(rng.randrange(len(victim)))
    else:
        victim.append(copy.deepcopy(rng.choice(victim)))


TREE: list[Callable[[Body, random.Random], None]] = [
    odd_value, odd_value, other_type, scaled_value, scaled_value, shifted_time, lost_rows, doubled_row, shuffled,
    other_fields, other_container, other_envelope, unequal_lists,
]  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return the bytes with one to three mutations, and what was done."""
    names = []
    if rng.random() < 0.75:
        body = json.loads(raw)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            change = rng.choice(TREE)
            names.append(change.__name__)
            try:
                change(body, rng)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                names.append("(on what the last one left)")
        raw = json.dumps(body, separators=(",", ":")).encode()
        if rng.random() < 0.9:
            return raw, "+".join(names)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, size = rng.randrange(len(raw)), rng.choice([1, 1, 3, 40])
        kind = rng.choice(["cut", "flip", "insert", "delete", "double", "digit"])
        names.append(kind)
        if kind == "cut":
            raw = raw[: max(1, at)]
        elif kind == "flip":
            raw = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
        elif kind == "insert":
            raw = raw[:at] + rng.randbytes(size) + raw[at:]
        elif kind == "delete":
            raw = raw[:at] + raw[at + size :] or b" "
        elif kind == "double":
            raw = raw[: at + size] + raw[at : at + size] + raw[at + size :]
        else:
            raw = raw[:at] + (b"%d" % rng.randrange(10)) + raw[at + 1 :]
    return raw, "+".join(names)


# ---------------------------------------------------------------- what the bytes say


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return math.nan
    try:
        return float(str(value))
    except (ValueError, OverflowError):
        return math.nan


def told(raw: bytes, spec: SeriesSpec) -> dict[int, list[tuple[float, ...]]]:
    """Return what an answer says of each bar, oldest statement first: every row once, in canonical units."""
    data = json.loads(raw)["data"]
    fields = [(str(col.field), col.scale) for col in spec.columns if col.field]
    rows: list[dict[str, Any]] = []
    if spec.shape == "rows":
        rows = data
    else:
        whole = data[0] if isinstance(data, list) and data else data or {}
        for i, time in enumerate(whole.get(spec.time_field, [])):
            if spec.shape == "lists":
                rows.append({spec.time_field: time, **{field: whole[field][i] for field, _ in fields}})
            else:
                parts = [v[i] for k, v in whole["data_map"].items() if k.lower() != "all" and v[i] is not None]
                rows.append({spec.time_field: time, "data_map": sum(number(p) for p in parts) if parts else None})
    said: dict[int, list[tuple[int, tuple[float, ...]]]] = {}
    for row in rows:
        stamp = number(row.get(spec.time_field))
        if not math.isfinite(stamp):
            continue
        ms = int(stamp * 1000 if stamp < 1e11 else stamp)
        bar = ms - ms % DAY_MS if spec.snapped else ms
        said.setdefault(bar, []).append((ms, tuple(number(row.get(field)) * scale for field, scale in fields)))
    return {bar: [values for _, values in sorted(all_, key=lambda s: s[0])] for bar, all_ in said.items()}


def check(batch: SeriesBatch, raw: bytes) -> None:
    """Assert that what is stored is what the answer says, of settled bars only."""
    spec = CATALOGUE[batch.series]
    said = told(raw, spec)
    names = [col.name for col in spec.columns if col.field]
    stored = {name: batch.table.column(name).to_pylist() for name in names}
    for i, ts in enumerate(column(batch.table, "ts").tolist()):
        assert ts + batch.timeframe.ms + spec.lag_ms(batch.timeframe) <= NOW
        values = tuple(stored[name][i] for name in names)
        assert all(value is not None and math.isfinite(value) for value in values)
        statements = set(said[ts]) if not spec.snapped else {said[ts][-1]}
        assert values in statements
        assert len(statements) == 1, "contradictions are not resolved by chance"
        for col, value in zip((c for c in spec.columns if c.field), values, strict=True):
            assert abs(value) <= col.limit
            assert col.positive == "no" or value >= 0
    missing = {int(t) for gap in batch.gaps for t in range(gap.from_ts, gap.to_ts + 1, batch.timeframe.ms)}
    assert missing.isdisjoint(column(batch.table, "ts").tolist())


class Bench:
    """One server and one connection; a fresh client for every answer."""

    def __init__(self, server, reply, answers) -> None:
        self.server, self.reply, self.answers = server, reply, answers
        self.transport = Transport(server.url, SecretStr("test-key"), server.clock, sleep=lambda _s: None)
        server.refuse_intervals = set()

    def outcome(self, series: str, raw: bytes) -> tuple[str, SeriesBatch | None]:
        """Fetch a series whose endpoint answers with these bytes; return what became of it."""
        spec = CATALOGUE[series]
        self.server.always = {str(spec.endpoint): self.reply(raw)}
        self.server.requests.clear()
        start, end = DAYS if spec.native else HOURS
        failure: SourceError | None = None
        try:
            batch = CoinglassSource("emulator", self.transport, self.server.clock).fetch(series, H1, start, end)
        except NAMED as error:
            failure = error
        if failure is not None:
            assert str(spec.endpoint) in str(failure) or series in str(failure), failure
            assert "test-key" not in str(failure)
            return type(failure).__name__, None
        check(batch, raw)
        return "accepted", batch

    def run(self, count: int, seed: int) -> Counter[str]:
        rng = random.Random(seed)
        found: Counter[str] = Counter()
        for n in range(count):
            series = SERVED[n % len(SERVED)]
            raw, what = damaged(self.answers[series], rng)
            try:
                found[self.outcome(series, raw)[0]] += 1
            except (SourceError, AssertionError, KeyError) as error:
                raise AssertionError(f"seed {seed}, case {n}, {series}, {what}: {error!r}\n{raw[:2000]!r}") from error
        return found


@pytest.fixture
def bench(server, reply, answers) -> Iterator[Bench]:
    opened = Bench(server, reply, answers)
    try:
        yield opened
    finally:
        opened.transport.close()


@pytest.fixture
def clock():
    return FixedClock(NOW)


def test_undamaged_answers_are_accepted_whole(bench):
    for series in SERVED:
        kind, batch = bench.outcome(series, bench.answers[series])
        assert kind == "accepted"
        assert batch is not None
        assert batch.rows >= 15
        assert not [gap for gap in batch.gaps if gap.to_ts < NOW - 2 * DAY_MS]


def test_some_mutations(bench):
    found = bench.run(QUICK, seed=1)
    assert found.total() == QUICK
    assert found["accepted"] > 0.15 * QUICK
    assert found["BadDataError"] > 0.2 * QUICK


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_mutations(bench):
    found = bench.run(ALL, seed=20261122)
    assert found.total() == ALL
    assert found["accepted"] > 0.15 * ALL
    assert set(found) <= {"accepted", *(error.__name__ for error in NAMED)}


@pytest.mark.parametrize(
    ("series", "factor"),
    [
        ("open_interest_stablecoin", 60_000.0),  # USD where coins are meant
        ("long_short_ratio", 0.01),  # fractions where percents are meant
        ("long_short_ratio", 100.0),
        ("top_position_ratio", 0.01),
        ("fear_greed", 100.0),
        ("funding_rate", 1e4),
        ("price", 60_000.0),
        ("borrow_rate", 1e4),
    ],
)
def test_mistakes_of_the_unit_that_a_bound_can_tell(bench, series, factor):
    body = json.loads(bench.answers[series])
    names = {str(col.field) for col in CATALOGUE[series].columns if col.field}
    for box, key in _holders(body["data"]):
        if key in names and not isinstance(box[key], list):
            box[key] = type(box[key])(float(box[key]) * factor) if not isinstance(box[key], int) else box[key] * factor
    if series == "fear_greed":
        body["data"]["data_list"] = [value * factor for value in body["data"]["data_list"]]
    kind, _ = bench.outcome(series, json.dumps(body).encode())
    assert kind == "BadDataError"
