"""Where alerts go: a Slack incoming webhook, and any other server by one plain JSON message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import SecretStr

from mlbot_core.clock import Clock, format_utc
from mlbot_core.execution.ledger_risk import Alert, AlertLevel
from mlbot_core.live.webhook import post

_SEVERITY: Final = {AlertLevel.CRITICAL: 0, AlertLevel.WARNING: 1, AlertLevel.INFO: 2}
_SIGNS: Final = {
    AlertLevel.CRITICAL: ":rotating_light:",
    AlertLevel.WARNING: ":warning:",
    AlertLevel.INFO: ":information_source:",
}
_MOST_LINES: Final = 5
_LONGEST: Final = 600


@dataclass(frozen=True)
class Message:
    """Alerts of one kind, told together.

    Parameters
    ----------
    account, code
        Whose, and what kind.
    lines
        The newest ones' texts with their times, without secrets.
    count
        How many alerts it stands for.
    """

    level: AlertLevel
    account: str
    code: str
    lines: tuple[str, ...]
    count: int

    def text(self) -> str:
        """Return it for people."""
        head = f"{self.level.value.upper()} {self.code} ({self.account})" + (
            f" x {self.count}" if self.count > 1 else ""
        )
        hidden = self.count - len(self.lines)
        return "\n".join([head, *self.lines, *([f"and {hidden} more before"] if hidden else [])])


def grouped(alerts: Sequence[tuple[str, Alert]], redact: Any) -> list[tuple[Message, list[tuple[str, Alert]]]]:
    """Return one message a kind (account, level, code) with the alerts in it; the most severe first, then the oldest.

    Parameters
    ----------
    alerts
        Account and alert.
    redact
        Takes secrets out of a text.
    """
    kinds: dict[tuple[str, AlertLevel, str], list[tuple[str, Alert]]] = {}
    for account, alert in alerts:
        kinds.setdefault((account, alert.level, alert.code), []).append((account, alert))
    made = []
    for (account, level, code), members in kinds.items():
        members.sort(key=lambda member: member[1].raised_ms)
        newest = members[-_MOST_LINES:]
        lines = tuple(f"{format_utc(one.raised_ms)} {redact(one.message)[:_LONGEST]}" for _, one in newest)
        made.append((Message(level, account, redact(code), lines, len(members)), members))
    return sorted(made, key=lambda pair: (_SEVERITY[pair[0].level], pair[1][0][1].raised_ms))


class Channel(Protocol):
    """Somewhere that people read.

    Attributes
    ----------
    name
        For logs.
    """

    name: str

    def send(self, message: Message) -> None:
        """Tell it.

        Raises
        ------
        WebhookError
            If it was not taken.
        """
        ...


class SlackChannel:
    """A Slack incoming webhook (api.slack.com/messaging/webhooks): ``{"text": ...}``."""

    name = "slack"

    def __init__(self, url: SecretStr, clock: Clock) -> None:
        self._url = url
        self._clock = clock

    def send(self, message: Message) -> None:
        """Tell it; retried by :func:`mlbot_core.live.webhook.post`, then the error is raised."""
        text = message.text().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        post(self._url, {"text": f"{_SIGNS[message.level]} {text}"}, self._clock)


class WebhookChannel:
    """Any server that takes JSON, signed where a secret is shared."""

    name = "webhook"

    def __init__(self, url: SecretStr, clock: Clock, secret: SecretStr | None = None) -> None:
        self._url = url
        self._clock = clock
        self._secret = secret

    def send(self, message: Message) -> None:
        """Tell it; as of :class:`SlackChannel`."""
        body = {
            "level": message.level.value,
            "account": message.account,
            "code": message.code,
            "count": message.count,
            "text": message.text(),
        }
        post(self._url, body, self._clock, self._secret)
