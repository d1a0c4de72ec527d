"""The drill itself: what is asked of the topology, line by line, in the order in which it is done."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bot import CONTRACT, SUPERVISOR, Bot
from canaries import forms, make_canaries, scan, search
from surroundings import FakeSlack, Postgres, Prometheus, fetch, free_port, wait

from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings
from mlbot_core.execution.broker import BrokerError
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.venues import open_broker
from mlbot_core.observability.boards import BOARDS
from mlbot_core.observability.rules import RULES

AWKWARD = ("MLBOT_CG_API", "MLBOT_BYBIT_KEY", "MLBOT_BYBIT_SECRET", "MLBOT_DEADMAN_KEY", "MLBOT_DEADMAN_SECRET",
           "MLBOT_EMULATOR_TRADE_KEY", "MLBOT_EMULATOR_TRADE_SECRET", "MLBOT_EMULATOR_DEADMAN_KEY",
           "MLBOT_EMULATOR_DEADMAN_SECRET", "postgres")  # fmt: skip
PLAIN = ("slack",)
FAULT_ALERT = "MlbotWatchBlind"
# sixty seconds of blindness, thirty of the rule's patience, then two scrapes, two evaluations and the notifier's look
FAULT_WINDOW_S = 60 + 30 + 30
EVERY_BAR_S = 75
# what has no data on a healthy topology, and why
EXCEPTIONS = {
    "mlbot_model_champion_": "no model is champion: the gate refuses the drill's single fold, and nothing overrides it",
}


@dataclass
class Line:
    """One line of the table."""

    what: str
    wanted: str
    found: str
    met: bool


@dataclass
class Drill:
    """All parts, and what was found so far.

    Parameters
    ----------
    folder
        An empty folder, where everything is put.
    minutes
        How long the topology trades before it is looked at.
    say
        Told what happens.
    """

    folder: Path
    minutes: float
    say: Callable[[str], None]
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.word, self.secrets = make_canaries(AWKWARD, PLAIN)
        self.postgres = Postgres(self.folder / "postgres", self.secrets.pop("postgres"))
        self.slack = FakeSlack(self.secrets.pop("slack"))
        exporter = f"127.0.0.1:{free_port()}"
        self.prometheus = Prometheus(self.folder / "prometheus", exporter)
        self.exporter_url = f"http://{exporter}/metrics"
        environment = {
            "MLBOT_PG_URL": self.postgres.url,
            "MLBOT_PROMETHEUS_URL": self.prometheus.url,
            "MLBOT_EXPORTER_PORT": exporter.rpartition(":")[2],
        }
        self.bot = Bot(self.folder, {**self.secrets, "MLBOT_SLACK_WEBHOOK": self.slack.url}, environment)

    def line(self, what: str, wanted: str, found: str, met: bool) -> None:
        """Add a line, and say it."""
        self.lines.append(Line(what, wanted, found, met))
        self.say(f"{'ok  ' if met else 'MISS'} {what}: {found}")

    def run(self) -> None:
        """Do everything; whatever was started is ended."""
        try:
            self.say(f"preparing a home in {self.folder}: Postgres, a synthetic history, one trained model")
            self.postgres.create()
            self.postgres.start()
            self.bot.prepare()
            self.say("starting mlbot up --live and Prometheus")
            self.bot.start()
            self.prometheus.start()
            for step in (
                self.trade,
                self.whole,
                self.fault,
                self.keys,
                self.audit,
                self.kill_services,
                self.kill_surroundings,
                self.agreement,
                self.kill_supervisor,
                self.kill_emulator,
            ):
                self._attempt(step)
            self.bot.stop()
            self._attempt(self.nothing_leaks)
        finally:
            self.stop()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do a step; one that breaks is a line that is not met, and the others go on."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the table tells of it, and the exit status
            self.line(f"the step {step.__name__}", "goes through", f"{type(error).__name__}: {error}"[:300], False)

    def stop(self) -> None:
        """End everything."""
        self.bot.stop()
        self.bot.end_left_behind()
        self.prometheus.stop()
        self.postgres.stop()
        self.slack.stop()

    # --- a quiet time

    def trade(self) -> None:
        """Let it trade for the time that was asked for, a bar every minute or so."""
        began, bars = time.monotonic(), 0
        while bars < 3 or time.monotonic() - began + EVERY_BAR_S < 60 * self.minutes:
            started = time.monotonic()
            self.bot.to_next_bar()
            bars += 1
            self.say(f"bar {bars} was decided {time.monotonic() - started:.0f} s after the clock was moved")
            # the book has the account from its first decision on, which on a slow machine is not that on the old bar
            wait(lambda: self.prometheus.query("mlbot_nav_usd"), 120, "a scrape that shows the account")
            time.sleep(max(0.0, EVERY_BAR_S - (time.monotonic() - started)))
        time.sleep(max(0.0, 60 * self.minutes - (time.monotonic() - began)))
        with self.bot.book() as book:
            orders = len(book.rows("attempts"))
        self.line(
            "trading in Postgres mode", "every bar decided, orders sent", f"{bars} bars, {orders} orders", orders > 0
        )

    def whole(self) -> None:
        """Targets, expressions, and silence of all rules."""
        targets = self.prometheus.targets()
        up = all(health == "up" for _, health in targets)
        self.line("Prometheus' targets", "all up", ", ".join(f"{one} {health}" for one, health in targets), up)
        expressions = {expr for board in BOARDS for panel in board.panels for expr, _ in panel.queries}
        expressions |= {part for rule in RULES for part in rule.parts}
        deadline = time.monotonic() + 60
        while (empty := {expr for expr in expressions if not self.prometheus.query(expr)}) - self._excepted(empty):
            if time.monotonic() > deadline:
                break
            time.sleep(5)
        excepted = self._excepted(empty)
        found = f"{len(expressions) - len(empty)} of {len(expressions)} have data"
        found += f"; empty as expected: {len(excepted)} ({'; '.join(EXCEPTIONS.values())})" if excepted else ""
        missing = sorted(empty - excepted)
        found += f"; EMPTY: {missing}" if missing else ""
        self.line("expressions of boards and rules", "all have data", found, not missing)
        firing = self.prometheus.firing()
        self.line("rules without a cause", "none fires", ", ".join(sorted(firing)) or "none", not firing)

    def _excepted(self, empty: set[str]) -> set[str]:
        if self.prometheus.number('mlbot_models{stage="champion"}'):
            return set()
        return {expr for expr in empty if any(name in expr for name in EXCEPTIONS)}

    # --- a fault

    def fault(self) -> None:
        """The exchange answers nobody: the alert, its way to Slack, and the end of both."""
        began = time.monotonic()
        self.bot.faults({"kind": "outage"})
        try:
            at = wait(lambda: self.slack.heard(FAULT_ALERT, began), FAULT_WINDOW_S + 60, FAULT_ALERT)
        finally:
            self.bot.faults()
        took = at - began
        self.line(f"exchange down: {FAULT_ALERT} at Slack", f"within {FAULT_WINDOW_S} s", f"{took:.0f} s",
                  took <= FAULT_WINDOW_S)  # fmt: skip
        ended = time.monotonic()
        quiet = "max(mlbot_risk_level) == 0 and max(mlbot_watch_blind_seconds) < 10"
        wait(lambda: FAULT_ALERT not in self.prometheus.firing() and self.prometheus.query(quiet), 180, "the end of it")
        took = time.monotonic() - ended
        self.line("exchange back: alert over, NORMAL again", "within 120 s", f"{took:.0f} s", took <= 120)
        self.bot.to_next_bar()

    def keys(self) -> None:
        """The positive control: signatures made with the canaries were verified, others are refused."""
        truth = self.bot.truth()
        verified, orders = truth["verified"], len(truth["accounts"][self.bot.uid]["orders"])
        found = f"{verified} verified, {orders} orders"
        self.line("requests signed with canary keys", "verified by the exchange", found, verified > 0 and orders > 0)
        environ = {key: value for key, value in self.bot.environment.items() if key not in self.secrets}
        environ["MLBOT_EMULATOR_URL"] = self.bot.emulator_url
        try:
            with open_broker(load_settings(environ), clock_from_env(environ["MLBOT_CLOCK"]), environ) as opened:
                said = f"opened {opened.account}"
        except BrokerError as error:
            said = f"refused: {error}"
        self.line("requests signed with another key", "refused", said[:120], said.startswith("refused"))
        needles = forms(self.word)
        running = self.bot.processes()
        telling = [pid for pid, command in running.items() if search([command], needles)]
        self.line("command lines of all processes", "no canary", f"{len(running)} processes, {len(telling)} with one",
                  not telling and len(running) > 8)  # fmt: skip

    def audit(self) -> None:
        """What a person asks of the books while they are in Postgres: each answer, and the newest decisions again."""
        with self.bot.book() as book:
            orders = [row["order_link_id"] for row in book.rows("attempts")][-2:]
            decisions = [row["decision_id"] for row in book.rows("decisions") if row["trigger"] == "bar"][-2:]
        asked: list[tuple[str, ...]] = [("explain", name) for name in orders]
        asked += [("replay", name) for name in decisions]
        asked += [("status",), ("trials", "verify"), ("models", "list"), ("bandit", "status"), ("db", "check")]
        failed = []
        for words in asked:
            done = self.bot.mlbot(*words, "--json", check=False)
            if done.returncode != 0:
                failed.append(f"mlbot {' '.join(words)}: {(done.stderr or done.stdout).strip()[-200:]}")
        found = f"{len(asked) - len(failed)} of {len(asked)}"
        self.line("explain, replay, status, trials, models, bandit, db", "each answers",
                  "; ".join([found, *failed]), not failed and len(orders) > 0)  # fmt: skip

    # --- kills

    def _kill(self, name: str, recovered: Callable[[int], Any], within_s: float = 120) -> None:
        """Kill a service; the supervisor has to say so, and the next process has to do its work."""
        before, mark, began = self.bot.pid(name), len(self.bot.said()), time.monotonic()
        assert before is not None
        os.kill(before, signal.SIGKILL)
        wait(
            lambda: f"{name} ended with status -9" in self.bot.said()[mark:],
            30,
            f"the supervisor's word on {name}",
            0.05,
        )
        seen = time.monotonic() - began
        wait(lambda: self.bot.pid(name) not in (None, before), 90, f"{name} to be started again")
        pid = self.bot.pid(name)
        assert pid is not None
        wait(lambda: recovered(pid), within_s, f"{name} to work again", 0.5)
        took = time.monotonic() - began
        self.line(f"{name} killed", f"seen in 5 s, back in {within_s:.0f} s",
                  f"seen after {seen:.1f} s (supervisor), back after {took:.0f} s", seen <= 5)  # fmt: skip

    def kill_services(self) -> None:
        """Every process of the supervisor but the emulator, which has a memory to lose."""
        self._kill("exporter", lambda _: _answers(self.exporter_url))
        self._kill("alerts", lambda _: self._tells())
        self._kill("webserver", lambda _: _answers(f"http://127.0.0.1:{self.bot.port}/server_info"))
        for name in ("code-server", "daemon"):
            self._kill(name, lambda _: self.bot.to_next_bar() > 0, 300)
        for name in ("risk-watch", "dead-man"):
            self._kill(name, partial(self._beats, name))
        halted = self.bot.halted()
        self.line("kills so far", "no halt: all came back in time", "HALTED" if halted else "no halt", not halted)

    def _beats(self, name: str, pid: int) -> bool:
        return (self.bot.beat(name) or {}).get("pid") == pid

    def _tells(self) -> bool:
        """Raise an alert and wait until somebody is told."""
        began = time.monotonic()
        code = f"drill-{int(began * 1000)}"
        with self.bot.book() as book:
            book.raise_alert(AlertLevel.CRITICAL, code, "a drill: nothing has to be done", key=code)
        wait(lambda: self.slack.heard(code, began), 60, "an alert of the book at Slack")
        return True

    def kill_surroundings(self) -> None:
        """Prometheus and Postgres stay dead until somebody was told of it; then a person starts them again."""
        for name, part, word, window_s in (
            ("Prometheus", self.prometheus, "prometheus_silent", 60 + 30),
            ("Postgres", self.postgres, "MlbotBlind", 120 + 45),
        ):
            began = time.monotonic()
            part.kill()
            at = wait(partial(self.slack.heard, word, began), window_s + 90, f"{word} at Slack")
            part.start()
            back = time.monotonic()
            wait(self._healthy, 240, f"everything after {name}", 1.0)
            took = time.monotonic() - back
            self.line(f"{name} killed", f"{word} at Slack within {window_s} s, all sources back in 120 s",
                      f"told after {at - began:.0f} s, back {took:.0f} s after its start",
                      at - began <= window_s and took <= 120)  # fmt: skip
            self.bot.to_next_bar(360)
        halted = self.bot.halted()
        self.line("after both", "bars are decided, no halt", "HALTED" if halted else "decided, no halt", not halted)

    def _healthy(self) -> bool:
        down = self.prometheus.query("mlbot_exporter_source_up == 0 or up == 0")
        return bool(self.prometheus.query("up == 1")) and not down and bool(self.prometheus.query("mlbot_nav_usd"))

    def agreement(self) -> None:
        """After all of it the book and the exchange tell the same story, and nothing was sent twice."""
        truth = self.bot.truth()["accounts"][self.bot.uid]
        with self.bot.book() as book:
            mine = {fill.exec_id for fill in book.executions(CONTRACT)}
            links = [row["order_link_id"] for row in book.rows("attempts")]
            bars = [row["ts"] for row in book.rows("decisions") if row["trigger"] == "bar"]
        theirs = {row["execId"] for row in truth["executions"]}
        sent = [row["orderLinkId"] for row in truth["orders"] if row["orderLinkId"]]
        steps = {second - first for first, second in itertools.pairwise(bars)}
        once = len(links) == len(set(links)) and len(sent) == len(set(sent)) and set(sent) <= set(links)
        self.line("book and exchange", "same fills, no order twice, each bar once",
                  f"{len(mine)} and {len(theirs)} fills, {len(sent)} orders, {len(bars)} bars",
                  mine == theirs and once and len(steps) == 1)  # fmt: skip

    def kill_supervisor(self) -> None:
        """The supervisor is killed: its services go on, and the next one ends them first and starts anew."""
        process = self.bot.process
        assert process is not None
        process.kill()
        process.wait()
        time.sleep(5)
        beat = self.bot.beat("risk-watch") or {}
        alive = sum(1 for row in self.bot.services().values() if Path(f"/proc/{row['pid']}").exists())
        began = time.monotonic()
        refused = ""
        try:
            self.bot.start()
        except RuntimeError as error:
            # as systemd does: end everything of the unit, then start it again
            refused = f"; the next start refused: {error}"
            self.bot.end_left_behind()
            began = time.monotonic()
            self.bot.start()
        took = time.monotonic() - began
        told = "was left behind by a killed mlbot" in self.bot.said()
        self.line(f"{SUPERVISOR} killed", "services go on; the next start ends them and takes over",
                  f"{alive} went on (watch at beat {beat.get('counter')}), up again in {took:.0f} s{refused}"[:400],
                  alive >= 8 and told and not refused)  # fmt: skip
        self.bot.to_next_bar(360)

    def kill_emulator(self) -> None:
        """The exchange loses its memory: it must come back, and the book's contradiction must be told."""
        with self.bot.book() as book:
            held = len(book.executions(CONTRACT))
        began = time.monotonic()
        self._kill("emulator", lambda _: _answers(f"{self.bot.emulator_url}/_emulator/state"))
        wait(lambda: self.prometheus.number("max(mlbot_risk_level)"), 180, "the risk state to say so", 1.0)
        causes = self.prometheus.query("mlbot_risk_cause_active == 1")
        names = sorted({row["metric"]["cause"] for row in causes})
        self.line("an exchange without memory", "only reducing is allowed",
                  f"{', '.join(names)} after {time.monotonic() - began:.0f} s; {held} fills were in the book",
                  bool(names))  # fmt: skip

    # --- secrets

    def nothing_leaks(self) -> None:
        """Everything that was left on the disk, in Postgres and in Prometheus is searched for the canaries."""
        dump = self.folder / "postgres-dump.sql"
        dump.write_bytes(self.postgres.dump())
        (self.folder / "prometheus-series.json").write_bytes(self.prometheus.labels())
        (self.folder / "slack.txt").write_text("\n".join(text for _, text in self.slack.told), encoding="utf-8")
        self.prometheus.stop()
        self.postgres.stop()
        control, _ = scan(self.bot.config, self.word)
        leaks, files = scan(self.folder, self.word, [self.bot.keys_file])
        for leak in leaks:
            self.say(f"LEAK {leak.form}: {leak.place}")
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        self.line("the search finds api_keys.yaml", "found", ", ".join(sorted({leak.place for leak in control})),
                  any(leak.place == self.bot.keys_file.name for leak in control))  # fmt: skip
        self.line("canaries in everything else", "none",
                  f"{len(leaks)} in {files} files, {size / 1e6:.0f} MB, dump of {dump.stat().st_size / 1e6:.1f} MB",
                  not leaks)  # fmt: skip
        wrong = self.slack.wrong_paths
        found = f"{len(self.slack.told)} messages, {wrong} elsewhere"
        self.line(
            "webhook's secret address", "the only one that was asked", found, wrong == 0 and bool(self.slack.told)
        )


def _answers(url: str) -> bool:
    try:
        if url.endswith("/metrics"):
            import urllib.request

            with urllib.request.urlopen(url, timeout=5) as answer:
                return b"mlbot_exporter_source_up" in answer.read()
        fetch(url, timeout_s=5)
    except (OSError, ValueError):
        return False
    return True
