"""The configured emulator for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mlbot_core.clock import Clock
from mlbot_core.emulator.coinglass import CoinglassOptions
from mlbot_core.emulator.exchange.options import ExchangeOptions
from mlbot_core.emulator.market import Mode
from mlbot_core.emulator.server import EmulatorServer


class EmulatorSettings(Protocol):
    """What has to be configured: the ``emulator`` part of ``intervals.yaml`` has this shape."""

    @property
    def seed(self) -> int:
        """Seed of the market."""
        ...

    @property
    def start_ms(self) -> int:
        """First bar, UTC ms."""
        ...

    @property
    def mode(self) -> Mode:
        """``planted`` or ``null``."""
        ...

    @property
    def plan(self) -> str:
        """Limits as Coinglass sells them."""
        ...


@contextmanager
def serve(settings: EmulatorSettings, clock: Clock, trading: ExchangeOptions | None = None) -> Iterator[str]:
    """Run an emulator with its default keys (or those of ``trading``) on a free loopback port; yields its URL.

    Servers with the same settings and clock answer alike, so it does not matter which process asks which.

    Raises
    ------
    UsageError
        If a setting is refused.
    EmulatorError
        If the server does not come up.
    """
    server = EmulatorServer(
        seed=settings.seed,
        start_ms=settings.start_ms,
        mode=settings.mode,
        options=CoinglassOptions(plan=settings.plan),
        clock=clock,
        trading=trading,
    )
    with server:
        yield server.url
