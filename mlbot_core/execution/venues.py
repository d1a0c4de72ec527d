"""From the configuration to an account: which venue, with which key, under which name.

=========  ==========================================  ===============================================
venue      where                                       key
=========  ==========================================  ===============================================
emulator   ``MLBOT_EMULATOR_URL``                      the emulator's own (made up)
paper      the local paper exchange, see               the emulator's own (made up)
           :func:`paper_command`
demo       Bybit's demo trading                        ``bybit`` of ``api_keys.yaml``
testnet    Bybit's test network                        ``bybit`` of ``api_keys.yaml``
mainnet    Bybit, real money: only with ``mainnet:     ``bybit`` of ``api_keys.yaml``
           true`` in ``execution.yaml`` AND
           ``MLBOT_MAINNET=yes`` in the environment
=========  ==========================================  ===============================================

The dead-man opens the same account with a key of its own (``deadman``). A key of the user never goes to a local venue.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import SecretStr

from mlbot_core.clock import Clock
from mlbot_core.config import Settings, load_api_keys
from mlbot_core.config.secrets import KeyPair
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.execution.broker import ApiKeyInfo, BrokerError, Venue, VenueRefusedError
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_streams import PrivateStream, StreamEvent
from mlbot_core.execution.bybit_venues import LOCAL

Role = Literal["trader", "deadman"]
ROLES: Final[tuple[str, ...]] = get_args(Role)

MAINNET_VARIABLE: Final = "MLBOT_MAINNET"
PAPER_VARIABLE: Final = "MLBOT_PAPER_URL"
RUNNING_FILE: Final = "running.json"
_NOT_ON_DEMO: Final = 10032
# The keys that an emulator accepts when none is configured, as its options document them; they open nothing else.
_LOCAL_KEYS: Final[Mapping[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "trader": (
        ("MLBOT_EMULATOR_TRADE_KEY", "emulator-trade-key"),
        ("MLBOT_EMULATOR_TRADE_SECRET", "emulator-trade-secret"),
    ),
    "deadman": (
        ("MLBOT_EMULATOR_DEADMAN_KEY", "emulator-deadman-key"),
        ("MLBOT_EMULATOR_DEADMAN_SECRET", "emulator-deadman-secret"),
    ),
}


@dataclass(frozen=True)
class OpenedVenue:
    """An account that answered, to be used in a ``with`` block.

    Parameters
    ----------
    broker
        Signs with the key of the role.
    account
        Stable name, ``<venue>:<user id>``: of the ledger, of every order's id, of the safety files.
    contract
        The configured symbol as the exchange names it.
    key
        What the key may do, as the exchange described it when the account was opened; None where it does not tell
        (demo trading may refuse the question).
    url
        Of a local venue; None for Bybit.
    """

    broker: BybitBroker
    account: str
    contract: str
    key: ApiKeyInfo | None
    url: str | None
    role: Role
    _pair: KeyPair = field(repr=False)
    _clock: Clock = field(repr=False)

    @property
    def venue(self) -> Venue:
        """Where orders go."""
        return self.broker.venue

    def stream(self, events: queue.Queue[StreamEvent], catch_up: Callable[[str], None], **more: Any) -> PrivateStream:
        """Return the account's private stream, not started; ``more`` as of :class:`PrivateStream`."""
        return PrivateStream(self.venue, self._pair, self._clock, events, catch_up, url=self.url, **more)

    def close(self) -> None:
        """Let go of connections."""
        self.broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def venue_of(settings: Settings) -> Venue:
    """Return the configured venue."""
    return Venue(settings.execution.venue)


def open_broker(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str] | None = None,
    *,
    role: Role = "trader",
    timeout_s: tuple[float, float] | None = None,
) -> OpenedVenue:
    """Open the configured account: one question (what may the key do, and whose is it) is asked and answered.

    Parameters
    ----------
    environ
        Environment variables; the process's own by default.
    role
        ``deadman`` signs with the second key.
    timeout_s
        Of the broker, for connecting and for each wait for an answer, seconds.

    Raises
    ------
    ConfigError
        If the venue is not allowed, does not run, or lacks its key; the message says what to do, never a key.
    BrokerError
        One of its kinds, if the venue does not answer or refuses the key.
    """
    env = os.environ if environ is None else environ
    venue = venue_of(settings)
    require_switches(settings, env)
    url = local_url(settings, env, venue) if venue in LOCAL else None
    pair = key_pair(settings, env, venue, role)
    more: dict[str, Any] = {} if timeout_s is None else {"timeout_s": timeout_s}
    broker = BybitBroker(
        venue,
        pair,
        clock,
        url=url,
        # reached only after require_switches
        allow_mainnet=venue is Venue.MAINNET,
        clock_bound_ms=settings.risk.gate.max_clock_offset_ms,
        **more,
    )
    try:
        info = _describe(broker)
        account = account_name(venue, info) if info is not None else _undescribed_name(settings, env, venue)
    except BaseException:
        broker.close()
        raise
    return OpenedVenue(broker, account, settings.execution.contract, info, url, role, pair, clock)


def _describe(broker: BybitBroker) -> ApiKeyInfo | None:
    """Return what the key may do; None on demo trading where that does not offer the question."""
    try:
        return broker.api_key_info()
    except VenueRefusedError as error:
        if broker.venue is Venue.DEMO and error.code == _NOT_ON_DEMO:
            return None
        raise


