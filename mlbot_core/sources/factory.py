"""A source by its name."""

from __future__ import annotations

from pydantic import SecretStr

from mlbot_core.clock import Clock
from mlbot_core.config import Settings, load_api_keys
from mlbot_core.config.settings import COINGLASS_URL, SOURCE_NAMES
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.sources.archive import ArchiveSource, VintageArchiveSource
from mlbot_core.sources.base import Source
from mlbot_core.sources.bybit import BYBIT_URL, BybitSource
from mlbot_core.sources.bybit_http import BybitClient
from mlbot_core.sources.bybit_pace import Pace
from mlbot_core.sources.coinglass import CoinglassSource
from mlbot_core.sources.transport import Transport

# The emulator's default key, as its options document it; the user's own key never goes there.
EMULATOR_KEY = "emulator-key"


def open_source(
    name: str,
    settings: Settings,
    clock: Clock,
    *,
    base_url: str | None = None,
    key: str | SecretStr | None = None,
) -> Source:
    """Return a source, to be used in a ``with`` block.

    Parameters
    ----------
    name
        ``coinglass``, ``emulator``, ``bybit``, ``archive`` or ``archive-vintages``.
    base_url
        Server of the two Coinglass kinds and of Bybit; by default ``settings.coinglass_url`` and
        ``settings.bybit_url``, else the real ones. The emulator has to be running already.
    key
        API key; by default the configured one for ``coinglass`` and the emulator's documented one for ``emulator``.

    Raises
    ------
    UsageError
        If there is no source of that name.
    ConfigError
        If ``coinglass`` has no key or ``emulator`` no URL.
    """
    if name == "archive":
        return ArchiveSource(settings.archive_dir, clock)
    if name == "archive-vintages":
        return VintageArchiveSource(settings.archive_dir, clock)
    if name == "bybit":
        address = base_url or settings.bybit_url or BYBIT_URL
        return BybitSource(BybitClient(address, Pace(address, clock, folder=settings.home / "ratelimit")), clock)
    if name not in ("coinglass", "emulator"):
        raise UsageError(f"source {name!r} is unknown; choose one of {', '.join(SOURCE_NAMES)}")
    secret = SecretStr(key) if isinstance(key, str) else key
    # two variables on purpose: the user's key must never reach an emulator, nor made-up data pass for real
    url = base_url or (settings.emulator_url if name == "emulator" else settings.coinglass_url)
    if name == "emulator":
        if url is None:
            raise ConfigError("source emulator has no URL; start the emulator and give its URL, or MLBOT_EMULATOR_URL")
        secret = secret or SecretStr(EMULATOR_KEY)
    else:
        url = url or COINGLASS_URL
        secret = secret or load_api_keys(settings.config_dir).cg_api
        if not secret.get_secret_value():
            raise ConfigError(
                f"source coinglass needs an API key: set cg_api in {settings.config_dir / 'api_keys.yaml'} "
                "(config/api_keys.yaml, see api_keys.example.yaml) or MLBOT_CG_API, or use source emulator or archive"
            )
    return CoinglassSource(name, Transport(url, secret, clock, rate_folder=settings.home / "ratelimit"), clock)
