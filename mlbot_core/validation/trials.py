"""The trial ledger: every configuration ever evaluated, with its out-of-fold daily returns. Nothing can be un-counted.

Why: the best of many skill-less trials looks skilful. The deflated Sharpe ratio and the probability of backtest
overfitting (Bailey and Lopez de Prado 2014; Bailey, Borwein, Lopez de Prado, Zhu 2017) need ALL trials, across runs and
months, and the losers above all.

What counts
-----------
A *trial* is a distinct configuration: the hash of everything a person could have chosen differently (market, model
type, parameters, feature set, targets, walk-forward windows, costs, sizing), not of the data or the code.

=====================================================  ===============================================================
what happens                                           what the ledger does
=====================================================  ===============================================================
same configuration, same data, same returns            nothing: the row that is there is returned (idempotent)
same configuration, more or other data                 a new row, a new *evaluation* of the same trial; N stays
same configuration, same data, other returns           a new row, and N rises: something that is not written in the
                                                       configuration was changed (code), which is a choice like any
another configuration                                  a new row, and N rises
=====================================================  ===============================================================

Returns are the same when they agree to nine decimals, so another machine's last bits count nothing. N is the sum over
configurations of the largest number of different series that one data version gave.

Where
-----
SQLite, ``<home>/trials.sqlite`` (WAL, ``synchronous=FULL``), or Postgres where ``MLBOT_PG_URL`` is set; not in the
warehouse, which may be deleted and made again. Appends are serialised among processes (a fair file lock, then
``BEGIN IMMEDIATE`` or an advisory lock), and the store itself refuses two rows after the same predecessor, so a chain
cannot fork. Rows are hash-chained (:mod:`mlbot_core.validation.trials_chain`), heads are kept in a second place
(:mod:`mlbot_core.validation.trials_heads`), and both are checked whenever the ledger is read. Whoever may write to all
of these places can still forge them together; heads printed in reports and stored with verdicts are the third witness
(``mlbot trials verify --head``).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import Clock
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.significance import sharpe_ratio
from mlbot_core.validation.trials_chain import (
    GENESIS,
    NAMESPACES,
    DailyReturns,
    Head,
    LedgerError,
    LedgerTamperedError,
    TrialRow,
    canonical,
    chain_problems,
    head_problems,
    trial_id,
)
from mlbot_core.validation.trials_heads import HeadFile
from mlbot_core.validation.trials_store import TrialStore
from mlbot_core.warehouse.locks import FileLock

__all__ = [
    "NAMESPACES",
    "Appended",
    "DailyReturns",
    "Head",
    "LedgerError",
    "LedgerTamperedError",
    "TrialHistory",
    "TrialLedger",
    "TrialRow",
    "open_ledger",
]

FILE_NAME: Final = "trials.sqlite"
HEADS_FOLDER: Final = "trials-heads"


@dataclass(frozen=True)
class Appended:
    """What became of an evaluation: its row, and whether the row is new."""

    row: TrialRow
    new: bool


@dataclass(frozen=True, eq=False)
class TrialHistory:
    """Every row of a namespace, verified.

    Parameters
    ----------
    namespace
        Which chain.
    rows
        In the order of their numbers.
    head
        The newest row's; to be named in every report and verdict made from this history.
    """

    namespace: str
    rows: tuple[TrialRow, ...]
    head: Head

    @cached_property
    def counted(self) -> tuple[TrialRow, ...]:
        """One row for each counted trial, in the order of their first evaluation; their number is N.

        A configuration is represented by its newest row, and by as many older ones as it has further variants.
        """
        found: list[TrialRow] = []
        for rows in self._by_trial().values():
            series: dict[str, dict[str, TrialRow]] = defaultdict(dict)
            for row in rows:
                series[row.data_version][row.series_id] = row
            most = max(series.values(), key=len)
            newest = rows[-1]
            others = [row for name, row in most.items() if name != newest.series_id]
            found += [newest, *others[len(others) - (len(most) - 1) :]] if len(most) > 1 else [newest]
        return tuple(found)

    @property
    def n_trials(self) -> int:
        """N: how many trials were ever evaluated here."""
        return len(self.counted)

    @property
    def n_configurations(self) -> int:
        """How many distinct configurations, variants by code counted once."""
        return len(self._by_trial())

    def sharpes(self) -> npt.NDArray[np.float64]:
        """Return the annual Sharpe ratio of each counted trial, float64[N]; NaN where it never traded."""
        return np.array([sharpe_ratio(row.returns.values) for row in self.counted], dtype=np.float64)

    def matrix(self, start_ms: int, end_ms: int) -> npt.NDArray[np.float64]:
        """Return the counted trials' returns side by side on the UTC days of ``[start_ms, end_ms)``.

        Shape (days, N), in the order of ``counted``; NaN where a trial has no such day.

        Raises
        ------
        UsageError
            If the period does not consist of whole UTC days.
        """
        if start_ms % DAY_MS or end_ms % DAY_MS or end_ms < start_ms:
            raise UsageError(f"[{start_ms}, {end_ms}) is not a period of whole UTC days")
        out = np.full(((end_ms - start_ms) // DAY_MS, self.n_trials), np.nan)
        for column, row in enumerate(self.counted):
            first, last = max(start_ms, row.returns.first_day_ms), min(end_ms, row.returns.end_ms)
            if first < last:
                into = slice((first - start_ms) // DAY_MS, (last - start_ms) // DAY_MS)
                begin = (first - row.returns.first_day_ms) // DAY_MS
                out[into, column] = row.returns.values[begin : begin + (into.stop - into.start)]
        return out

    def _by_trial(self) -> dict[str, list[TrialRow]]:
        found: dict[str, list[TrialRow]] = defaultdict(list)
        for row in self.rows:
            found[row.trial_id].append(row)
        return found


class TrialLedger:
    """The ledger of one home.

    Parameters
    ----------
    home
        Folder of the SQLite file, the heads and the lock; created on first use.
    clock
        Says when a trial was recorded.
    url
        SQLAlchemy URL of a Postgres database; None for SQLite.
    timeout_s
        Longest wait for other processes, in seconds.
    """

    def __init__(self, home: Path, clock: Clock, *, url: str | None = None, timeout_s: float = 60.0) -> None:
        self.home = home
        self._clock = clock
        self._store = TrialStore(home / FILE_NAME, url, timeout_s)
        self._lock = FileLock(home / FILE_NAME, timeout_s)
        self._heads = home / HEADS_FOLDER / self._store.identity

    def append(
        self,
        namespace: str,
        configuration: Mapping[str, Any],
        returns: DailyReturns,
        *,
        data_version: str,
        run_id: str,
        info: Mapping[str, Any] | None = None,
    ) -> Appended:
        """Record an evaluation, durably; one that is there already is returned as it is.

        Parameters
        ----------
        namespace
            One of ``NAMESPACES``.
        configuration
            Everything a person could have chosen differently, plain JSON; its hash is the trial.
        returns
            Out of fold, net, unit exposure.
        data_version
            Hash or name of the data that it was evaluated on.
        run_id
            Which run did it.
        info
            Worth knowing, not part of the identity; plain JSON.

        Raises
        ------
        UsageError
            If the namespace is unknown or something is not plain JSON.
        LedgerTamperedError
            If the end of the chain is not what was recorded; nothing is added to a broken chain.
        LedgerError
            If the store cannot be opened or written.
        LockTimeoutError
            If other processes held the ledger longer than the bounded wait.
        """
        _check_namespace(namespace)
        text = canonical(configuration, "configuration")
        facts = canonical(info or {}, "info")
        heads = HeadFile(self._heads, namespace)
        self.home.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive():
            with self._store.transaction(namespace) as writing:
                head = writing.head()
                self._require_end(heads, head, writing.hash_of)
                heads.begin()
                row = writing.find(trial_id(text), data_version, returns.identity)
                new = row is None
                if row is None:
                    row = _row(head, text, facts, returns, data_version, run_id, self._clock.now_ms())
                    writing.add(row)
                newest = row.head if new else head
            # only what is committed is a fact; a crash before this line leaves the heads one behind, which is allowed
            heads.record(newest)
        return Appended(row, new)

    def read(self, namespace: str) -> TrialHistory:
        """Return the whole history of a namespace.

        Raises
        ------
        LedgerTamperedError
            If a row was changed, removed or cut off; every finding is named.
        LedgerError
            If the store cannot be read.
        """
        history, problems = self.examine(namespace)
        if problems:
            raise LedgerTamperedError(
                f"the trial ledger in {self.home} was tampered with or damaged: {'; '.join(problems)}; restore "
                f"{FILE_NAME} and {HEADS_FOLDER} from a backup: without it no count of trials can be believed"
            )
        return history

    def examine(self, namespace: str, witnesses: Iterable[Head] = ()) -> tuple[TrialHistory, list[str]]:
        """Return the history as it is stored, and what is wrong with it, in words.

        Parameters
        ----------
        witnesses
            Heads from reports or stored verdicts that the chain must still hold.

        Raises
        ------
        LedgerError
            If the store cannot be read.
        """
        _check_namespace(namespace)
        # heads first: the store can only have grown by the time that it is read
        heads = HeadFile(self._heads, namespace)
        problems: list[str] = []
        recorded: list[Head] = []
        try:
            recorded = heads.read()
        except LedgerTamperedError as error:
            problems.append(str(error))
        try:
            rows, head = self._store.read(namespace)
        except LedgerTamperedError as error:
            return TrialHistory(namespace, (), Head(namespace, 0, GENESIS)), [*problems, str(error)]
        mine = [witness for witness in witnesses if witness.namespace == namespace]
        problems += chain_problems(namespace, rows, head, [*recorded, *mine])
        if rows and not heads.exists() and not self._store.shared:
            problems.append(f"{namespace}: {heads.path} is missing, which names what the ledger once held")
        return TrialHistory(namespace, tuple(rows), head), problems

    def head(self, namespace: str) -> Head:
        """Return the newest row's number and hash, from the store, unverified."""
        _check_namespace(namespace)
        return self._store.read_head(namespace)

    def _require_end(self, heads: HeadFile, head: Head, hash_of: Callable[[int], str]) -> None:
        """Refuse to add to a chain whose end is not what was recorded."""
        recorded = heads.read()
        problems = []
        if head.count and not recorded and not self._store.shared:
            problems.append(f"{heads.path} is missing")
        if head.count and hash_of(head.count) != head.hash:
            problems.append(f"{head.namespace}: the newest row is not number {head.count} with hash {head.hash[:12]}")
        for last in recorded[-1:]:
            hashes = {head.count: head.hash}
            if last.count < head.count:
                hashes[last.count] = hash_of(last.count)
            problems += head_problems(head.namespace, hashes, [last])
        if problems:
            raise LedgerTamperedError(
                f"nothing is added to a broken trial ledger: {'; '.join(problems)}; run `mlbot trials verify`"
            )


def open_ledger(home: Path, clock: Clock, environ: Mapping[str, str] | None = None) -> TrialLedger:
    """Return the ledger of a home: in Postgres where ``MLBOT_PG_URL`` is set, else in a file there."""
    env = os.environ if environ is None else environ
    return TrialLedger(home, clock, url=env.get("MLBOT_PG_URL") or None)


def _row(
    head: Head, configuration: str, info: str, returns: DailyReturns, data_version: str, run_id: str, now_ms: int
) -> TrialRow:
    values: dict[str, Any] = {
        "namespace": head.namespace,
        "seq": head.count + 1,
        "trial_id": trial_id(configuration),
        "data_version": data_version,
        "series_id": returns.identity,
        "recorded_at_ms": now_ms,
        "run_id": run_id,
        "configuration": configuration,
        "info": info,
        "returns": returns,
        "prev_hash": head.hash,
    }
    return TrialRow(**values, row_hash=TrialRow(**values, row_hash="").expected_hash())


def _check_namespace(namespace: str) -> None:
    if namespace not in NAMESPACES:
        raise UsageError(f"trial namespace {namespace!r} is unknown; choose one of {', '.join(NAMESPACES)}")
