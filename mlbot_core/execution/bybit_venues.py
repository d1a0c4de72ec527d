"""Where each venue is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from mlbot_core.errors import ConfigError
from mlbot_core.execution.broker import Venue

REST_URLS: Final[Mapping[Venue, str]] = {
    Venue.DEMO: "https://api-demo.bybit.com",
    Venue.TESTNET: "https://api-testnet.bybit.com",
    Venue.MAINNET: "https://api.bybit.com",
}
STREAM_URLS: Final[Mapping[Venue, str]] = {
    Venue.DEMO: "wss://stream-demo.bybit.com/v5/private",
    Venue.TESTNET: "wss://stream-testnet.bybit.com/v5/private",
    Venue.MAINNET: "wss://stream.bybit.com/v5/private",
}
# Processes on this machine: their address is given, and no proxy of the environment lies in between.
LOCAL: Final = frozenset((Venue.EMULATOR, Venue.PAPER))
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def base_url(venue: Venue, url: str | None, *, in_process: bool, allow_mainnet: bool) -> str:
    """Return the address of a venue.

    Raises
    ------
    ConfigError
        If the venue is mainnet without being allowed, or an address is given or missing where it must not be.
    """
    if venue is Venue.MAINNET and not allow_mainnet:
        raise ConfigError("mainnet trades real money and was not allowed; choose the emulator, demo or testnet")
    if venue not in LOCAL:
        if url is not None or in_process:
            raise ConfigError(f"the address of {venue} is {REST_URLS[venue]}; another one cannot be given")
        return REST_URLS[venue]
    if in_process and url is None:
        return "http://emulator"
    host = urlsplit(url or "").hostname
    if url is None or not url.startswith(("http://", "https://")) or host not in _LOOPBACK:
        raise ConfigError(f"the address {url!r} of the venue {venue} must be http://127.0.0.1:PORT")
    return url


def stream_url(venue: Venue, url: str | None = None) -> str:
    """Return the address of a venue's private stream; ``url`` is a local venue's address for requests."""
    if venue not in LOCAL:
        return STREAM_URLS[venue]
    return f"ws{base_url(venue, url, in_process=False, allow_mainnet=False).removeprefix('http')}/v5/private"
