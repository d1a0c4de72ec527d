"""Before an account is traded: everything that has to be true, each with the next step where it is not.

Real money is traded only when all of it holds; ``mlbot doctor`` shows the same findings, for other venues those that
matter there. Nothing here can be skipped or overridden, and what cannot be examined counts as bad.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, Protocol

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import ApiKeyInfo, Venue
from mlbot_core.execution.limits import SMALLEST_MULTIPLIER, smallest_nav
from mlbot_core.execution.probe_report import require_fresh
from mlbot_core.execution.record import Record, open_record
from mlbot_core.execution.safety import SafetyFiles
from mlbot_core.execution.venues import OpenedVenue, Role, missing_switches, open_broker, venue_of
from mlbot_core.timeframe import DAY_MS

RECORD_DAYS: Final = 14
RECORD_WITHIN_DAYS: Final = 30
_SETTLE_COIN: Final = "USDT"
State = Literal["ok", "bad"]


class PreflightError(MlbotError):
    """Real money is not traded: the message names everything that is not as it must be."""


@dataclass(frozen=True)
class Check:
    """One examined thing, and the next step where it is bad."""

    name: str
    state: State
    text: str

    @property
    def ok(self) -> bool:
        """Whether it is as it must be."""
        return self.state == "ok"


class Opener(Protocol):
    """How an account is opened; :func:`mlbot_core.execution.venues.open_broker`."""

    def __call__(
        self, settings: Settings, clock: Clock, environ: Mapping[str, str] | None = None, *, role: Role = "trader"
    ) -> OpenedVenue:
        """Return the opened account."""
        ...


class _BadError(MlbotError):
    """A check found something."""


def preflight(
    settings: Settings, clock: Clock, environ: Mapping[str, str] | None = None, *, opener: Opener = open_broker
) -> list[Check]:
    """Examine the configured venue; nothing is changed and nothing is sent but questions.

    Parameters
    ----------
    environ
        Environment variables; the process's own by default.
    opener
        Opens the account.
    """
    env = os.environ if environ is None else environ
    venue = venue_of(settings)
    real, remote = venue is Venue.MAINNET, venue in (Venue.DEMO, Venue.TESTNET, Venue.MAINNET)
    checks: list[Check] = []

    def look(name: str, examine: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, "ok", examine()))
        except (MlbotError, OSError) as error:
            checks.append(Check(name, "bad", str(error)))

    if real:
        look("switches", lambda: _switches(settings, env))
        look("champion", lambda: _champion(settings, clock, env))
    with ExitStack() as stack:
        opened: list[OpenedVenue] = []

        def account() -> str:
            opened.append(stack.enter_context(opener(settings, clock, env)))
            return f"{opened[0].account} answers"

        look("account", account)
        if not opened:
            return [*checks, *_unexamined(real, remote)]
        trader = opened[0]
        if remote:
            look("key", lambda: _key(trader.key, real=real))
            look("dead-man key", lambda: _deadman(settings, clock, env, opener, trader, real=real))
        look("clock", lambda: _clock(settings, trader))
        look("one-way mode", lambda: _one_way(trader))
        look("only USDT", lambda: _only_usdt(trader))
        look("smallest NAV", lambda: _nav(settings, trader))
        look("not halted", lambda: _not_halted(settings, trader))
        if real:
            look("probe", lambda: _probe(settings, clock, trader))
            look("record", lambda: _record(settings, clock, env, trader))
    return checks


def require_mainnet(
    settings: Settings, clock: Clock, environ: Mapping[str, str] | None = None, *, opener: Opener = open_broker
) -> list[Check]:
    """Demand everything where the venue is mainnet; nothing is asked for another venue.

    Raises
    ------
    PreflightError
        Naming all that is bad.
    """
    if venue_of(settings) is not Venue.MAINNET:
        return []
    checks = preflight(settings, clock, environ, opener=opener)
    bad = [f"{check.name}: {check.text}" for check in checks if not check.ok]
    if bad:
        lines = "\n  ".join(bad)
        raise PreflightError(
            f"real money is not traded, {len(bad)} of {len(checks)} conditions do not hold:\n  {lines}"
        )
    return checks


def _unexamined(real: bool, remote: bool) -> list[Check]:
    names = ["key", "dead-man key"] if remote else []
    names += ["clock", "one-way mode", "only USDT", "smallest NAV", "not halted"]
    names += ["probe", "record"] if real else []
    return [Check(name, "bad", "not examined, because the account did not answer") for name in names]


def _switches(settings: Settings, environ: Mapping[str, str]) -> str:
    missing = missing_switches(settings, environ)
    if missing:
        raise _BadError(" and ".join(missing))
    return "execution.yaml and the environment both say so"


def _champion(settings: Settings, clock: Clock, environ: Mapping[str, str]) -> str:
    from mlbot_core.models.loading import load_champion
    from mlbot_core.models.registry import open_registry
    from mlbot_core.models.registry_events import Slot, StageError
    from mlbot_core.validation.trials import open_ledger as open_trials

    execution = settings.execution
    slot = Slot(settings.intervals.source, execution.symbol, str(execution.timeframe), execution.model)
    registry = open_registry(settings.home, clock, environ)
    entry = registry.state().champion(slot)
    if entry is None:
        raise StageError(f"{slot} has no champion; promote a candidate: mlbot models promote VERSION")
    trials = open_trials(settings.home, clock, environ)
    # which features are computed for it is checked by whoever forecasts with it
    loaded = load_champion(
        registry, settings.models_dir, slot, venue="mainnet", features=entry.registration.features, ledger=trials
    )
    return f"{loaded.entry.version[:12]} ({slot}) passed its gate again"


def _key(info: ApiKeyInfo | None, *, real: bool) -> str:
    if info is None:
        return "demo trading does not tell what the key may do"
    wrong = []
    if info.can_withdraw:
        wrong.append("it can withdraw: take that permission away")
    if info.can_transfer:
        wrong.append("it can transfer: take that permission away")
    if not info.can_trade:
        wrong.append("it cannot trade derivatives: give it orders and positions of contracts")
    if real and not info.ips:
        wrong.append("it is bound to no address: bind it to this machine's")
    if real and not info.sub_account:
        wrong.append("it belongs to a main account: make a sub-account for this bot alone and a key there")
    if wrong:
        raise _BadError(f"key {info.fingerprint}: {'; '.join(wrong)}")
    return f"key {info.fingerprint}: trades, cannot withdraw or transfer"


def _deadman(
    settings: Settings, clock: Clock, environ: Mapping[str, str], opener: Opener, trader: OpenedVenue, *, real: bool
) -> str:
    with opener(settings, clock, environ, role="deadman") as other:
        if other.account != trader.account:
            raise _BadError(
                f"it belongs to {other.account} and the trader's to {trader.account}: make both in one sub-account"
            )
        if other.key is not None and trader.key is not None:
            if other.key.fingerprint == trader.key.fingerprint:
                raise _BadError("it is the trader's key: make a second one, so that each can be revoked alone")
            if other.key.parent_id != trader.key.parent_id:
                raise _BadError("it belongs to another main account than the trader's; make both in one sub-account")
        return f"of the same account; {_key(other.key, real=real)}"


def _clock(settings: Settings, trader: OpenedVenue) -> str:
    measured, most = trader.broker.check_clock(), settings.risk.gate.max_clock_offset_ms
    if measured.worst_ms > most:
        raise _BadError(
            f"this machine's clock is {measured.offset_ms:+d} ms off the exchange's (within "
            f"{(measured.round_trip_ms + 1) // 2} ms), more than {most}; set it (NTP)"
        )
    return f"{measured.offset_ms:+d} ms off the exchange's, at most {measured.worst_ms}"


def _one_way(trader: OpenedVenue) -> str:
    # reading a position of the other mode raises
    held = trader.broker.position(trader.contract)
    return f"{held.symbol} has one position, {'flat' if held.flat else f'{held.size} coins'}"


def _only_usdt(trader: OpenedVenue) -> str:
    wallet = trader.broker.wallet()
    coins = [coin.coin for coin in wallet.coins if coin.coin != _SETTLE_COIN and (coin.equity or coin.wallet_balance)]
    if coins:
        raise _BadError(f"the account holds {', '.join(coins)}: sell or move them; it must hold USDT alone")
    others = [held.symbol for held in trader.broker.positions() if held.symbol != trader.contract]
    if others:
        raise _BadError(f"the account holds positions in {', '.join(others)}: close them; this bot must be alone in it")
    return "no other coin, no other position"


def _nav(settings: Settings, trader: OpenedVenue) -> str:
    instrument, price = trader.broker.instrument(trader.contract), trader.broker.ticker(trader.contract).mark
    nav = trader.broker.wallet().coin(_SETTLE_COIN).equity
    cap = Decimal(str(settings.risk.max_position))
    least = smallest_nav(price, cap, instrument)
    if nav < least:
        raise _BadError(
            f"{nav:,.2f} USDT is below {least:,.2f}: at a cap of {cap:.1%} and a multiplier of {SMALLEST_MULTIPLIER} "
            f"the position is smaller than the smallest order ({instrument.min_qty} {trader.contract}); pay in "
            "more, or raise max_position of risk.yaml"
        )
    return f"{nav:,.2f} USDT, at least {least:,.2f} are needed"


def _not_halted(settings: Settings, trader: OpenedVenue) -> str:
    halt = SafetyFiles.of(settings.live_dir, trader.account).halted()
    if halt is not None:
        raise _BadError(
            f"halted by {halt.actor} at {format_utc(halt.at_ms)} ({halt.reason}); find out why, then: mlbot resume"
        )
    return "no halt marker"


def _probe(settings: Settings, clock: Clock, trader: OpenedVenue) -> str:
    report = require_fresh(settings.live_dir, settings.execution.venue, trader.account, clock.now_ms())
    return f"of {format_utc(report.at_ms)}, {len(report.items)} questions"


def _record(settings: Settings, clock: Clock, environ: Mapping[str, str], trader: OpenedVenue) -> str:
    execution = settings.execution
    with open_record(settings.home, clock, trader.account, environ) as book:
        records = book.records(execution.strategy, execution.contract, str(execution.timeframe))
    today = clock.now_ms() // DAY_MS
    best = Record("", ())
    for record in records:
        if record.account.startswith((f"{Venue.PAPER}:", f"{Venue.DEMO}:")):
            recent = tuple(day for day in record.days if today - RECORD_WITHIN_DAYS < day <= today)
            best = max(best, Record(record.account, recent), key=lambda found: len(found.days))
    if len(best.days) < RECORD_DAYS:
        raise _BadError(
            f"{len(best.days)} days with decisions of {execution.strategy} on {execution.contract} "
            f"{execution.timeframe} on paper or demo within the last {RECORD_WITHIN_DAYS}, {RECORD_DAYS} are needed: "
            "trade there first (venue: paper in execution.yaml, mlbot up --live)"
        )
    return f"{best.account} decided on {len(best.days)} of the last {RECORD_WITHIN_DAYS} days"
