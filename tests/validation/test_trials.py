"""The ledger counts what was tried, once each, and notices whatever was done to it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.clock import FixedClock
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.trials import (
    DailyReturns,
    Head,
    LedgerError,
    LedgerTamperedError,
    TrialLedger,
    open_ledger,
)
from mlbot_core.validation.trials_export import write_export

NOW = 1_750_000_000_000


def series(seed: int, days: int = 200, first: int = 0) -> DailyReturns:
    return DailyReturns(first * DAY_MS, np.random.default_rng(seed).normal(0, 0.01, days))


@pytest.fixture
def ledger(tmp_path):
    return TrialLedger(tmp_path / "home", FixedClock(NOW))


def add(ledger, x, returns=None, data="d1", namespace="test", run="run-1"):
    return ledger.append(namespace, {"x": x}, series(x) if returns is None else returns, data_version=data, run_id=run)


def test_what_was_stored_comes_back(ledger):
    done = ledger.append(
        "test", {"b": [1.5, None], "a": "é"}, series(1), data_version="d", run_id="r", info={"model_version": "m"}
    )
    assert done.new
    (row,) = ledger.read("test").rows
    assert row.settings == {"a": "é", "b": [1.5, None]}
    assert row.facts == {"model_version": "m"}
    assert (row.recorded_at_ms, row.run_id, row.data_version, row.seq) == (NOW, "r", "d", 1)
    np.testing.assert_array_equal(row.returns.values, series(1).values)
    assert row.row_hash == done.row.row_hash == ledger.head("test").hash


def test_the_same_evaluation_counts_once_whoever_repeats_it(ledger):
    first = add(ledger, 1)
    again = add(ledger, 1, run="another run")
    assert not again.new
    assert again.row.seq == first.row.seq
    assert again.row.run_id == "run-1"
    last_bits = DailyReturns(0, series(1).values + 1e-13)
    assert not add(ledger, 1, last_bits).new
    history = ledger.read("test")
    assert (len(history.rows), history.n_trials) == (1, 1)


def test_more_data_is_an_evaluation_of_the_same_trial(ledger):
    add(ledger, 1)
    add(ledger, 2)
    longer = add(ledger, 1, series(1, days=300), data="d2")
    assert longer.new
    history = ledger.read("test")
    assert (len(history.rows), history.n_trials, history.n_configurations) == (3, 2, 2)
    assert sorted(row.seq for row in history.counted) == [2, 3]


def test_another_result_on_the_same_data_is_another_trial(ledger):
    add(ledger, 1)
    add(ledger, 1, series(99))
    add(ledger, 1, series(1, days=300), data="d2")
    history = ledger.read("test")
    assert history.n_configurations == 1
    assert history.n_trials == 2
    assert len({row.seq for row in history.counted}) == 2
    assert 3 in {row.seq for row in history.counted}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_n_is_the_sum_of_the_largest_numbers_of_variants(tmp_path_factory, events):
    ledger = TrialLedger(tmp_path_factory.mktemp("home"), FixedClock(NOW))
    seen: dict[int, dict[int, set[int]]] = {}
    for x, data, variant in events:
        add(ledger, x, series(100 * x + 10 * data + variant, days=5), data=f"d{data}")
        seen.setdefault(x, {}).setdefault(data, set()).add(variant)
    history = ledger.read("test")
    assert history.n_trials == sum(max(len(v) for v in by_data.values()) for by_data in seen.values())
    assert len({row.seq for row in history.counted}) == history.n_trials
    assert len(history.rows) == len(set(events))


def test_namespaces_do_not_see_each_other(ledger):
    add(ledger, 1, namespace="research")
    add(ledger, 1, namespace="demo")
    add(ledger, 2, namespace="demo")
    assert [ledger.read(name).n_trials for name in ("research", "demo", "null", "test")] == [1, 2, 0, 0]
    with pytest.raises(UsageError, match="namespace 'prod' is unknown"):
        add(ledger, 1, namespace="prod")


def test_the_matrix_is_aligned_by_day(ledger):
    add(ledger, 1, DailyReturns(10 * DAY_MS, np.array([1.0, 2.0, 3.0])))
    add(ledger, 2, DailyReturns(11 * DAY_MS, np.array([5.0, 6.0, 7.0, 8.0])))
    matrix = ledger.read("test").matrix(9 * DAY_MS, 13 * DAY_MS)
    nan = np.nan
    np.testing.assert_array_equal(matrix, [[nan, nan], [1.0, nan], [2.0, 5.0], [3.0, 6.0]])


@pytest.mark.parametrize(
    ("first", "values", "words"),
    [
        (1, [0.1], "not a UTC midnight"),
        (0, [], "needs a series"),
        (0, [0.1, float("nan")], "never NaN"),
        (0, [[0.1]], "needs a series"),
    ],
)
def test_returns_that_cannot_be_are_refused(first, values, words):
    with pytest.raises(UsageError, match=words):
        DailyReturns(first, np.array(values))


def test_configurations_must_be_plain(ledger):
    for bad in ({"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(UsageError, match="plain JSON"):
            ledger.append("test", bad, series(1), data_version="d", run_id="r")
    assert ledger.read("test").n_trials == 0


@pytest.fixture
def three(ledger):
    for x in (1, 2, 3):
        add(ledger, x)
    return ledger


def change(ledger, *statements):
    with closing(sqlite3.connect(ledger.home / "trials.sqlite")) as con, con:
        for statement in statements:
            con.execute(statement)


TAMPERINGS = {
    "an edited configuration": (
        ["UPDATE trials SET configuration = '{\"x\":9}' WHERE seq = 2"],
        "row 2 .* was changed",
    ),
    "an edited time": (["UPDATE trials SET recorded_at_ms = 5 WHERE seq = 1"], "row 1 .* was changed"),
    "edited returns": (["UPDATE trials SET returns = zeroblob(1600) WHERE seq = 3"], "row 3 .* was changed"),
    "returns that cannot be read": (["UPDATE trials SET returns = x'0102' WHERE seq = 3"], "row 3 was changed"),
    "a deleted first row": (["DELETE FROM trials WHERE seq = 1"], "row 1 of the ledger is missing"),
    "a deleted middle row": (["DELETE FROM trials WHERE seq = 2"], "row 2 of the ledger is missing"),
    "a deleted last row": (
        ["DELETE FROM trials WHERE seq = 3"],
        "row 3 cut off: the ledger once had 3 rows and now has 2",
    ),
    "a last row deleted together with the store's head": (
        [
            "DELETE FROM trials WHERE seq = 3",
            "UPDATE trial_heads SET count = 2, hash = (SELECT row_hash FROM trials WHERE seq = 2)",
        ],
        "row 3 cut off",
    ),
    "everything deleted": (["DELETE FROM trials", "DELETE FROM trial_heads"], "rows 1 to 3 cut off"),
    "a renumbered chain": (
        ["DELETE FROM trials WHERE seq = 1", "UPDATE trials SET seq = seq - 1 WHERE seq = 2"],
        "row 1 .* was changed",
    ),
    "two rows exchanged": (
        [
            "UPDATE trials SET seq = 9 WHERE seq = 1",
            "UPDATE trials SET seq = 1 WHERE seq = 2",
            "UPDATE trials SET seq = 2 WHERE seq = 9",
        ],
        "row 1 .* was changed",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_and_named(three, name):
    statements, words = TAMPERINGS[name]
    change(three, *statements)
    with pytest.raises(LedgerTamperedError, match=words):
        three.read("test")


def test_a_chain_forged_from_end_to_end_is_found_by_the_head_file(three, tmp_path):
    """Somebody makes a whole new, sound ledger without the loser."""
    forged = TrialLedger(tmp_path / "forged", FixedClock(NOW))
    for x in (1, 3):
        add(forged, x)
    shutil.copy(forged.home / "trials.sqlite", three.home / "trials.sqlite")
    for name in ("trials.sqlite-wal", "trials.sqlite-shm"):
        (three.home / name).unlink(missing_ok=True)
    with pytest.raises(LedgerTamperedError, match=r"row 2 is not the one that was recorded|row 3 cut off"):
        three.read("test")


def test_nothing_is_added_to_a_broken_chain(three):
    change(three, *TAMPERINGS["a last row deleted together with the store's head"][0])
    with pytest.raises(LedgerTamperedError, match="nothing is added"):
        add(three, 4)
    change(three, "DELETE FROM trials", "DELETE FROM trial_heads")
    with pytest.raises(LedgerTamperedError, match="nothing is added"):
        add(three, 4)


def test_a_removed_database_is_noticed(three):
    (three.home / "trials.sqlite").unlink()
    with pytest.raises(LedgerTamperedError, match="rows 1 to 3 cut off"):
        three.read("test")
    with pytest.raises(LedgerTamperedError, match="nothing is added"):
        add(three, 4)


def test_a_removed_head_file_is_noticed(three):
    shutil.rmtree(three.home / "trials-heads")
    with pytest.raises(LedgerTamperedError, match="is missing"):
        three.read("test")
    with pytest.raises(LedgerTamperedError, match="is missing"):
        add(three, 4)


def test_a_damaged_head_file_is_noticed(three):
    file = three.home / "trials-heads" / "sqlite" / "test.heads"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "garbage\n", *lines[2:]]))
    with pytest.raises(LedgerTamperedError, match=r"line 2 of .* is not a ledger head"):
        three.read("test")


def test_a_head_line_cut_short_by_a_crash_never_counted(three):
    file = three.home / "trials-heads" / "sqlite" / "test.heads"
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert three.read("test").n_trials == 3
    add(three, 4)
    assert three.read("test").n_trials == 4
    assert file.read_text().endswith(f"4 {three.head('test').hash}\n")


def test_a_crash_between_commit_and_head_is_no_offence(three):
    file = three.home / "trials-heads" / "sqlite" / "test.heads"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert three.read("test").n_trials == 3
    add(three, 3)  # a repetition catches up as well
    assert three.head("test").hash in file.read_text()


def test_heads_of_reports_are_witnesses(three):
    early = three.read("test").rows[1].head
    assert three.examine("test", [early, Head("demo", 7, "f" * 64)])[1] == []
    assert Head.parse(str(early)) == early
    problems = three.examine("test", [Head("test", 2, "f" * 64), Head("test", 9, "e" * 64)])[1]
    assert len(problems) == 2
    assert "row 2 is not the one" in problems[0]
    assert "rows 4 to 9 cut off" in problems[1]
    for text in ("test:2", "prod:1:" + "0" * 64, "test:x:" + "0" * 64):
        with pytest.raises(UsageError, match="not a ledger head"):
            Head.parse(text)


def test_it_survives_a_restart_and_leaves_the_warehouse_alone(three):
    again = open_ledger(three.home, FixedClock(NOW), environ={})
    assert again.read("test").head == three.read("test").head
    assert sorted(p.name for p in three.home.iterdir() if p.is_file()) == [
        "trials.sqlite",
        "trials.sqlite.lock",
        "trials.sqlite.queue",
    ]


def test_it_is_durable(ledger):
    add(ledger, 1)
    with closing(sqlite3.connect(ledger.home / "trials.sqlite")) as con:
        assert con.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    from mlbot_core.validation.trials_store import TrialStore

    with TrialStore(ledger.home / "trials.sqlite", None, 1.0).transaction("test") as writing:
        assert writing._connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_file_that_is_no_database_is_an_error_with_a_next_step(ledger):
    ledger.home.mkdir()
    (ledger.home / "trials.sqlite").write_bytes(b"not a database" * 100)
    for attempt in (lambda: ledger.read("test"), lambda: add(ledger, 1)):
        with pytest.raises(LedgerError, match="restore it from a backup"):
            attempt()


def test_no_secret_of_a_url_is_told(tmp_path):
    ledger = TrialLedger(tmp_path, FixedClock(NOW), url="postgresql://me:hunter2@127.0.0.1:1/none", timeout_s=1)
    with pytest.raises(LedgerError) as caught:
        ledger.read("test")
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


def test_the_export_holds_everything(three, tmp_path):
    history = three.read("test")
    write_export(history, tmp_path / "out" / "trials.parquet")
    table = pq.read_table(tmp_path / "out" / "trials.parquet")
    assert table.schema.metadata[b"mlbot.ledger_head"] == str(history.head).encode()
    assert table.column("counted").to_pylist() == [True] * 3
    np.testing.assert_array_equal(table.column("returns")[1].as_py(), series(2).values)
    assert table.column("row_hash").to_pylist() == [row.row_hash for row in history.rows]
