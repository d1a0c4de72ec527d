"""The running server: start, stop, steering, and the process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import httpx
import pytest

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.emulator import DEFAULT_KEY, EmulatorError, EmulatorServer, Fault, FaultSchedule
from mlbot_core.emulator.launch import serve
from mlbot_core.errors import UsageError

PRICE = "/api/futures/price/history"
QUERY = {"exchange": "Binance", "symbol": "BTCUSDT", "interval": "1h", "limit": 2}


def emulator_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "emulator"]


def test_it_starts_fast_and_leaves_nothing_behind() -> None:
    before = set(emulator_threads())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin = time.perf_counter()
        server = EmulatorServer(clock=FixedClock(parse_utc_ms("2024-02-01")))
        with server:
            assert time.perf_counter() - begin < 1.0
            port = int(server.url.rpartition(":")[2])
            # An idle keep-alive connection must not hold up the end.
            idle = httpx.Client(trust_env=False)
            assert idle.get(f"{server.url}/_emulator/state").status_code == 200
            begin = time.perf_counter()
        assert time.perf_counter() - begin < 2.0
        idle.close()
    assert set(emulator_threads()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    server.stop()
    with pytest.raises(EmulatorError, match="not running"):
        _ = server.url
    with server:
        assert httpx.get(f"{server.url}/_emulator/state", trust_env=False).status_code == 200


def test_it_stops_while_an_answer_is_slow() -> None:
    clock = FixedClock(parse_utc_ms("2024-02-01"))
    outcomes: list[object] = []

    def ask(url: str) -> None:
        headers = {"CG-API-KEY": "emulator-key"}
        try:
            answer = httpx.get(f"{url}{PRICE}", params=QUERY, headers=headers, timeout=30, trust_env=False)
            outcomes.append(answer.status_code)
        except httpx.TransportError as error:
            outcomes.append(error)

    with EmulatorServer(clock=clock, faults=FaultSchedule((Fault("slow", seconds=25),))) as server:
        asking = threading.Thread(target=ask, args=(server.url,))
        asking.start()
        while not server.faults.log:
            time.sleep(0.01)
        begin = time.perf_counter()
    assert time.perf_counter() - begin < 4
    asking.join(5)
    assert not asking.is_alive()
    assert len(outcomes) == 1
    assert outcomes != [200]


def test_a_taken_port_is_named() -> None:
    with EmulatorServer() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(EmulatorError, match=str(port)):
            EmulatorServer(port=port).start()
        with pytest.raises(EmulatorError, match="already running"):
            server.start()
    with pytest.raises(UsageError, match="70000"):
        EmulatorServer(port=70_000)


def test_state_calls_and_clock(connect) -> None:
    client = connect()
    client.rows(PRICE, interval="1h", limit=2)
    client.get(PRICE, interval="1h", without="symbol")
    state = client.http.get("/_emulator/state").json()
    assert state["now_ms"] == client.clock.now_ms()
    assert (state["seed"], state["mode"], state["plan"], state["clock"]) == (7, "planted", "enterprise", "FixedClock")
    assert state["bars_5m"] > 0
    calls = client.http.get("/_emulator/calls").json()
    assert calls == {"total": 2, "by_path": {PRICE: 2}, "refused_by_code": {"400": 1}}
    assert client.put("/_emulator/clock", {"now": "2024-09-01T00:00:01Z"}).json()["now"] == "2024-09-01T00:00:01Z"
    assert client.rows(PRICE, interval="1h", limit=1)[0]["time"] == parse_utc_ms("2024-09-01")
    later = parse_utc_ms("2024-09-02")
    assert client.put("/_emulator/clock", {"now_ms": later}).json()["now_ms"] == later
    for wrong in ({"now": "2024-01-01"}, {"now": "soon"}, {}, [], {"now_ms": None}):
        response = client.put("/_emulator/clock", wrong)
        assert response.status_code == 400, wrong
        assert "error" in response.json()
    assert client.clock.now_ms() == later


def test_it_is_launched_as_configured() -> None:
    configured = load_settings({}).intervals.emulator
    now = parse_utc_ms("2024-03-01T00:00:05Z")
    answers = []
    for _ in range(2):
        with serve(configured, FixedClock(now)) as url, httpx.Client(base_url=url, trust_env=False) as http:
            state = http.get("/_emulator/state").json()
            assert {state[name] == getattr(configured, name) for name in ("seed", "mode", "start_ms", "plan")} == {True}
            answers.append(http.get(PRICE, params=QUERY, headers={"CG-API-KEY": DEFAULT_KEY}).json())
    assert answers[0] == answers[1]
    assert answers[0]["code"] == "0"


def test_a_wall_clock_cannot_be_set() -> None:
    with EmulatorServer() as server:
        response = httpx.put(f"{server.url}/_emulator/clock", json={"now_ms": 1}, trust_env=False)
    assert response.status_code == 409
    assert "SystemClock" in response.json()["error"]


def test_schedules_are_installed_over_http(connect) -> None:
    client = connect()
    schedule = {"seed": 4, "faults": [{"kind": "body_500", "endpoint": "price", "nth": 1}]}
    assert client.put("/_emulator/faults", schedule).json() == schedule
    assert client.http.get("/_emulator/faults").json() == schedule
    assert client.get(PRICE, interval="1h", limit=1).json()["code"] == "500"
    assert client.get(PRICE, interval="1h", limit=1).json()["code"] == "0"
    response = client.put("/_emulator/faults", {"faults": [{"kind": "meteor"}]})
    assert response.status_code == 400
    assert "meteor" in response.json()["error"]
    assert client.http.get("/_emulator/faults").json() == schedule, "a refused schedule replaces nothing"
    assert client.http.delete("/_emulator/faults").json() == {"seed": 0, "faults": []}
    (entry,) = client.http.get("/_emulator/faults/log").json()
    assert entry["fault"] == schedule["faults"][0]
    assert entry["call"] == 1


def launch(*arguments: str, clock: str = "fixed:2024-03-01T00:00:05Z") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "mlbot_core.emulator", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLBOT_CLOCK": clock},
    )


def test_the_process_says_where_it_is_and_ends_on_sigterm(tmp_path) -> None:
    schedule = tmp_path / "faults.json"
    schedule.write_text(json.dumps({"faults": [{"kind": "http_500", "nth": 2}]}))
    arguments = ("--seed", "9", "--start", "2024-02-01", "--mode", "null", "--plan", "startup", "--key", "abc")
    process = launch(*arguments, "--faults", str(schedule))
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["now"] == "2024-03-01T00:00:05Z"
        assert (ready["seed"], ready["mode"], ready["plan"], ready["pid"]) == (9, "null", "startup", process.pid)
        answers = [
            httpx.get(
                f"{ready['url']}{PRICE}", params=QUERY, headers={"CG-API-KEY": "abc"}, timeout=60, trust_env=False
            )
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 500]
        assert [row["time"] for row in answers[0].json()["data"]] == [
            parse_utc_ms("2024-02-29T23:00:00Z"),
            parse_utc_ms("2024-03-01"),
        ]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=15)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "clock", "named"),
    [
        (("--start", "soon"), "system", "soon"),
        (("--start", "2024-01-01T03:00:00Z"), "system", "midnight"),
        (("--seed", "-4"), "system", "-4"),
        (("--faults", "/nowhere/faults.json"), "system", "/nowhere/faults.json"),
        (("--mode", "wild"), "system", "wild"),
        ((), "sundial", "sundial"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments: tuple[str, ...], clock: str, named: str) -> None:
    process = launch(*arguments, clock=clock)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert named in err
    assert "Traceback" not in err
