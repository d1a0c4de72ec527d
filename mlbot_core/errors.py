"""Errors a person can act on: each names the thing, the value and the next step."""

from __future__ import annotations


class MlbotError(Exception):
    """Base of every error that mlbot raises on purpose.

    ``exit_code`` is what the command line returns when the error reaches it: 1 for a failure of the
    work itself, 2 for a mistake in what was asked or configured.
    """

    exit_code = 1


class UsageError(MlbotError):
    """What was asked for cannot be: a wrong interval, date, name or option."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or environment variable is missing, malformed or contradictory."""


class SourceError(MlbotError):
    """A data source did not deliver. Nothing that was stored before is touched."""


class BadDataError(SourceError):
    """A source delivered something that must not be stored: truncated, duplicated, inconsistent."""


class PlanError(SourceError):
    """The API key's plan does not include what was asked. Never retried."""


class KeyRejectedError(SourceError):
    """The API key is missing, wrong or expired. Never retried."""


class RateLimitedError(SourceError):
    """The source went on refusing for the rate of calls after all waits were used up."""


class WarehouseError(MlbotError):
    """The store refused an operation; the message says what is stored and what to do."""


class LockTimeoutError(WarehouseError):
    """Another process held the store for longer than the bounded wait."""


class VersionConflictError(WarehouseError):
    """Two different values claim the same (bar, observed_at), or an observation comes from the past of the store."""


class QualityRefusedError(MlbotError):
    """A consumer refused its input because a quality verdict failed or is missing."""


class MissingDataError(MlbotError):
    """An upstream table has no rows for what was asked; the message names the command that makes them."""
