"""The gate: numbers under constants in code, and every thing that a signed record rests on."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.models.artefact import ArtefactError, LibraryMismatchError, read_artefact, write_artefact
from mlbot_core.models.base import FeatureMismatchError
from mlbot_core.models.gate import (
    GateRefusedError,
    check_artefact,
    check_record,
    check_releases,
    gate_rows,
    read_record,
    record_rows,
    require_passed,
    require_recent,
    sign_record,
)
from mlbot_core.models.registry_events import RegistryTamperedError, SignedGate
from mlbot_core.models.signing import Signer
from mlbot_core.validation import criteria
from mlbot_core.validation.criteria import BOUNDS, Measured, Statistics, judge_measured
from mlbot_core.validation.namespaces import is_synthetic, namespace_of
from mlbot_core.validation.trials import LedgerTamperedError

SIGNER = Signer(b"k" * 32)
GOOD = Measured(1.5, 0.4, 2.6, 0.9, 0.1, 400, 150)


@pytest.fixture
def entry(registry_bench):
    return registry_bench.register()


def check(bench, record):
    check_record(record, bench.models_dir, bench.ledger)


# --- the bounds ------------------------------------------------------------------------------------------------


def test_the_bounds_are_the_users():
    assert (criteria.MIN_SHARPE, criteria.MIN_MAR, criteria.MAX_DRAWDOWN) == (1.0, 0.5, 0.25)
    assert (criteria.MIN_DAYS, criteria.MIN_TRADES, criteria.MIN_DSR, criteria.MAX_PBO) == (365, 100, 0.95, 0.2)
    assert dict(BOUNDS) == {
        "Sharpe": "> 1.0",
        "MAR": ">= 0.5",
        "max drawdown": "< 25%",
        "days": ">= 365",
        "trades": ">= 100",
        "DSR": ">= 0.95",
        "PBO": "<= 0.2",
    }


def test_exactly_on_the_bounds():
    edge = Measured(math.nextafter(1.0, 2), 1e-9, 2.0, 0.5, math.nextafter(0.25, 0), 365, 100)
    assert judge_measured(edge, edge, Statistics(0.95, 0.2, 3)).passed


_NUMBER = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    numbers=st.tuples(_NUMBER, _NUMBER, _NUMBER, _NUMBER, st.integers(0, 800), st.integers(0, 300)),
    dsr=_NUMBER,
    pbo=_NUMBER,
    at=st.sampled_from(["traded", "unit"]),
)
def test_nothing_passes_that_misses_any_bound(numbers, dsr, pbo, at):
    """Against the bounds written out once more: whatever is measured at one size, all of them have to hold."""
    sharpe, low, mar, fall, days, trades = numbers
    odd = Measured(sharpe, low, math.inf, mar, fall, days, trades)
    sizes = {"traded": GOOD, "unit": GOOD, at: odd}
    wanted = (
        (sharpe > 1.0 and mar >= 0.5 and fall < 0.25 and days >= 365 and trades >= 100)
        and low > 0
        and dsr >= 0.95
        and pbo <= 0.2
    )
    assert judge_measured(sizes["traded"], sizes["unit"], Statistics(dsr, pbo, 9)).passed == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"traded": dataclasses.replace(GOOD, sharpe=1.0)}, "Sharpe (traded) 1 (required > 1.0)"),
        ({"unit": dataclasses.replace(GOOD, mar=0.49)}, "MAR (unit) 0.49 (required >= 0.5)"),
        ({"unit": dataclasses.replace(GOOD, max_drawdown=0.25)}, "max drawdown (unit) 0.25 (required < 25%)"),
        ({"traded": dataclasses.replace(GOOD, days=364)}, "days (traded) 364 (required >= 365)"),
        ({"unit": dataclasses.replace(GOOD, trades=99)}, "trades (unit) 99 (required >= 100)"),
        ({"unit": dataclasses.replace(GOOD, sharpe_low=-0.1)}, "Sharpe, lower end (unit) -0.1 (required > 0)"),
        ({"statistics": Statistics(0.949, 0.1, 40)}, "DSR 0.949 (required >= 0.95)"),
        ({"statistics": Statistics(0.99, 0.21, 40)}, "PBO 0.21 (required <= 0.2)"),
        ({"statistics": Statistics(0.99, math.nan, 1)}, "PBO undefined (required <= 0.2)"),
        ({"unit": dataclasses.replace(GOOD, mar=math.nan)}, "MAR (unit) undefined (required >= 0.5)"),
    ],
)
def test_a_refusal_names_criterion_value_and_bound(registry_bench, entry, change, words):
    with pytest.raises(GateRefusedError) as refused:
        require_passed(registry_bench.record(entry, **change))
    assert words in str(refused.value)
    assert str(refused.value).count("required") == 1


def test_an_old_backtest_is_refused_for_promotion_and_only_there(registry_bench, entry):
    day = 86_400_000
    now = registry_bench.clock.now_ms()
    assert criteria.MAX_BACKTEST_AGE_DAYS == 45
    just, late = (registry_bench.record(entry, backtest_end_ms=now - 45 * day - more) for more in (0, 1))
    require_recent(just, now)
    with pytest.raises(GateRefusedError, match=r"ends 2025-01-05.*45 days before now, and at most 45"):
        require_recent(late, now)
    check(registry_bench, late)
    shown, refused = (record_rows(record)[-1] for record in (just, late))
    assert (shown["criterion"], shown["value"], shown["bound"]) == ("days since the backtest", 45.0, "<= 45")
    assert (shown["passed"], refused["passed"]) == (True, False)


# --- the signed record -----------------------------------------------------------------------------------------


def test_a_record_is_read_back_as_it_was(registry_bench, entry):
    record = registry_bench.record(entry)
    signed = sign_record(record, SIGNER)
    assert read_record(signed, entry.registration, SIGNER) == record
    facts = signed.facts
    assert facts["bounds"] == dict(BOUNDS)
    assert facts["synthetic"] is False
    assert (facts["dsr"], facts["n_trials"], facts["ledger_head"]) == (0.97, 40, record.ledger_head)
    assert facts["libraries"] == dict(entry.registration.libraries)
    assert facts["artefact_sha256"] == entry.registration.artefact_sha256
    check(registry_bench, record)


@pytest.mark.parametrize("key", ["traded", "dsr", "artefact_sha256", "bounds", "ledger_head", "synthetic", "outcome"])
def test_a_changed_record_is_noticed(registry_bench, entry, key):
    signed = sign_record(registry_bench.record(entry), SIGNER)
    facts = signed.facts
    facts[key] = {"traded": facts["traded"] | {"sharpe": 9.0}, "bounds": {}, "synthetic": True}.get(key, "0.99")
    with pytest.raises(RegistryTamperedError, match="was changed"):
        read_record(SignedGate(json.dumps(facts), signed.signature), entry.registration, SIGNER)
    with pytest.raises(RegistryTamperedError, match="was changed, or was not signed"):
        read_record(signed, entry.registration, Signer(b"j" * 32))


def test_a_record_of_another_model_is_refused(registry_bench, entry):
    other = registry_bench.register(2)
    signed = sign_record(registry_bench.record(entry), SIGNER)
    with pytest.raises(RegistryTamperedError, match="something else"):
        read_record(signed, other.registration, SIGNER)


def test_numbers_are_judged_by_the_bounds_of_now(registry_bench, entry, monkeypatch):
    """A record of laxer days does not outlive them: stricter bounds in code refuse what passed before."""
    record = registry_bench.record(entry)
    check(registry_bench, record)
    monkeypatch.setattr(criteria, "MIN_SHARPE", 1.6)
    with pytest.raises(GateRefusedError, match="Sharpe"):
        check(registry_bench, record)


# --- what a record rests on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncated", "edited", "missing payload", "missing", "edited meta"])
def test_a_damaged_artefact_is_refused(registry_bench, entry, how):
    folder = registry_bench.models_dir / entry.version
    payload = folder / "model.txt"
    if how == "truncated":
        payload.write_bytes(payload.read_bytes()[:-40])
    elif how == "edited":
        payload.write_bytes(payload.read_bytes().replace(b"leaf_value=", b"leaf_value=9", 1))
    elif how == "missing payload":
        payload.unlink()
    elif how == "edited meta":
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"rows": 1}))
    else:
        folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ArtefactError, match="train the model again"):
        check_artefact(entry.registration, registry_bench.models_dir)


def rewrite(bench, entry, **changes):
    """Put a sound artefact of other content in the place of the registered one."""
    folder = bench.models_dir / entry.version
    meta, payload = read_artefact(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    kept = {key: value for key, value in meta.items() if key not in ("format", "files")}
    write_artefact(folder, payload, kept | changes)


def test_a_sound_artefact_that_is_another_one_is_refused(registry_bench, entry):
    rewrite(registry_bench, entry, rows=12345)
    with pytest.raises(ArtefactError, match="another model than the registered one"):
        check_artefact(entry.registration, registry_bench.models_dir)


def test_an_artefact_of_other_features_is_refused(registry_bench, entry):
    rewrite(registry_bench, entry, features=["f_0", "f_1", "f_2", "g_9"])
    with pytest.raises(FeatureMismatchError, match="lacks f_3 and adds g_9"):
        check_artefact(entry.registration, registry_bench.models_dir)


def test_another_release_of_a_library_is_refused(registry_bench):
    libraries = dict(registry_bench.register().registration.libraries)
    older = registry_bench.register(2, libraries=libraries | {"lightgbm": "3.0.0"})
    with pytest.raises(LibraryMismatchError, match=r"lightgbm 3\.0\.0 \(installed: "):
        check_releases(older.registration)
    gone = registry_bench.register(3, libraries=libraries | {"no-such-library": "1.0"})
    with pytest.raises(LibraryMismatchError, match=r"no-such-library 1\.0 \(installed: none\)"):
        check_releases(gone.registration)
    unknown = registry_bench.register(4, libraries={})
    with pytest.raises(LibraryMismatchError, match="unknown libraries"):
        check_releases(unknown.registration)
    assert isinstance(LibraryMismatchError("x"), ArtefactError)


def test_the_ledger_has_to_hold_the_head(registry_bench, entry):
    forged = registry_bench.record(entry, ledger_head="research:9:" + "a" * 64)
    with pytest.raises(LedgerTamperedError, match="rows 2 to 9 cut off"):
        check(registry_bench, forged)
    other = registry_bench.record(entry, ledger_head="research:1:" + "a" * 64)
    with pytest.raises(LedgerTamperedError, match="row 1 is not the one"):
        check(registry_bench, other)


def test_real_data_is_not_judged_in_the_ledger_of_a_made_up_market(registry_bench, entry):
    planted = registry_bench.register(5, identity="planted, seed 7", slot=registry_bench.slot(source="emulator"))
    demo = registry_bench.record(planted)
    assert demo.ledger_head.startswith("demo:1:")
    check(registry_bench, demo)
    with pytest.raises(GateRefusedError, match="among the trials of demo"):
        check(registry_bench, registry_bench.record(entry, ledger_head=demo.ledger_head))


def test_what_is_synthetic():
    assert is_synthetic("emulator")
    assert is_synthetic("bybit", "http://127.0.0.1:9000")
    assert not is_synthetic("bybit", "https://api.bytick.com")
    assert not is_synthetic("archive")
    assert namespace_of("bybit", "http://127.0.0.1:9000") == "demo"
    assert namespace_of("emulator", "null, seed 3, from 2024-01-01") == "null"


def test_rows_for_an_asset_check(registry_bench, entry):
    record = registry_bench.record(entry, statistics=Statistics(0.5, math.nan, 1))
    rows = record_rows(record)
    assert {(row["size"], row["criterion"]) for row in rows} == {
        *((size, name) for size in ("traded", "unit") for name in [*list(BOUNDS)[:5], "Sharpe, lower end"]),
        ("", "DSR"),
        ("", "PBO"),
        ("", "days since the backtest"),
    }
    assert [row["criterion"] for row in rows if not row["passed"]] == ["DSR", "PBO"]
    assert gate_rows(entry, SIGNER) == []
    gated = dataclasses.replace(entry, gate=sign_record(record, SIGNER))
    assert gate_rows(gated, SIGNER) == rows
    json.dumps(rows, allow_nan=False)
