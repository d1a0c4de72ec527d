"""Alerts reach people once, together, without secrets; what is not taken waits."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings
from mlbot_core.config.secrets import load_api_keys
from mlbot_core.errors import UsageError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_store import LedgerError
from mlbot_core.live.webhook import WebhookError
from mlbot_core.observability.alerts import (
    SILENT,
    Notifier,
    PrometheusAlerts,
    _only_one,
    channels_of,
    send_test_message,
)
from mlbot_core.observability.channels import SlackChannel, WebhookChannel
from mlbot_core.observability.redaction import LEFT_OUT, Redactor, secrets_of

NOW = 1_740_000_000_000


class Pulse:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def book(tmp_path):
    with ExecutionLedger(tmp_path, FixedClock(NOW), "emulator:1") as ledger:
        yield ledger


PLAIN = Redactor(())


def notifier(book, channels, redact=PLAIN, **more):
    return Notifier(lambda: [book], channels, redact, **more)


def slack_channel(slack):
    # retries pause on this clock, which does not wait
    return SlackChannel(SecretStr(slack.url), FixedClock(NOW))


def test_alerts_of_a_kind_are_told_together_and_once_the_most_severe_first(book, slack):
    for number in range(7):
        book.raise_alert(AlertLevel.WARNING, "order.refused", f"refused {number}", key=f"w/{number}")
    book.raise_alert(AlertLevel.CRITICAL, "deadman", "it <acted> & closed", key="c/1")
    told = notifier(book, [slack_channel(slack)])
    assert told.cycle() == 8
    first, second = (body["text"] for body in slack.bodies)
    assert "CRITICAL deadman (emulator:1)" in first
    assert "it &lt;acted&gt; &amp; closed" in first
    assert "WARNING order.refused (emulator:1) x 7" in second
    assert [f"refused {n}" in second for n in range(7)] == [False, False, True, True, True, True, True]
    assert "and 2 more before" in second
    assert book.pending_alerts() == []
    assert told.cycle() == 0
    # another process, after a restart
    assert notifier(book, [slack_channel(slack)]).cycle() == 0
    assert len(slack.bodies) == 2


def test_what_is_not_taken_waits_with_growing_pauses_and_is_told_later(book, slack):
    book.raise_alert(AlertLevel.WARNING, "x", "down", key="1")
    pulse = Pulse()
    told = notifier(book, [slack_channel(slack)], monotonic=pulse)
    slack.answers = [(503, {})] * 8
    assert told.cycle() == 0
    left = len(slack.answers)
    assert left == 4, "four attempts, then a pause"
    assert told.cycle() == 0
    assert len(slack.answers) == left, "nothing is sent within the pause"
    pulse.now = 2.1
    assert told.cycle() == 0
    assert slack.answers == []
    pulse.now = 4.2
    assert told.cycle() == 0, "the second pause is longer"
    pulse.now = 6.3
    assert told.cycle() == 1
    assert len(slack.bodies) == 1


def test_a_crash_between_telling_and_marking_tells_twice_and_loses_nothing(book, slack):
    book.raise_alert(AlertLevel.WARNING, "x", "once", key="1")
    dying = notifier(book, [slack_channel(slack)])
    marked = book.alert_delivered
    book.alert_delivered = lambda key: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        dying.cycle()
    book.alert_delivered = marked
    assert len(book.pending_alerts()) == 1
    assert notifier(book, [slack_channel(slack)]).cycle() == 1
    assert len(slack.bodies) == 2


def test_a_channel_that_has_it_is_not_told_again_for_the_sake_of_another(book, slack):
    book.raise_alert(AlertLevel.WARNING, "x", "both", key="1")
    pulse = Pulse()
    hook = WebhookChannel(SecretStr(slack.url.replace("/services/", "/hook/")), FixedClock(NOW), SecretStr("shared"))
    told = notifier(book, [slack_channel(slack), hook], monotonic=pulse)
    slack.answers = [(200, {}), *[(500, {})] * 4]
    assert told.cycle() == 0
    pulse.now = 60.0
    assert told.cycle() == 1
    assert [body["path"].split("/")[1] for body in slack.bodies] == ["services", "hook"]
    assert slack.bodies[1]["count"] == 1


def test_the_rate_is_bounded_but_not_for_critical_ones(book, slack):
    for number in range(5):
        book.raise_alert(AlertLevel.INFO, f"kind{number}", "x", key=f"i/{number}")
    pulse = Pulse()
    told = notifier(book, [slack_channel(slack)], per_minute=2, monotonic=pulse)
    assert told.cycle() == 2
    book.raise_alert(AlertLevel.CRITICAL, "now", "x", key="c")
    assert told.cycle() == 1
    pulse.now = 61.0
    assert told.cycle() == 2


def test_no_secret_leaves_in_a_message_an_error_or_a_test(book, slack, tmp_path):
    canaries = {
        "MLBOT_BYBIT_KEY": "canary-bybit-key", "MLBOT_BYBIT_SECRET": "canary-bybit-secret",
        "MLBOT_DEADMAN_SECRET": "canary-deadman", "MLBOT_CG_API": "canary-coinglass",
        "MLBOT_SLACK_WEBHOOK": slack.url, "MLBOT_PG_URL": "postgresql://bot:canary-pg-word@db/mlbot",
        "MLBOT_ALERT_WEBHOOK_SECRET": "canary-shared",
    }  # fmt: skip
    redact = Redactor(secrets_of(load_api_keys(tmp_path, canaries), canaries))
    for number, value in enumerate(canaries.values()):
        book.raise_alert(AlertLevel.WARNING, "leak", f"failed with {value} in it", key=f"l/{number}")
    book.raise_alert(AlertLevel.WARNING, "leak", "https://x?api_key=unknown-word&sign=abc", key="l/url")
    assert notifier(book, [slack_channel(slack)], redact).cycle() == 8
    settings = load_settings()
    assert send_test_message(settings, canaries) == ["slack"]
    said = " ".join(body["text"] for body in slack.bodies)
    assert "canary" not in said
    assert "unknown-word" not in said
    assert LEFT_OUT in said
    slack.answers = [(403, {})]
    with pytest.raises(WebhookError) as refused:
        send_test_message(settings, canaries)
    assert "canary" not in str(refused.value)


def test_channels_are_those_that_are_configured(slack):
    settings = load_settings()
    assert channels_of(settings, {}) == []
    assert send_test_message(settings, {}) == []
    environ = {"MLBOT_SLACK_WEBHOOK": slack.url, "MLBOT_ALERT_WEBHOOK": slack.url}
    assert [channel.name for channel in channels_of(settings, environ)] == ["slack", "webhook"]
    with pytest.raises(UsageError, match="no http or https URL") as wrong:
        send_test_message(settings, {"MLBOT_SLACK_WEBHOOK": "canary-pasted-token"})
    assert "canary" not in str(wrong.value)


def test_two_notifiers_do_not_work_on_one_home(tmp_path):
    settings = load_settings({"MLBOT_HOME": str(tmp_path)})
    with _only_one(settings), pytest.raises(UsageError, match="tell everything twice"), _only_one(settings):
        pass
    with _only_one(settings):
        pass


def test_a_prometheus_that_is_silent_is_told_once_for_each_silence_with_or_without_the_book(book, slack):
    pulse, without = Pulse(), []
    watcher = PrometheusAlerts("http://127.0.0.1:9", book, timeout_s=1.0, silent_after_s=60, monotonic=pulse)

    def look():
        with pytest.raises(OSError, match="refused"):
            watcher.bring(lambda message, keys: without.append(message) or True)

    for pulse.now in (0.0, 59.0):
        look()
    assert book.pending_alerts() == []
    for pulse.now in (61.0, 300.0):
        look()
    (alert,) = book.pending_alerts()
    assert (alert.level, alert.code) == (AlertLevel.CRITICAL, SILENT)
    assert "no rule is evaluated" in alert.message
    assert without == []

    def refuse(*_: object, **__: object):
        raise LedgerError("the book is away")

    book.raise_alert = refuse
    watcher = PrometheusAlerts("http://127.0.0.1:9", book, timeout_s=1.0, silent_after_s=60, monotonic=pulse)
    for pulse.now in (400.0, 500.0, 600.0):
        look()
    assert [message.code for message in without] == [SILENT]
