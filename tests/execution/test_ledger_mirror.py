"""What stays in memory of the book never says anything else than the book itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from decimal import Decimal as D
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import PositionView, fold_positions
from mlbot_core.execution.ledger_mirror import PositionFold
from mlbot_core.execution.types import ExecType, Execution, Side, WalletEvent

ACCOUNT, SYMBOL = "test:1", "BTCUSDT"
FIRST = Execution(
    "e0",
    ExecType.TRADE,
    "o",
    "",
    SYMBOL,
    Side.BUY,
    D("0.01"),
    D(50_000),
    D(500),
    D("0.1"),
    D("0.00055"),
    False,
    D(0),
    1,
)


def fill(number: int, side: Side = Side.BUY, at: int | None = None, symbol: str = SYMBOL) -> Execution:
    when = number if at is None else at
    return replace(FIRST, exec_id=f"e{number}", side=side, exec_ms=when, seq=number, symbol=symbol)


def event(number: int, change: str = "1", coin: str = "USDT") -> WalletEvent:
    return WalletEvent(f"w{number}", "TRANSFER_IN", coin, number, D(change), D(0), D(0), D(change), D(1_000))


def opened(home, clock=None) -> ExecutionLedger:
    book = ExecutionLedger(home, clock or FixedClock(1_000), ACCOUNT)
    book.open_book(SYMBOL, 0, D(1_000), (), (), 0)
    return book


def says(book: ExecutionLedger) -> tuple:
    """What a book answers from memory."""
    return book.held(SYMBOL), book.balance(SYMBOL), book.fills_after(SYMBOL, 0), book.own_links()


SIDES = st.sampled_from(list(Side))
FILLS = st.builds(
    lambda number, side, at, price, kind: replace(fill(number, side, at), price=price, kind=kind),
    st.integers(0, 10**6),
    SIDES,
    st.integers(0, 20),
    st.integers(40_000, 60_000).map(D),
    st.sampled_from([ExecType.TRADE, ExecType.FUNDING, ExecType.ADL_TRADE]),
)


@bounded(max_examples=150)
@given(st.lists(FILLS, max_size=25, unique_by=lambda one: one.exec_id), st.lists(st.integers(0, 25), max_size=6))
def test_a_position_gone_on_with_is_the_position_of_all(fills, looks):
    """Whatever came late, and however often it was looked at in between."""
    fold = PositionFold(SYMBOL)
    for upto in (*sorted(looks), len(fills)):
        whole = fold_positions(fills[:upto]).get(SYMBOL, PositionView(SYMBOL))
        assert fold.of(fills[:upto]) == whole


def test_what_another_process_wrote_is_seen(tmp_path):
    """One reads all the time, another writes; a third that begins now says the same."""
    reader, writer = opened(tmp_path), ExecutionLedger(tmp_path, FixedClock(1_000), ACCOUNT)
    with reader, writer:
        for turn in range(6):
            writer.record_executions([fill(10 * turn + 1), fill(10 * turn, Side.SELL, symbol="ETHUSDT")])
            if turn % 2:
                # told late: it belongs before others
                writer.record_execution(fill(10 * turn + 2, Side.SELL, at=turn))
            writer.record_wallet_events([event(turn, f"{turn}.5"), event(100 + turn, "7", "BTC")])
            with ExecutionLedger(tmp_path, FixedClock(1_000), ACCOUNT) as anew:
                assert says(reader) == says(anew)
        assert reader.held(SYMBOL).size == D("0.03")
        assert reader.balance(SYMBOL)[0] == 1_000 + sum(D(f"{turn}.5") for turn in range(6))


def test_a_transaction_that_was_rolled_back_leaves_nothing(tmp_path):
    with opened(tmp_path) as book:
        book.record_execution(fill(1))
        before = says(book)
        contradicting = replace(fill(1), price=D(1))
        with pytest.raises(Exception, match="e1"):
            book.record_executions([fill(2), contradicting])
        assert says(book) == before
        # its number is given to another row now
        book.record_execution(fill(3))
        assert [one.exec_id for _, one in book.fills_after(SYMBOL, 0)] == ["e1", "e3"]


@pytest.mark.parametrize("same_place", [True, False], ids=["written over", "renamed into place"])
def test_a_backup_that_was_put_back_is_read_anew(tmp_path, same_place):
    home = tmp_path / "home"
    book = opened(home)
    book.record_execution(fill(1))
    with sqlite3.connect(home / "execution.sqlite") as source, sqlite3.connect(tmp_path / "backup") as target:
        source.backup(target)
    book.record_executions([fill(2), fill(3)])
    assert book.held(SYMBOL).size == D("0.03")
    if same_place:
        with sqlite3.connect(tmp_path / "backup") as source, sqlite3.connect(home / "execution.sqlite") as target:
            source.backup(target)
    else:
        for name in ("execution.sqlite-wal", "execution.sqlite-shm"):
            (home / name).unlink(missing_ok=True)
        shutil.copy(tmp_path / "backup", tmp_path / "copy")
        (tmp_path / "copy").rename(home / "execution.sqlite")
    assert [one.exec_id for _, one in book.fills_after(SYMBOL, 0)] == ["e1"]
    book.record_execution(fill(4, Side.SELL))
    assert book.held(SYMBOL).size == 0
    with ExecutionLedger(home, FixedClock(1_000), ACCOUNT) as anew:
        assert [one.exec_id for _, one in anew.fills_after(SYMBOL, 0)] == ["e1", "e4"]
    book.close()


def test_a_fork_opens_the_file_anew(tmp_path):
    """Connections are not shared with a child, and its end does not take locks or the WAL from the parent."""
    with opened(tmp_path) as book:
        book.record_execution(fill(1))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                book.record_execution(fill(2))
                code = 0 if book.held(SYMBOL).size == D("0.02") else 2
                book.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert book.held(SYMBOL).size == D("0.02")
        book.record_execution(fill(3))
        assert book.held(SYMBOL).size == D("0.03")
        with sqlite3.connect(tmp_path / "execution.sqlite") as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_closed_book_holds_no_file_open_and_may_be_used_again(tmp_path):
    def files() -> list[str]:
        open_ones = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return [link.name for link in open_ones if link.is_relative_to(tmp_path)]

    book = opened(tmp_path)
    book.record_execution(fill(1))
    assert files()
    book.close()
    assert not files()
    assert book.held(SYMBOL).size == D("0.01")
    book.close()
