"""The dead-man on an account of the emulator, with a time of its own: when it acts, and when not."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from mlbot_core.config.execution import WatchConfig
from mlbot_core.emulator.exchange import TradeFault
from mlbot_core.execution.deadman import NAME, WATCHED, DeadMan
from mlbot_core.execution.flatten_record import pending_reports
from mlbot_core.execution.safety import SafetyFiles, folder_of

D = Decimal
ACCOUNT = "emulator:100001"
WATCH = WatchConfig(every_s=1, deadman_after_s=10, lease_s=5)
pytestmark = pytest.mark.parametrize("bench", ["in_process"], indirect=True)


class Started:
    """Counts how often the book was asked for."""

    count = 0

    def start(self):
        self.count += 1


class Drill:
    def __init__(self, tmp_path, bench):
        self.bench = bench
        self.files = SafetyFiles(folder_of(tmp_path, ACCOUNT), ACCOUNT, bench.clock)
        self.awake = 100.0
        self.said = []
        self.records = Started()
        self.man = self.anew()

    def anew(self, **more):
        self.man = DeadMan(
            self.files, self.bench.broker, self.bench.symbol, self.bench.clock, WATCH, stale_after_s=60,
            records=self.records, say=self.said.append, awake=lambda: self.awake, **more,
        )  # fmt: skip
        return self.man

    def pass_(self, seconds, *, beating=False, **facts):
        """Let time pass in steps of a quarter second."""
        for step in range(int(seconds * 4)):
            self.awake += 0.25
            self.bench.clock.sleep(0.25)
            if beating and step % 4 == 0:
                self.files.beat(WATCHED, **facts)
            self.man.look()

    def hold(self):
        bench = self.bench
        last = bench.broker.ticker(bench.symbol).last
        bench.broker.place(
            bench.order("Buy", "0.05", stop_loss=(last * D("0.9")).quantize(D(1))), may_send=lambda: True
        )
        bench.broker.place(bench.order("Buy", "0.01", bench.away()), may_send=lambda: True)

    def held(self):
        return self.bench.broker.position(self.bench.symbol).size

    @property
    def acted(self):
        return self.files.halted() is not None


@pytest.fixture
def drill(tmp_path, bench):
    made = Drill(tmp_path, bench)
    made.hold()
    return made


def test_it_does_nothing_before_the_first_sign_of_life(drill):
    assert "not armed" in drill.man.introduction()
    drill.pass_(100)
    assert not drill.acted
    assert any("nobody watches" in text for text in drill.said)
    assert drill.files.heartbeat(NAME).facts["armed"] is False


def test_a_file_of_yesterday_is_no_sign_of_life(drill):
    drill.files.beat(WATCHED)
    path = drill.files.folder / f"beat-{WATCHED}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    drill.anew()
    drill.pass_(30)
    assert not drill.acted


def test_it_stays_quiet_while_the_beat_changes_and_acts_when_it_stops(drill):
    drill.pass_(60, beating=True)
    assert drill.man.armed
    assert not drill.acted
    drill.pass_(9)
    assert not drill.acted
    drill.pass_(2.5)
    assert drill.files.halted().actor == NAME
    assert "no sign of life" in drill.files.halted().reason
    assert drill.held() == 0
    assert not drill.bench.broker.open_orders(drill.bench.symbol)
    assert drill.man.report.done
    assert len(pending_reports(drill.files)) == drill.records.count == 1
    assert drill.man.guarding


@pytest.mark.parametrize("what", ["deleted", "damaged", "another account", "repeated"])
def test_a_beat_that_does_not_change_is_none(drill, what):
    drill.pass_(5, beating=True)
    path = drill.files.folder / f"beat-{WATCHED}.json"
    if what == "deleted":
        path.unlink()
    elif what == "damaged":
        path.write_text("{")
    elif what == "another account":
        path.write_text(json.dumps({**json.loads(path.read_text()), "account": "other", "counter": 999}))
    else:
        path.write_bytes(path.read_bytes())
    drill.pass_(12)
    assert drill.acted
    assert drill.held() == 0


def test_a_machine_that_slept_gives_the_watch_its_time_again(drill):
    drill.pass_(5, beating=True)
    # frozen together with the watch, or starved: an hour in which this process did not run either
    drill.awake += 3600
    drill.man.look()
    drill.pass_(7)
    assert not drill.acted
    drill.pass_(20, beating=True)
    assert not drill.acted


def test_a_farewell_disarms_until_the_next_beat(drill):
    drill.pass_(5, beating=True)
    drill.files.farewell(WATCHED, why="told to leave the position")
    drill.pass_(100)
    assert not drill.acted
    assert any("told to leave" in text for text in drill.said)
    drill.pass_(2, beating=True)
    assert drill.man.armed
    drill.pass_(12)
    assert drill.acted


def test_an_armed_one_stays_armed_when_it_is_started_again(drill):
    drill.pass_(5, beating=True)
    drill.anew()
    assert drill.man.armed
    drill.pass_(12)
    assert drill.acted


def test_one_that_was_ended_on_purpose_is_not_armed_by_what_it_left(drill):
    drill.pass_(5, beating=True)
    drill.man.end()
    path = drill.files.folder / f"beat-{WATCHED}.json"
    path.unlink()
    assert not drill.anew().armed


def test_a_process_that_exists_arms_it_at_the_start(drill):
    drill.files.beat(WATCHED)
    assert drill.anew().armed
    drill.pass_(12)
    assert drill.acted


# --- a watch that sees nothing


def test_an_exchange_that_answers_nobody_is_not_cured_by_acting(drill):
    drill.pass_(5, beating=True)
    now = drill.bench.clock.now_ms()
    drill.bench.faults(TradeFault("outage", active_from_ms=now, active_to_ms=now + 10**9))
    drill.pass_(40, beating=True, blind_s=300.0)
    assert not drill.acted
    assert any("neither do I" in text for text in drill.said)


def test_it_acts_for_a_watch_that_is_blind_where_it_sees(drill):
    drill.pass_(5, beating=True)
    drill.pass_(9, beating=True, blind_s=61.0)
    assert not drill.acted
    drill.pass_(5, beating=True, blind_s=61.0)
    assert drill.acted
    assert drill.held() == 0


def test_a_blind_watch_of_a_flat_account_is_left_alone(drill):
    drill.bench.broker.cancel_all(drill.bench.symbol)
    drill.bench.broker.place(drill.bench.order("Sell", "0.05", reduce_only=True), may_send=lambda: True)
    drill.pass_(5, beating=True)
    drill.pass_(60, beating=True, blind_s=300.0)
    assert not drill.acted


# --- after it acted


def test_it_looks_again_and_closes_what_was_on_its_way(drill):
    drill.pass_(5, beating=True)
    drill.pass_(12)
    assert drill.held() == 0
    drill.hold()
    assert drill.held() > 0
    drill.pass_(6)
    assert drill.held() == 0
    assert not drill.bench.broker.open_orders(drill.bench.symbol)
    assert len(pending_reports(drill.files)) == 2


def test_it_goes_on_through_an_outage_until_flat(drill):
    drill.pass_(5, beating=True)
    now = drill.bench.clock.now_ms()
    drill.bench.faults(TradeFault("outage", active_from_ms=now, active_to_ms=now + 200_000))
    drill.pass_(12)
    assert drill.acted
    assert not drill.man.report.done
    drill.pass_(200)
    assert drill.man.report.done
    assert drill.held() == 0


def test_it_stops_looking_after_ten_minutes_or_when_a_person_resumes(drill):
    drill.pass_(5, beating=True)
    drill.pass_(12)
    drill.pass_(590)
    assert drill.man.guarding
    drill.pass_(30)
    assert not drill.man.guarding
    drill.pass_(60)
    assert not drill.man.armed
    drill.files.clear_halt("ann", "looked")
    drill.pass_(3, beating=True)
    drill.hold()
    drill.pass_(12)
    assert drill.held() == 0
    drill.files.clear_halt("ann", "looked")
    drill.pass_(1)
    assert not drill.man.guarding
    drill.hold()
    drill.pass_(30)
    assert drill.held() > 0, "a person resumed"


def test_a_marker_that_cannot_be_written_does_not_keep_it_from_closing(drill, monkeypatch):
    drill.pass_(5, beating=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetyFiles, "halt", full)
    drill.pass_(12)
    assert drill.held() == 0
    assert any("COULD NOT BE WRITTEN" in text for text in drill.said)


def test_a_halt_that_kept_the_position_no_longer_does(drill):
    drill.files.halt("ann", "look first", 1, keep_position=True)
    drill.pass_(5, beating=True)
    assert drill.held() > 0
    drill.pass_(12)
    assert drill.held() == 0
    assert drill.files.killed().actor == NAME
