"""Fault schedules: validated, JSON there and back, deterministic; and every kind over a real socket."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.emulator import Fault, FaultSchedule
from mlbot_core.emulator.corrupt import corrupt
from mlbot_core.emulator.faults import KINDS, ROW_KINDS, FaultInjector
from mlbot_core.errors import UsageError

PRICE = "/api/futures/price/history"
TAKER = "/api/futures/aggregated-taker-buy-sell-volume/history"
HOUR = 3_600_000

NEEDED = {
    "slow": {"seconds": 0.3},
    "late_bars": {"seconds": 600.0},
    "gap": {"from_ts": 0, "to_ts": 1},
    "restate": {"from_ts": 0, "to_ts": 1, "factor": 1.1},
}
faults = (
    st.sampled_from(KINDS)
    .flatmap(
        lambda kind: st.fixed_dictionaries(
            {"kind": st.just(kind)},
            optional={
                "endpoint": st.sampled_from(["price", "funding-rate"]),
                "count": st.integers(1, 9),
                "active_from_ms": st.integers(0, 10**13),
                "active_to_ms": st.integers(0, 10**13),
            },
        ).flatmap(
            lambda base: st.one_of(
                st.just(base),
                st.integers(1, 9).map(lambda n: {**base, "nth": n}),
                st.floats(0.01, 1).map(lambda p: {**base, "probability": p}),
            )
        )
    )
    .map(lambda raw: {**raw, **NEEDED.get(raw["kind"], {})})
)
calls = st.lists(st.sampled_from([PRICE, TAKER, "/api/futures/funding-rate/oi-weight-history"]), max_size=40)


@given(lines=st.lists(faults, max_size=6), seed=st.integers(0, 2**40))
def test_a_schedule_survives_json(lines, seed: int) -> None:
    schedule = FaultSchedule.from_dict({"seed": seed, "faults": lines})
    assert FaultSchedule.from_json(schedule.to_json()) == schedule
    assert schedule.to_dict()["faults"] == lines


@given(lines=st.lists(faults, max_size=6), seed=st.integers(0, 2**40), paths=calls)
def test_the_same_calls_fail_the_same_way(lines, seed: int, paths: list[str]) -> None:
    schedule = FaultSchedule.from_dict({"seed": seed, "faults": lines})
    first, second = FaultInjector(schedule), FaultInjector(schedule)
    hits = [first.select(path, 5) for path in paths]
    assert hits == [second.select(path, 5) for path in paths]
    for fault in schedule.faults:
        total = sum(hit is fault for call in hits for hit in call)
        if fault.count is not None and schedule.faults.count(fault) == 1:
            assert total <= fault.count
    assert all(fault.endpoint in path for path, call in zip(paths, hits, strict=True) for fault in call)


def test_nth_count_probability_and_time_say_which_calls_fail() -> None:
    def pattern(calls: int = 8, now: int = 0, **raw) -> str:
        injector = FaultInjector(FaultSchedule((Fault("http_500", **raw),), seed=3))
        return "".join("x" if injector.select(PRICE, now) else "." for _ in range(calls))

    assert pattern() == "xxxxxxxx"
    assert pattern(nth=3) == "..x....."
    assert pattern(nth=3, count=2) == "..xx...."
    assert pattern(count=2) == "xx......"
    assert pattern(endpoint="funding") == "........"
    assert pattern(active_from_ms=10, now=9) == "........"
    assert pattern(active_from_ms=10, active_to_ms=20, now=10) == "xxxxxxxx"
    assert pattern(active_to_ms=20, now=20) == "........"
    drawn = pattern(calls=400, probability=0.25)
    assert 60 < drawn.count("x") < 140
    # The limit stops the hits and leaves the draws before it as they were.
    assert pattern(calls=400, probability=0.25, count=5) == drawn[: _nth(drawn, 5) + 1].ljust(400, ".")


def _nth(text: str, n: int) -> int:
    return [i for i, sign in enumerate(text) if sign == "x"][n - 1]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"kind": "meteor"}, "meteor"),
        ({"endpoint": "price"}, "kind"),
        ({"kind": "slow"}, "seconds"),
        ({"kind": "gap", "from_ts": 1}, "to_ts"),
        ({"kind": "gap", "from_ts": 2, "to_ts": 1}, "to_ts=1"),
        ({"kind": "restate", "from_ts": 1, "to_ts": 2}, "factor"),
        ({"kind": "reset", "nth": 0}, "nth=0"),
        ({"kind": "reset", "nth": "2"}, "nth='2'"),
        ({"kind": "reset", "nth": True}, "nth=True"),
        ({"kind": "reset", "count": 0}, "count=0"),
        ({"kind": "reset", "probability": 1.5}, "1.5"),
        ({"kind": "reset", "probability": float("nan")}, "nan"),
        ({"kind": "reset", "probability": 0.5, "nth": 1}, "not both"),
        ({"kind": "reset", "often": 1}, "often"),
        ({"kind": "reset", "endpoint": 5}, "endpoint=5"),
        ({"kind": "slow", "seconds": -1}, "-1"),
        ("reset", "reset"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(raw, named: str) -> None:
    with pytest.raises(UsageError, match="line 2") as refused:
        FaultSchedule.from_dict({"faults": [{"kind": "reset"}, raw]})
    assert named in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"faults": {}}', '{"seed": -1}', '{"seed": 1.5}', '{"lines": []}'])
def test_a_wrong_schedule_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        FaultSchedule.from_json(text)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_row_faults_take_an_empty_page_and_change_nothing_given(kind: str) -> None:
    fault = Fault(kind, **NEEDED.get(kind, {}))
    assert corrupt([], fault, HOUR, 10 * HOUR) == []
    rows = [{"time": i * HOUR, "open": "1.5", "n": i} for i in range(4)]
    before = json.dumps(rows)
    corrupt(rows, fault, HOUR, 10 * HOUR)
    assert json.dumps(rows) == before


def test_a_whole_answer_fault_does_not_act_on_rows() -> None:
    with pytest.raises(UsageError, match="reset"):
        corrupt([{"time": 0, "n": 1}], Fault("reset"), HOUR, 0)


# Over sockets: each test asks once with the fault and once after it.


@pytest.fixture
def faulty(connect):
    """A client and what it is served without a fault; then the fault hits exactly the next call."""

    def make(kind: str, path: str = PRICE, **raw):
        client = connect()
        good = client.rows(path, interval="1h", limit=30)
        client.server.faults.install(FaultSchedule((Fault(kind, **{"nth": 1, **raw}),)))
        return client, good

    return make


def assert_passed(client, good, path: str = PRICE) -> None:
    """The fault is in the log once, with the call it hit, and the next call is clean."""
    assert client.rows(path, interval="1h", limit=30) == good
    (entry,) = client.http.get("/_emulator/faults/log").json()
    assert entry["path"] == path
    assert entry["query"]["limit"] == "30"
    assert entry["at_ms"] == client.clock.now_ms()
    assert "emulator-key" not in json.dumps(entry)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [("http_429", 429, "429"), ("body_429", 200, "429"), ("http_500", 500, "500"), ("body_500", 200, "500")],
)
def test_refusals(faulty, kind: str, status: int, code: str) -> None:
    client, good = faulty(kind)
    response = client.get(PRICE, interval="1h", limit=30)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "data" not in response.json()
    assert "retry-after" not in response.headers
    assert_passed(client, good)


def test_a_429_may_say_how_long_to_wait(faulty) -> None:
    client, good = faulty("http_429", seconds=7)
    assert client.get(PRICE, interval="1h", limit=30).headers["Retry-After"] == "7"
    assert_passed(client, good)


def test_html_502(faulty) -> None:
    client, good = faulty("html_502")
    response = client.get(PRICE, interval="1h", limit=30)
    assert response.status_code == 502
    assert response.headers["content-type"].startswith("text/html")
    with pytest.raises(json.JSONDecodeError):
        response.json()
    assert_passed(client, good)


def test_truncated_json(faulty) -> None:
    client, good = faulty("truncated_json")
    response = client.get(PRICE, interval="1h", limit=30)
    assert response.status_code == 200
    assert response.text.startswith('{"code":"0"')
    with pytest.raises(json.JSONDecodeError):
        response.json()
    assert_passed(client, good)


def test_reset(faulty) -> None:
    client, good = faulty("reset")
    with pytest.raises(httpx.TransportError):
        client.get(PRICE, interval="1h", limit=30)
    assert_passed(client, good)


def test_slow(faulty) -> None:
    client, good = faulty("slow", seconds=0.4)
    with pytest.raises(httpx.ReadTimeout):
        client.http.get(PRICE, params={**client.params[PRICE], "interval": "1h", "limit": 30}, timeout=0.1)
    assert_passed(client, good)
    client.server.faults.install(FaultSchedule((Fault("slow", seconds=0.3, nth=1),)))
    begin = time.perf_counter()
    assert client.rows(PRICE, interval="1h", limit=30) == good
    assert time.perf_counter() - begin >= 0.3


def test_duplicate_bars(faulty) -> None:
    client, good = faulty("duplicate_bars")
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert rows == [*good[:16], good[15], *good[16:]]
    assert_passed(client, good)


def test_contradicting_duplicate_bars(faulty) -> None:
    client, good = faulty("duplicate_bars", factor=2.0)
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert rows[16]["time"] == good[15]["time"]
    assert float(rows[16]["open"]) == 2 * float(good[15]["open"])
    assert_passed(client, good)


@pytest.mark.parametrize("path", [PRICE, TAKER])
def test_strings_for_numbers(faulty, path: str) -> None:
    client, good = faulty("strings_for_numbers", path)
    rows = client.rows(path, interval="1h", limit=30)
    values = [value for row in rows for name, value in row.items() if name != "time"]
    assert [type(v) for v in values] == [str] * (len(values) - 1) + [float]
    assert [float(v) for v in values] == [float(v) for row in good for n, v in row.items() if n != "time"]
    assert_passed(client, good, path)


@pytest.mark.parametrize(("extra", "text"), [({}, "abc"), ({"text": "NaN"}, "NaN"), ({"text": ""}, "")])
def test_unparsable(faulty, extra: dict, text: str) -> None:
    client, good = faulty("unparsable", column="close", **extra)
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert rows == [*good[:15], {**good[15], "close": text}, *good[16:]]
    assert_passed(client, good)


def test_empty_page(faulty) -> None:
    client, good = faulty("empty_page")
    assert client.rows(PRICE, interval="1h", limit=30) == []
    assert_passed(client, good)


def test_gap(connect) -> None:
    client = connect()
    good = client.rows(PRICE, interval="1h", limit=30)
    first, last = good[4]["time"], good[7]["time"]
    client.server.faults.install(FaultSchedule((Fault("gap", from_ts=first, to_ts=last),)))
    for _ in range(2):
        assert client.rows(PRICE, interval="1h", limit=30) == [*good[:4], *good[8:]]
    client.rows(PRICE, interval="1h", end_time=first - 1, limit=5)
    assert len(client.server.faults.log) == 2, "a page that the gap does not touch is not a hit"


def test_restate(connect) -> None:
    client = connect()
    good = client.rows(TAKER, interval="1h", limit=30)
    when = client.clock.now_ms() + HOUR
    fault = Fault(
        "restate",
        endpoint="taker",
        from_ts=good[2]["time"],
        to_ts=good[3]["time"],
        column="aggregated_buy_volume_usd",
        factor=0.5,
        active_from_ms=when,
    )
    client.server.faults.install(FaultSchedule((fault,)))
    assert client.rows(TAKER, interval="1h", limit=30) == good
    client.clock.set_ms(when)
    rows = client.rows(TAKER, interval="1h", limit=30, start_time=good[0]["time"])
    for i, (row, before) in enumerate(zip(rows[:29], good[:29], strict=True)):
        factor = 0.5 if i in (2, 3) else 1.0
        assert row["aggregated_buy_volume_usd"] == pytest.approx(factor * before["aggregated_buy_volume_usd"])
        assert row["aggregated_sell_volume_usd"] == before["aggregated_sell_volume_usd"]


def test_late_bars(connect) -> None:
    client = connect()
    good = client.rows(PRICE, interval="1h", limit=30)
    since_close = client.clock.now_ms() - good[-1]["time"]
    client.server.faults.install(FaultSchedule((Fault("late_bars", seconds=since_close / 1000 + 1),)))
    assert client.rows(PRICE, interval="1h", limit=30) == good[:-2]
    client.clock.sleep(1)
    assert client.rows(PRICE, interval="1h", limit=30) == good[:-1]


def test_extra_open_bar_and_off_grid(faulty) -> None:
    client, good = faulty("extra_open_bar")
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert rows[:-1] == good
    assert rows[-1]["time"] == good[-1]["time"] + HOUR
    assert rows[-1]["time"] > client.clock.now_ms()
    assert_passed(client, good)
    client, good = faulty("off_grid")
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert rows[:-1] == good[:-1]
    assert rows[-1]["time"] % HOUR != 0
    assert_passed(client, good)


def test_several_faults_on_one_call(connect) -> None:
    client = connect()
    good = client.rows(PRICE, interval="1h", limit=30)
    lines = (Fault("truncated_json", nth=1), Fault("http_500", nth=1), Fault("off_grid", nth=2), Fault("gap", nth=2,
             from_ts=good[0]["time"], to_ts=good[0]["time"]))  # fmt: skip
    client.server.faults.install(FaultSchedule(lines))
    response = client.get(PRICE, interval="1h", limit=30)
    assert response.status_code == 200, "the first whole-answer fault of the schedule wins"
    with pytest.raises(json.JSONDecodeError):
        response.json()
    rows = client.rows(PRICE, interval="1h", limit=30)
    assert [row["time"] for row in rows[:-1]] == [row["time"] for row in good[1:-1]]
    assert rows[-1]["time"] != good[-1]["time"]
    assert [entry["fault"]["kind"] for entry in client.server.faults.log] == ["truncated_json", "off_grid", "gap"]
