"""What a row of the trial ledger is, and how it hangs on the row before. Pure: no file, no store.

Every row carries the hash of its own content and of the row before it in its namespace, so a row cannot be changed,
taken out or put in without every later hash changing. The end of a chain cannot defend itself (a shorter chain is a
valid chain), so the newest (count, hash), the *head*, is written down in other places: see
:mod:`mlbot_core.validation.trials_heads`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.timeframe import DAY_MS

FloatArray = npt.NDArray[np.float64]

NAMESPACES: Final = ("research", "demo", "null", "test")
"""``research``: recorded and real markets; ``demo``: the synthetic market with a planted signal; ``null``: the
synthetic market without one and the null bench; ``test``. Each has its own chain and its own count."""

GENESIS: Final = "0" * 64
# Two machines may differ in the last bits of a return; what is counted must not.
_IDENTITY_DECIMALS: Final = 9


class LedgerError(MlbotError):
    """The trial ledger refused an operation."""


class LedgerTamperedError(LedgerError):
    """Rows of the ledger were changed, removed or cut off; every finding is named."""


@dataclass(frozen=True)
class Head:
    """The newest row of a namespace's chain.

    Parameters
    ----------
    namespace
        One of ``NAMESPACES``.
    count
        Rows so far; the newest row's number, from 1. 0 for an empty chain.
    hash
        Its hash, 64 hex digits; of an empty chain 64 zeros.
    """

    namespace: str
    count: int
    hash: str

    def __str__(self) -> str:
        return f"{self.namespace}:{self.count}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what ``str`` writes.

        Raises
        ------
        UsageError
            If it is something else.
        """
        parts = text.split(":")
        if len(parts) != 3 or parts[0] not in NAMESPACES or not parts[1].isdigit() or len(parts[2]) != 64:
            raise UsageError(f"{text!r} is not a ledger head; write it as reports do: namespace:count:hash")
        return cls(parts[0], int(parts[1]), parts[2])


@dataclass(frozen=True, eq=False)
class DailyReturns:
    """A daily return series without holes.

    Parameters
    ----------
    first_day_ms
        Start of the first UTC day, UTC ms.
    values
        Net simple returns (fractions) at unit exposure, one a calendar day, flat days 0; float64[days].

    Raises
    ------
    UsageError
        If it is empty, does not begin at midnight, or holds NaN or infinity.
    """

    first_day_ms: int
    values: FloatArray

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype="<f8") + 0.0  # the sum turns -0.0 into 0.0
        if values.ndim != 1 or len(values) == 0:
            raise UsageError(f"a trial needs a series of daily returns, got shape {values.shape}")
        if self.first_day_ms % DAY_MS:
            raise UsageError(f"a trial's first day {self.first_day_ms} is not a UTC midnight")
        if not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise UsageError(f"return {at} of {len(values)} is {values[at]}; a day without trading is 0, never NaN")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @property
    def days(self) -> npt.NDArray[np.int64]:
        """Starts of the days, UTC ms, int64[days]."""
        return self.first_day_ms + DAY_MS * np.arange(len(self.values), dtype=np.int64)

    @property
    def end_ms(self) -> int:
        """End of the last day, UTC ms, exclusive."""
        return self.first_day_ms + DAY_MS * len(self.values)

    def to_bytes(self) -> bytes:
        """Return the values as little-endian float64."""
        return bytes(self.values.tobytes())

    @property
    def digest(self) -> str:
        """Hash of every bit: what the chain protects."""
        return _digest(self.first_day_ms, self.to_bytes())

    @property
    def identity(self) -> str:
        """Hash of the returns to nine decimals: the same result on another machine is the same result."""
        rounded = np.round(self.values, _IDENTITY_DECIMALS) + 0.0
        return _digest(self.first_day_ms, bytes(rounded.tobytes()))


