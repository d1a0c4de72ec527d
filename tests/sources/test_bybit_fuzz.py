"""Mutated answers of Bybit: each is stored as it says, or refused by name; what is not stored is a gap.

The answers are the emulator's real bytes, spoilt by a seeded mutator and served over real HTTP to pybit. The judge
reads the spoilt bytes itself, without any of the product's code.
"""

import copy
import json
import math
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.emulator import EmulatorServer
from mlbot_core.errors import SourceError
from mlbot_core.sources.bybit import BybitSource
from mlbot_core.sources.bybit_http import BybitClient
from mlbot_core.sources.bybit_pace import PAUSE_S, Pace
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe

LISTED = parse_utc_ms("2024-01-01")
START = parse_utc_ms("2024-03-01")
HOURS = 48
NOW = START + HOURS * HOUR_MS + 1_800_000
H1 = Market.parse("BTC-1h")
BTC = {"category": "linear", "symbol": "BTCUSDT"}
_KLINE = {"interval": "60", "start": START, "end": START + (HOURS - 1) * HOUR_MS}
_SAMPLE = {"startTime": START + HOUR_MS, "endTime": START + HOURS * HOUR_MS, "limit": 200}
QUERIES = {
    "price": ("/v5/market/kline", _KLINE),
    "mark_price": ("/v5/market/mark-price-kline", _KLINE),
    "premium_index": ("/v5/market/premium-index-price-kline", _KLINE),
    "funding_settled": ("/v5/market/funding/history", {"startTime": START, "endTime": START + HOURS * HOUR_MS - 1}),
    "long_short_ratio": ("/v5/market/account-ratio", {**_SAMPLE, "period": "1h"}),
    "open_interest_pair": ("/v5/market/open-interest", {**_SAMPLE, "intervalTime": "1h"}),
}
INSTRUMENTS = "/v5/market/instruments-info"
JUNK = [
    "",
    "abc",
    None,
    True,
    False,
    "NaN",
    "Infinity",
    "-1",
    "0",
    "1e400",
    [],
    {},
    "1_0",
    " 7",
    "7 ",
    3.5,
    -2,
    "٣",
    "0x1",
]


class Replay:
    """Serves bytes by path."""

    def __init__(self):
        self.answers = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self):
                status, body = outer.answers[urlsplit(self.path).path]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def recorded():
    """The emulator's bytes, by path."""
    found = {}
    with (
        EmulatorServer(seed=7, start_ms=LISTED, clock=FixedClock(NOW)) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        for path, query in (*QUERIES.values(), (INSTRUMENTS, {})):
            found[path] = http.get(path, params={**BTC, **query}).content
    return found


@pytest.fixture(scope="module")
def replay():
    running = Replay()
    yield running
    running.close()


@pytest.fixture(scope="module")
def passing():
    """A time on which nobody waits."""
    return [0.0]


@pytest.fixture(scope="module")
def source(replay, passing):
    clock = FixedClock(NOW)

    def wait(seconds):
        passing[0] += seconds

    pace = Pace("fuzz", clock, monotonic=lambda: passing[0], sleep=wait)
    # not repeated: the same bytes would come again
    with BybitSource(BybitClient(replay.url, pace, retries=0), clock) as opened:
        yield opened


def spoil(body: bytes, chance: random.Random) -> tuple[str, int, bytes]:
    """Return what was done, an HTTP status and the spoilt body."""
    kind = chance.choice(["bytes", "bytes", "row", "row", "row", "rows", "envelope", "status", "whole"])
    if kind == "bytes":
        return spoil_bytes(body, chance)
    if kind == "status":
        return kind, chance.choice([204, 301, 400, 403, 404, 418, 429, 500, 503]), body
    if kind == "whole":
        deep = b"[" * 5000 + b"]" * 5000
        return (
            kind,
            200,
            chance.choice([b"", b"null", b"[]", b"7", b'"text"', b"<html></html>", b"{}", b"\xff\xfe", deep]),
        )
    answer = json.loads(body)
    rows = answer["result"]["list"]
    if kind == "envelope":
        spoil_envelope(answer, chance)
    elif kind == "row":
        spoil_row(rows, chance)
    else:
        spoil_rows(rows, chance)
    return kind, 200, json.dumps(answer).encode()


def spoil_bytes(body, chance):
    at = chance.randrange(len(body))
    way = chance.choice(["cut", "delete", "insert", "flip", "double"])
    if way == "cut":
        body = body[:at]
    elif way == "delete":
        body = body[:at] + body[at + chance.randrange(1, 40) :]
    elif way == "insert":
        body = body[:at] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 4))) + body[at:]
    elif way == "flip":
        body = body[:at] + bytes([body[at] ^ (1 << chance.randrange(8))]) + body[at + 1 :]
    else:
        body = body[: at + 40] + body[at:]
    return f"bytes: {way}", 200, body