def _undescribed_name(settings: Settings, environ: Mapping[str, str], venue: Venue) -> str:
    """Return a stable name without the exchange's help: of the trader's key, whoever asks."""
    return f"{venue}:key-{Signer(key_pair(settings, environ, venue)).fingerprint}"


def account_name(venue: Venue, info: ApiKeyInfo) -> str:
    """Return the stable name of the account that a key belongs to.

    Raises
    ------
    BrokerError
        If the exchange did not say whose key it is.
    """
    if not info.user_id:
        raise BrokerError(f"{venue}: the exchange did not say whose key this is; without that nothing is traded")
    return f"{venue}:{info.user_id}"


def missing_switches(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return what is not switched on for real money; empty for every other venue."""
    if venue_of(settings) is not Venue.MAINNET:
        return []
    missing = []
    if not settings.execution.mainnet:
        missing.append(f"set mainnet: true in {settings.config_dir / 'execution.yaml'}")
    if environ.get(MAINNET_VARIABLE) != "yes":
        missing.append(f"set {MAINNET_VARIABLE}=yes in the environment")
    return missing


def require_switches(settings: Settings, environ: Mapping[str, str]) -> None:
    """Demand both switches for mainnet.

    Raises
    ------
    ConfigError
        Naming those that are off.
    """
    missing = missing_switches(settings, environ)
    if missing:
        raise ConfigError(
            f"venue mainnet trades real money and is not switched on: {' and '.join(missing)}; or choose another venue "
            "in execution.yaml"
        )


def key_pair(settings: Settings, environ: Mapping[str, str], venue: Venue, role: Role = "trader") -> KeyPair:
    """Return the key of a role at a venue.

    Raises
    ------
    UsageError
        If there is no such role.
    ConfigError
        If ``api_keys.yaml`` cannot be used, or does not have that key.
    """
    if role not in ROLES:
        raise UsageError(f"role {role!r} is unknown; choose one of {', '.join(ROLES)}")
    if venue in LOCAL:
        key, secret = (environ.get(variable) or default for variable, default in _LOCAL_KEYS[role])
        return KeyPair(key=SecretStr(key), secret=SecretStr(secret))
    keys = load_api_keys(settings.config_dir, environ)
    name, pair, prefix = ("bybit", keys.bybit, "BYBIT") if role == "trader" else ("deadman", keys.deadman, "DEADMAN")
    if not pair.key.get_secret_value() or not pair.secret.get_secret_value():
        raise ConfigError(
            f"venue {venue} needs {name}.key and {name}.secret in {settings.config_dir / 'api_keys.yaml'} (or "
            f"MLBOT_{prefix}_KEY and MLBOT_{prefix}_SECRET)"
        )
    return pair


def local_url(settings: Settings, environ: Mapping[str, str], venue: Venue) -> str:
    """Return the address of a running emulator or paper exchange.

    Raises
    ------
    ConfigError
        If none is known to run.
    """
    emulated = venue is Venue.EMULATOR
    given = settings.emulator_url if emulated else environ.get(PAPER_VARIABLE)
    if given:
        return given
    path = (emulator_folder(settings) if emulated else paper_folder(settings)) / RUNNING_FILE
    try:
        url = json.loads(path.read_text(encoding="utf-8"))["url"]
    except FileNotFoundError:
        alone = (
            "one alone with python -m mlbot_core.emulator and set MLBOT_EMULATOR_URL to its url"
            if emulated
            else f"it alone with {' '.join(paper_command(settings))}"
        )
        what = "a running emulator" if emulated else "the paper exchange"
        raise ConfigError(
            f"venue {venue} needs {what} and {path} says of none: start everything with mlbot up --live, or {alone}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say where the paper exchange is ({type(error).__name__}); start that again"
        ) from None
    return str(url)


def emulator_folder(settings: Settings) -> Path:
    """Return where it is written down which emulator runs."""
    return settings.live_dir / "emulator"


def running_emulator_uid(settings: Settings) -> int | None:
    """Return the account of the emulator that was started last; None where none was started for this home."""
    try:
        return int(json.loads((emulator_folder(settings) / RUNNING_FILE).read_text(encoding="utf-8"))["uid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def known_accounts(settings: Settings) -> list[str]:
    """Return the accounts of the configured venue that have safety files; of emulators only the newest one's."""
    running = running_emulator_uid(settings) if settings.execution.venue == "emulator" else None
    form = re.compile(rf"({re.escape(settings.execution.venue)})_([0-9A-Za-z.-]+)")
    folders = settings.live_dir.iterdir() if settings.live_dir.is_dir() else ()
    found = (form.fullmatch(folder.name) for folder in folders if folder.is_dir())
    accounts = sorted(f"{match[1]}:{match[2]}" for match in found if match is not None)
    return [account for account in accounts if running is None or account == f"emulator:{running}"]


def paper_folder(settings: Settings) -> Path:
    """Return where the paper exchange keeps its account."""
    return settings.live_dir / "paper"


def paper_command(settings: Settings) -> list[str]:
    """Return the command line that serves the paper exchange of this configuration until a signal."""
    command = [sys.executable, "-m", "mlbot_core.emulator.paper", "--folder", str(paper_folder(settings))]
    command += ["--symbol", settings.execution.contract]
    return command + (["--bybit", settings.bybit_url] if settings.bybit_url else [])
