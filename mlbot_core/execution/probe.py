"""``mlbot probe``: the open points of the references, asked of the real thing with the real key, kept with a date.

Reading is all that happens unless orders are asked for; then one order of the smallest size, far from the price and
post-only, is placed and cancelled. On mainnet that takes both switches and a third word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings, load_api_keys
from mlbot_core.config.secrets import KeyPair
from mlbot_core.config.settings import COINGLASS_URL
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.bybit_signer import Signer
from mlbot_core.execution.bybit_venues import LOCAL, REST_URLS
from mlbot_core.execution.probe_account import PRIVATE, describe_key, user_id
from mlbot_core.execution.probe_bybit import PUBLIC, BybitProbe
from mlbot_core.execution.probe_coinglass import COINGLASS, CoinglassProbe
from mlbot_core.execution.probe_http import BybitAsker, CoinglassAsker
from mlbot_core.execution.probe_orders import ORDERS, OrderProbe
from mlbot_core.execution.probe_questions import put
from mlbot_core.execution.probe_report import Item, Report, read_reports, write_report
from mlbot_core.execution.safety import SafetyFiles
from mlbot_core.execution.venues import key_pair, local_url, open_broker, require_switches

COINGLASS_NAME: Final = "coinglass"
PROBED: Final = (*(venue.value for venue in Venue), COINGLASS_NAME)
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def run_probe(
    settings: Settings,
    clock: Clock,
    venue: str,
    environ: Mapping[str, str] | None = None,
    *,
    orders: bool = False,
    real_money: bool = False,
    progress: Callable[[str], None] = lambda _name: None,
) -> tuple[Report, Path]:
    """Ask everything and store the report; return both.

    Parameters
    ----------
    venue
        One of :data:`PROBED`.
    orders
        Also place and cancel an order.
    real_money
        Allows ``orders`` on mainnet, where both switches have to be on as well.
    progress
        Is told the name of each question.

    Raises
    ------
    UsageError, ConfigError
        If it cannot be asked like this.
    BrokerError
        If an order is to be placed and the account cannot be opened.
    """
    env = os.environ if environ is None else environ
    if venue not in PROBED:
        raise UsageError(f"venue {venue!r} is unknown; choose one of {', '.join(PROBED)}")
    if venue == COINGLASS_NAME:
        if orders:
            raise UsageError("Coinglass takes no orders; leave --orders out")
        report = _coinglass(settings, clock, env, progress)
    else:
        if orders and venue == Venue.MAINNET.value and not real_money:
            raise UsageError("an order on mainnet is real money; say so with --yes-real-money, or leave --orders out")
        if orders:
            require_switches(_at(settings, Venue(venue)), env)
        report = _bybit(_at(settings, Venue(venue)), clock, Venue(venue), env, orders, progress)
    return report, write_report(settings.live_dir, report)


def _at(settings: Settings, venue: Venue) -> Settings:
    """Return the settings as if the venue were the configured one."""
    return settings.model_copy(update={"execution": settings.execution.model_copy(update={"venue": venue.value})})


def _bybit(
    settings: Settings,
    clock: Clock,
    venue: Venue,
    environ: Mapping[str, str],
    orders: bool,
    progress: Callable[[str], None],
) -> Report:
    local = venue in LOCAL
    url = local_url(settings, environ, venue) if local else REST_URLS[venue]
    signer = Signer(key_pair(settings, environ, venue))
    asker = BybitAsker(url, signer, clock, local=local)
    try:
        probe = BybitProbe(asker, settings, clock, venue)
        whose = user_id(describe_key(probe))
        account = f"{venue}:{whose}" if whose else f"{venue}:key-{signer.fingerprint}"
        items = put(PUBLIC, probe, signer.scrub, progress) + put(PRIVATE, probe, signer.scrub, progress)
    finally:
        asker.close()
    links: tuple[str, ...] = ()
    if orders:
        made, links = _orders(settings, clock, environ, account, signer, progress)
        items += made
    return Report(venue.value, account, signer.fingerprint, orders, clock.now_ms(), tuple(items), links)


def _orders(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str],
    account: str,
    signer: Signer,
    progress: Callable[[str], None],
) -> tuple[list[Item], tuple[str, ...]]:
    halt = SafetyFiles.of(settings.live_dir, account).halted()
    if halt is not None:
        raise UsageError(
            f"{account} is halted by {halt.actor} since {format_utc(halt.at_ms)}; no order is placed until mlbot resume"
        )
    reports = [report for report in read_reports(settings.live_dir, settings.execution.venue) if report.orders]
    earlier = [link for report in reports if report.account == account for link in report.links[:1]]
    with open_broker(settings, clock, environ) as opened:
        probe = OrderProbe(opened.broker, opened.contract, clock, earlier)
        try:
            items = put(ORDERS, probe, signer.scrub, progress)
        finally:
            probe.clean()
    return items, tuple(dict.fromkeys(probe.sent))


def _coinglass(settings: Settings, clock: Clock, environ: Mapping[str, str], progress: Callable[[str], None]) -> Report:
    key = load_api_keys(settings.config_dir, environ).cg_api
    if not key.get_secret_value():
        raise ConfigError(
            f"probing Coinglass needs cg_api in {settings.config_dir / 'api_keys.yaml'} (or MLBOT_CG_API)"
        )
    url = settings.coinglass_url or COINGLASS_URL
    # one secret; the signer's part here is to keep it out of everything that is told
    signer = Signer(KeyPair(key=key, secret=key))
    asker = CoinglassAsker(url, signer, clock, local=urlsplit(url).hostname in _LOOPBACK)
    try:
        items = put(COINGLASS, CoinglassProbe(asker, clock), signer.scrub, progress)
    finally:
        asker.close()
    return Report(COINGLASS_NAME, "", signer.fingerprint, False, clock.now_ms(), tuple(items))
