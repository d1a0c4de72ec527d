"""The emulator's exchange over live prices: it observes, matches, writes down, and answers, in this order."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from mlbot_core.clock import Clock
from mlbot_core.emulator.bybit_api import Call, Refusal
from mlbot_core.emulator.exchange.account import SETTLE_COIN
from mlbot_core.emulator.exchange.auth import EMULATOR_UID
from mlbot_core.emulator.exchange.context import Context
from mlbot_core.emulator.exchange.exchange import Exchange
from mlbot_core.emulator.exchange.options import Answer, ExchangeOptions
from mlbot_core.emulator.paper.bybit import LiveBybit, LiveError, Look
from mlbot_core.emulator.paper.market import LiveFeed, Memory, ObservedClock, funding_times, understand
from mlbot_core.emulator.paper.rules import live_rules
from mlbot_core.emulator.paper.store import PaperStore, PaperStoreError
from mlbot_core.errors import MlbotError

# They trade, or compare with prices of now: each waits for a look at the market that began after it arrived.
PRICED: Final = ("/v5/order/create", "/v5/order/amend", "/v5/position/trading-stop")
_PRICED_PUBLIC: Final = ("/v5/market/tickers", "/v5/market/orderbook", "/v5/market/price-limit")
_PAUSED: Final = 110066


class PaperBrokenError(MlbotError):
    """What happened could not be written down; the process has to end, and goes on from the disk."""


@dataclass(frozen=True)
class Setup:
    """What a paper exchange is made of.

    Parameters
    ----------
    folder
        Of the account.
    symbols
        Contracts; fixed with the account.
    options
        Keys, fees and the first balance; the user id is the account's own.
    """

    folder: Path
    symbols: tuple[str, ...]
    options: ExchangeOptions


class PaperExchange(Exchange):
    """A paper account.

    Parameters
    ----------
    setup
        Which.
    live
        Where prices come from.
    clock
        This machine's.

    Raises
    ------
    PaperStoreError
        If the folder holds an account of other symbols, or one that cannot be read.
    LiveError
        If the account is new and there are no live prices to begin with.
    """

    def __init__(self, setup: Setup, live: LiveBybit, clock: Clock) -> None:
        self.store = PaperStore(setup.folder)
        self.live = live
        self.broken = ""
        self.problem = "nothing was observed yet"
        meta = self.store.meta()
        memories = self.store.memories()
        # an account whose beginning was cut short is none
        new = not memories
        if new:
            rows = {symbol: live.instrument(symbol) for symbol in setup.symbols}
            meta = {
                "seed": secrets.randbits(48),
                "uid": EMULATOR_UID + secrets.randbelow(800_000_000),
                "instruments": {symbol: [dict(row), [dict(tier) for tier in t]] for symbol, (row, t) in rows.items()},
            }
            memories = {symbol: _first(live, symbol, clock) for symbol in setup.symbols}
        if tuple(meta["instruments"]) != setup.symbols:
            raise PaperStoreError(
                f"the paper account in {setup.folder} is of {', '.join(meta['instruments'])}, not of "
                f"{', '.join(setup.symbols)}; choose another folder"
            )
        self._wall_clock = clock
        self._instruments = meta["instruments"]
        self.feeds = {symbol: LiveFeed(memories[symbol]) for symbol in setup.symbols}
        now = max(memory.point.ts for memory in memories.values())
        self.observed = ObservedClock(now, clock)
        keys = tuple(replace(key, uid=meta["uid"]) for key in setup.options.keys)
        # the balance is paid in once, below; timestamps and rates are measured with this machine's clock
        options = replace(setup.options, keys=keys, balance=Decimal(0), auth_time="wall", limits="wall")
        super().__init__(self.feeds, self.observed, seed=meta["seed"], options=options)
        self._wall = clock  # type: ignore[assignment]
        rules = {symbol: live_rules(row, tiers) for symbol, (row, tiers) in self._instruments.items()}
        for symbol, contract in self.contracts.items():
            contract.rules = rules[symbol]
        for engine in self.engines.values():
            engine.account.rules = rules
        self._guard_handlers()
        self._priced = False
        self._seen_ms: int | None = None
        if new:
            self.store.begin(meta)
            for engine in self.engines.values():
                engine.account.post("TRANSFER_IN", SETTLE_COIN, now, cash_flow=setup.options.balance)
            self._seen_ms, self.problem = clock.now_ms(), ""
            self._commit()
        else:
            self.store.restore(self.engines)

    @property
    def uid(self) -> int:
        """The account's user id."""
        return next(iter(self.engines))

    def server_time(self) -> int:
        """Return this machine's time, UTC ms, and the skew of a fault."""
        now = self._wall_clock.now_ms()
        return now + self.faults.skew_ms(now)

    def is_out(self) -> bool:
        """Say whether nothing answers: an outage is on, or something could not be written down."""
        return bool(self.broken) or super().is_out()

    def price_age_ms(self) -> int | None:
        """Return how old the newest prices are; None when there are none since the start."""
        return None if self._seen_ms is None else max(0, self._wall_clock.now_ms() - self._seen_ms)

    def stale(self) -> str:
        """Return why there are no live prices, or an empty text."""
        age = self.price_age_ms()
        if age is None:
            return self.problem
        return self.problem or "the newest prices are old" if age > self.live.stale_ms else ""

    # --- observing

    def look(self) -> list[Look]:
        """Look at every symbol; changes nothing, so any thread may do it while the exchange answers.

        Raises
        ------
        LiveError
            If one has no live price.
        """
        since, now = self.observed.now_ms(), self._wall_clock.now_ms()
        return [self.live.look(symbol, since, funding_times(since, now)) for symbol in self.feeds]

    def take(self, looks: Sequence[Look]) -> None:
        """Take in what a look showed: let everything happen that follows from it, and write it down.

        Raises
        ------
        LiveError
            If it cannot be understood yet; nothing has changed then.
        PaperBrokenError
            If it could not be written down.
        """
        with self.lock:
            now = max(self._wall_clock.now_ms(), self.observed.now_ms() + 1)
            understood = {look.symbol: understand(self.feeds[look.symbol].memory, look, now) for look in looks}
            for symbol, (points, memory, rates) in understood.items():
                self.feeds[symbol].extend(points, memory, rates)
            self.observed.observed(now)
            self.advance()
            for feed in self.feeds.values():
                feed.forget()
            self._seen_ms, self.problem = self._wall_clock.now_ms(), ""
            self._commit()

    def observe(self) -> bool:
        """Look and take it in; return whether there are live prices.

        Raises
        ------
        PaperBrokenError
            If something could not be written down.
        """
        try:
            self.take(self.look())
        except LiveError as error:
            self.problem = str(error)
            return False
        return True

    # --- answering

    def needs_price(self, method: str, path: str) -> bool:
        """Say whether a request has to wait for a look at the market."""
        return method == "POST" and path in PRICED

    def handle(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        query: str = "",
        body: bytes = b"",
        address: str = "127.0.0.1",
    ) -> Answer:
        """Answer one request, after a look at the market where it needs one."""
        try:
            priced = self.needs_price(method, path) and self.observe()
        except PaperBrokenError:
            return Answer(0, {}, b"", "reset")
        return self.carry_out(priced, method, path, headers, query, body, address)

    def carry_out(
        self,
        priced: bool,
        method: str,
        path: str,
        headers: Mapping[str, str],
        query: str = "",
        body: bytes = b"",
        address: str = "127.0.0.1",
    ) -> Answer:
        """Answer one request; ``priced`` says that the market was observed since it arrived.

        What it changed is on the disk before the answer is returned.
        """
        with self.lock:
            if self.broken:
                return Answer(0, {}, b"", "reset")
            self._priced = priced
            try:
                answer = super().handle(method, path, headers, query, body, address)
                if method == "POST":
                    self._commit()
            except PaperBrokenError:
                return Answer(0, {}, b"", "reset")
            finally:
                self._priced = False
            return answer

    def transfer(self, amount: Decimal, coin: str = SETTLE_COIN, uid: int = EMULATOR_UID) -> None:
        """Pay in or out, as the exchange does, and write it down."""
        with self.lock:
            super().transfer(amount, coin, self.uid if uid == EMULATOR_UID else uid)
            self._commit()

    def intervene(self, kind: str, qty: Decimal, price: Decimal | None, symbol: str, uid: int = EMULATOR_UID) -> None:
        """Close a part of a position as the exchange does, and write it down."""
        with self.lock:
            super().intervene(kind, qty, price, symbol, self.uid if uid == EMULATOR_UID else uid)
            self._commit()

    def _commit(self) -> None:
        try:
            self.store.commit(self.engines, {symbol: feed.memory for symbol, feed in self.feeds.items()})
        except sqlite3.Error as error:
            self.broken = f"{self.store.path} could not be written ({error})"
            raise PaperBrokenError(
                f"{self.broken}; see that the disk has room, then start again: it goes on from what was written"
            ) from error

    def _guard_handlers(self) -> None:
        def private(handler: Callable[[Context], dict[str, Any]]) -> Callable[[Context], dict[str, Any]]:
            def guarded(context: Context) -> dict[str, Any]:
                if not self._priced:
                    raise Refusal(_PAUSED, f"Trading is not allowed. No live price: {self.problem}"[:300])
                return handler(context)

            return guarded

        def public(handler: Callable[[Call], dict[str, Any]]) -> Callable[[Call], dict[str, Any]]:
            def guarded(call: Call) -> dict[str, Any]:
                if reason := self.stale():
                    raise Refusal(_PAUSED, f"Trading is not allowed. No live price: {reason}"[:300])
                return handler(call)

            return guarded

        self._handlers = {
            key: private(handler) if key[1] in PRICED else handler for key, handler in self._handlers.items()
        }
        plain = self.public
        self.public = {
            **{key: public(handler) if key[1] in _PRICED_PUBLIC else handler for key, handler in plain.items()},
            ("GET", "/v5/market/instruments-info"): lambda call: self._listed(call, lambda row, _: [row]),
            ("GET", "/v5/market/risk-limit"): lambda call: self._listed(call, lambda _, tiers: tiers),
        }

    def _listed(self, call: Call, pick: Callable[[Any, Any], list[Any]]) -> dict[str, Any]:
        name = call.query.get("symbol")
        if call.query.get("category") != "linear" or (name and name not in self._instruments):
            raise Refusal(10001, "params error: symbol invalid")
        found = [self._instruments[name]] if name else list(self._instruments.values())
        return {"category": "linear", "list": [item for pair in found for item in pick(*pair)], "nextPageCursor": ""}


def _first(live: LiveBybit, symbol: str, clock: Clock) -> Memory:
    return understand(None, live.look(symbol, None), clock.now_ms())[1]