def spoil_envelope(answer, chance):
    name = chance.choice(["retCode", "retMsg", "result", "time", "symbol", "category", "list", "retExtInfo"])
    holder = answer["result"] if name in ("symbol", "category", "list") else answer
    if chance.random() < 0.3:
        holder.pop(name, None)
    elif name == "retCode":
        holder[name] = chance.choice(
            [10001, 10002, 10006, 10016, 429, 7, -1, "0", None, True, False, 0.0, [0], "10006"]
        )
    elif name == "time":
        holder[name] = chance.choice([NOW - 10 * HOUR_MS, NOW + HOUR_MS, NOW // 1000, str(NOW), None, True, 1.5, -NOW])
    elif name == "symbol":
        holder[name] = chance.choice(["ETHUSDT", "", None, "btcusdt"])
    else:
        holder[name] = chance.choice(JUNK)


def cell(row, chance):
    return chance.randrange(len(row)) if isinstance(row, list) else chance.choice(sorted(row))


def spoil_row(rows, chance):
    row = rows[chance.randrange(len(rows))]
    at = cell(row, chance)
    way = chance.choice(["junk", "junk", "digit", "negate", "shift", "drop", "swap", "number", "scale"])
    if way == "junk":
        row[at] = chance.choice(JUNK)
    elif way == "digit":
        text = str(row[at])
        spot = chance.randrange(len(text))
        row[at] = text[:spot] + chance.choice("0123456789.-") + text[spot + 1 :]
    elif way == "negate":
        row[at] = f"-{row[at]}"
    elif way == "shift":
        stamp = 0 if isinstance(row, list) else next(name for name in row if name.lower().endswith("timestamp"))
        row[stamp] = str(
            int(row[stamp]) + chance.choice([1, -1, 1000, HOUR_MS, -HOUR_MS, 8 * HOUR_MS, 10**12, -(10**12)])
        )
    elif way == "drop":
        del row[at]
    elif way == "swap":
        other = cell(row, chance)
        row[at], row[other] = row[other], row[at]
    elif way == "number":
        row[at] = chance.choice([1, 2.5, -3, 10**20, 1e-9])
    else:
        row[at] = str(float(row[at]) * chance.choice([1.5, 2, 0.5, 100])) if is_number(row[at]) else row[at]


def spoil_rows(rows, chance):
    way = chance.choice(["drop", "cut", "empty", "double", "double changed", "shuffle", "extra", "none"])
    at = chance.randrange(len(rows))
    if way == "drop":
        del rows[at]
    elif way == "cut":
        del rows[at:]
    elif way == "empty":
        rows.clear()
    elif way == "double":
        rows.insert(chance.randrange(len(rows)), copy.deepcopy(rows[at]))
    elif way == "double changed":
        rows.insert(chance.randrange(len(rows)), copy.deepcopy(rows[at]))
        spoil_row([rows[at]], chance)
    elif way == "shuffle":
        chance.shuffle(rows)
    elif way == "extra":
        rows.insert(0, chance.choice([None, [], {}, "row", 7, [[]]]))
    else:
        rows[at] = None


def is_number(raw):
    try:
        return math.isfinite(float(raw)) and not isinstance(raw, bool)
    except (TypeError, ValueError):
        return False


def said(series, body):
    """Read the bytes as a person would: per bar the values that the answer claims for it."""
    answer = json.loads(body)
    assert type(answer["retCode"]) is int, "accepted without a good retCode"
    assert answer["retCode"] == 0
    assert answer["result"].get("symbol", "BTCUSDT") == "BTCUSDT"
    claims = {}
    for row in answer["result"]["list"]:
        if isinstance(row, list):
            values = [float(value) for value in row[1 : 7 if series == "price" else 5]]
            claims.setdefault(int(row[0]), []).append(values[:4] + values[:3:-1])
        elif series == "funding_settled":
            claims.setdefault(int(row["fundingRateTimestamp"]), []).append([float(row["fundingRate"])])
        elif series == "long_short_ratio":
            claims.setdefault(int(row["timestamp"]) - HOUR_MS, []).append(
                [float(row["buyRatio"]), float(row["sellRatio"])]
            )
        else:
            single = row.get("singleOpenInterest")
            ways = (
                [float(row["openInterest"]), float(row["openInterest"]) / 2]
                if single in (None, "")
                else [float(single)]
            )
            claims.setdefault(int(row["timestamp"]) - HOUR_MS, []).extend([way] for way in ways)
    return claims


def judge(series, batch, body):
    """Every stored bar is one that the answer claims; every bar that is not stored is a gap."""
    claims = said(series, body)
    names = {"open_interest_pair": ("close_coin",)}.get(series, batch.table.column_names[2:])
    stored = batch.table.to_pylist()
    for row in stored:
        values = [row[name] for name in names]
        assert None not in values
        assert all(math.isfinite(value) for value in values)
        if series == "funding_settled":
            paid = [
                rates[0][0] for ts, rates in sorted(claims.items()) if ts // (8 * HOUR_MS) * 8 * HOUR_MS == row["ts"]
            ]
            assert math.isclose(values[0], math.fsum(paid), rel_tol=1e-12, abs_tol=1e-15)
            continue
        assert values in claims[row["ts"]], (values, claims[row["ts"]])
        if len(names) >= 4:
            assert row["low"] <= row["close"] <= row["high"]
    step = batch.timeframe.ms
    gaps = [ts for gap in batch.gaps for ts in range(gap.from_ts, gap.to_ts + 1, step)]
    assert sorted([row["ts"] for row in stored] + gaps) == list(range(START, START + HOURS * HOUR_MS, step))


def fuzz(source, replay, recorded, passing, cases, seed):
    replay.answers = {path: (200, body) for path, body in recorded.items()}
    truth = {series: source.fetch(series, H1, START, START + HOURS * HOUR_MS) for series in QUERIES}
    for series, batch in truth.items():
        assert batch.gaps == (), series
        judge(series, batch, recorded[QUERIES[series][0]])
    outcomes = Counter()
    series_names = sorted(QUERIES)
    for case in range(cases):
        chance = random.Random(f"{seed}/{case}")
        series = series_names[case % len(series_names)]
        path = QUERIES[series][0]
        kind, status, body = spoil(recorded[path], chance)
        replay.answers = {**{at: (200, good) for at, good in recorded.items()}, path: (status, body)}
        refusal = None
        try:
            batch = source.fetch(series, H1, START, START + HOURS * HOUR_MS)
        except SourceError as error:
            refusal = error
        if refusal is not None:
            outcomes[f"refused, {type(refusal).__name__}"] += 1
            assert "Bybit" in str(refusal) or series in str(refusal), (case, kind, refusal)
            assert len(str(refusal)) < 1000
        else:
            assert status == 200, (case, kind)
            try:
                judge(series, batch, body)
            except (AssertionError, KeyError, ValueError, TypeError) as error:
                raise AssertionError(f"case {case}, {series}, {kind}: {error!r}") from error
            same = batch.table.equals(truth[series].table)
            outcomes["stored, as without the fault" if same else "stored, as the answer says, the rest as gaps"] += 1
        passing[0] += PAUSE_S + 1  # whoever was refused for his address may call again
    return outcomes


def report(outcomes, capsys):
    with capsys.disabled():
        total = outcomes.total()
        print(f"\n{total} mutated Bybit answers: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common()))


def test_mutated_answers(source, replay, recorded, passing):
    outcomes = fuzz(source, replay, recorded, passing, 400, 20260101)
    assert sum(n for name, n in outcomes.items() if name.startswith("refused")) > 100
    assert sum(n for name, n in outcomes.items() if name.startswith("stored")) > 50


@pytest.mark.slow
def test_ten_thousand_mutated_answers(source, replay, recorded, passing, capsys):
    outcomes = fuzz(source, replay, recorded, passing, 10_000, 7)
    report(outcomes, capsys)
    assert outcomes.total() == 10_000


def test_the_recording_is_what_the_client_asks_for(recorded):
    assert len(json.loads(recorded["/v5/market/kline"])["result"]["list"]) == HOURS
    assert Timeframe(60).ms == HOUR_MS