@dataclass(frozen=True, eq=False)
class TrialRow:
    """One evaluation of one configuration, as stored.

    Parameters
    ----------
    namespace, seq
        Its chain and its number there, from 1.
    trial_id
        Hash of the configuration.
    data_version
        Hash of the data that it was evaluated on.
    series_id
        Identity of the returns.
    recorded_at_ms, run_id
        When (injected clock, UTC ms) and by which run.
    configuration
        Everything a person could have chosen differently, as canonical JSON.
    info
        What is worth knowing besides (model version, code version), as canonical JSON; not part of the identity.
    returns
        Daily, out of fold, net, unit exposure.
    prev_hash, row_hash
        The chain.
    """

    namespace: str
    seq: int
    trial_id: str
    data_version: str
    series_id: str
    recorded_at_ms: int
    run_id: str
    configuration: str
    info: str
    returns: DailyReturns
    prev_hash: str
    row_hash: str

    @property
    def head(self) -> Head:
        """The head of the chain right after this row."""
        return Head(self.namespace, self.seq, self.row_hash)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as plain values."""
        value: dict[str, Any] = json.loads(self.configuration)
        return value

    @property
    def facts(self) -> dict[str, Any]:
        """The info as plain values."""
        value: dict[str, Any] = json.loads(self.info)
        return value

    def expected_hash(self) -> str:
        """Return the hash that this content and this predecessor must have."""
        content = [
            self.namespace,
            self.seq,
            self.trial_id,
            self.data_version,
            self.series_id,
            self.recorded_at_ms,
            self.run_id,
            self.configuration,
            self.info,
            self.returns.digest,
            self.prev_hash,
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def canonical(value: Mapping[str, Any], what: str) -> str:
    """Return canonical JSON of a mapping.

    Raises
    ------
    UsageError
        If it is not plain JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {what} of a trial must be plain JSON: {error}") from error


def trial_id(configuration: str) -> str:
    """Return the identity of a configuration given as canonical JSON, 64 hex digits."""
    return hashlib.sha256(configuration.encode()).hexdigest()


def chain_problems(namespace: str, rows: Sequence[TrialRow], recorded: Head, witnesses: Iterable[Head]) -> list[str]:
    """Return what is wrong with a chain, in words; empty for a sound one.

    Parameters
    ----------
    rows
        In the order of their numbers.
    recorded
        The head as the store itself keeps it.
    witnesses
        Heads written down elsewhere: the chain must still hold every one of them.
    """
    found: list[str] = []
    before, expected = GENESIS, 1
    for row in rows:
        if row.seq != expected:
            lost = f"row {expected}" if row.seq == expected + 1 else f"rows {expected} to {row.seq - 1}"
            found.append(f"{namespace}: {lost} of the ledger {'is' if row.seq == expected + 1 else 'are'} missing")
        elif row.prev_hash != before:
            found.append(f"{namespace}: row {row.seq} does not follow row {row.seq - 1}, which was changed or replaced")
        when = format_utc(row.recorded_at_ms)
        if row.row_hash != row.expected_hash():
            found.append(f"{namespace}: row {row.seq} (trial {row.trial_id[:12]}, recorded {when}) was changed")
        elif row.trial_id != trial_id(row.configuration) or row.series_id != row.returns.identity:
            found.append(f"{namespace}: row {row.seq} (recorded {when}) does not have the identity it claims")
        before, expected = row.row_hash, row.seq + 1
    hashes = {0: GENESIS} | {row.seq: row.row_hash for row in rows}
    if (recorded.count, recorded.hash) != (expected - 1, before):
        found.append(
            f"{namespace}: the store's own head names {recorded.count} rows, the newest {recorded.hash[:12]}; "
            f"it holds {len(rows)}, the newest {before[:12]}"
        )
    found += head_problems(namespace, hashes, witnesses)
    return found


def head_problems(namespace: str, hashes: Mapping[int, str], witnesses: Iterable[Head]) -> list[str]:
    """Return which heads written down elsewhere a chain no longer holds.

    Parameters
    ----------
    hashes
        Row number to hash, 0 for the empty chain.
    """
    found: dict[str, None] = {}
    newest = max(hashes)
    for head in witnesses:
        if head.count > newest:
            lost = f"row {head.count}" if head.count == newest + 1 else f"rows {newest + 1} to {head.count}"
            found[f"{namespace}: {lost} cut off: the ledger once had {head.count} rows and now has {newest}"] = None
        elif hashes.get(head.count) != head.hash:
            found[f"{namespace}: row {head.count} is not the one that was recorded ({head.hash[:12]})"] = None
    return list(found)


def _digest(first_day_ms: int, payload: bytes) -> str:
    prefix = f"{first_day_ms}:{len(payload) // 8}:".encode()
    return hashlib.sha256(prefix + payload).hexdigest()
