"""``python -m mlbot_core.emulator``: the emulator as a process of its own.

Prints one JSON line with the URL when it answers, and ends on SIGTERM or SIGINT. Its present is that of
``MLBOT_CLOCK``. Bybit's trading side accepts one API key, made for local use: ``--trade-key`` with
``MLBOT_EMULATOR_TRADE_SECRET``, or the keys of ``--trade-keys``. Exit code 0 after a signal, 1 when it cannot serve,
2 for a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType

from mlbot_core.clock import clock_from_env, format_utc, parse_utc_ms
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.coinglass import DEFAULT_KEY, CoinglassOptions
from mlbot_core.emulator.exchange.auth import read_keys
from mlbot_core.emulator.exchange.options import (
    DEFAULT_TRADE_KEY,
    DEFAULT_TRADE_SECRET,
    ExchangeOptions,
    keys_of,
)
from mlbot_core.emulator.exchange.trade_faults import TradeFaultSchedule
from mlbot_core.emulator.faults import FaultSchedule
from mlbot_core.emulator.market import MODES
from mlbot_core.emulator.plans import PLANS
from mlbot_core.emulator.server import DEFAULT_SEED, DEFAULT_START_MS, EmulatorServer
from mlbot_core.errors import MlbotError, UsageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlbot_core.emulator",
        description="A local server with the wire formats of Coinglass v4 and Bybit v5.",
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one (default)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of the synthetic market")
    parser.add_argument("--start", default=format_utc(DEFAULT_START_MS)[:10], help="first day, for example 2024-01-01")
    parser.add_argument("--mode", choices=MODES, default="planted", help="planted hides a signal, null has none")
    parser.add_argument("--plan", choices=tuple(PLANS), default="enterprise", help="limits as Coinglass sells them")
    parser.add_argument("--calls-per-minute", type=int, help="calls allowed per minute; default: the plan's")
    parser.add_argument("--key", default=DEFAULT_KEY, help="API key to accept; it opens nothing but this server")
    parser.add_argument("--no-native-2h", action="store_true", help="refuse interval=2h")
    parser.add_argument("--faults", type=Path, help="JSON file with a fault schedule")
    trade = parser.add_argument_group(
        "trading",
        "Bybit's private endpoints under /v5 and websockets under /v5/private and /v5/public/linear. The keys open "
        "nothing but this server.",
    )
    trade.add_argument(
        "--trade-key",
        default=os.environ.get("MLBOT_EMULATOR_TRADE_KEY", DEFAULT_TRADE_KEY),
        help=f"API key; default: $MLBOT_EMULATOR_TRADE_KEY, or {DEFAULT_TRADE_KEY}. "
        f"Its secret is $MLBOT_EMULATOR_TRADE_SECRET, or {DEFAULT_TRADE_SECRET}",
    )
    trade.add_argument(
        "--trade-keys",
        type=Path,
        help="JSON file with a list of keys instead: key, secret, and where wanted uid, parent_uid, read_only, trade, "
        "withdraw, transfer, ips, expires_ms, note",
    )
    trade.add_argument("--balance", default="100000", help="USDT in every account at the beginning (default 100000)")
    trade.add_argument(
        "--trade-time",
        choices=("exchange", "wall"),
        default="exchange",
        help="what timestamps of requests are compared with: MLBOT_CLOCK (default) or the wall clock",
    )
    trade.add_argument(
        "--trade-limits",
        choices=("exchange", "wall", "off"),
        default="exchange",
        help="whose seconds the rate limits count; off counts nothing",
    )
    trade.add_argument("--ip-calls", type=int, default=600, help="calls in five seconds from one address (default 600)")
    trade.add_argument("--demo", action="store_true", help="refuse what demo trading lacks (10032)")
    trade.add_argument("--trade-faults", type=Path, help="JSON file with a fault schedule of the trading side")
    return parser


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _trading(args: argparse.Namespace) -> ExchangeOptions:
    keys = keys_of({**os.environ, "MLBOT_EMULATOR_TRADE_KEY": args.trade_key})
    if args.trade_keys is not None:
        keys = read_keys(_read(args.trade_keys, "--trade-keys"))
    try:
        balance = Decimal(args.balance)
    except InvalidOperation as error:
        raise UsageError(f"--balance {args.balance!r} is not a number") from error
    return ExchangeOptions(
        keys=keys, balance=balance, auth_time=args.trade_time, limits=args.trade_limits, demo=args.demo
    )


def _server(args: argparse.Namespace) -> EmulatorServer:
    try:
        start_ms = parse_utc_ms(args.start)
    except ValueError as error:
        raise UsageError(f"--start {args.start!r}: {error}; give a date such as 2024-01-01") from error
    faults = FaultSchedule.from_json(_read(args.faults, "--faults")) if args.faults is not None else None
    trade_faults = None
    if args.trade_faults is not None:
        trade_faults = TradeFaultSchedule.from_json(_read(args.trade_faults, "--trade-faults"))
    return EmulatorServer(
        seed=args.seed,
        start_ms=start_ms,
        mode=args.mode,
        options=CoinglassOptions(
            key=args.key,
            plan=args.plan,
            native_2h=not args.no_native_2h,
            calls_per_minute=args.calls_per_minute,
        ),
        clock=clock_from_env(),
        faults=faults,
        bybit=BybitOptions(ip_calls=args.ip_calls),
        trading=_trading(args),
        trade_faults=trade_faults,
        port=args.port,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    args = _parser().parse_args(argv)
    done = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        done.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        with _server(args) as server:
            ready = {"url": server.url, "pid": os.getpid(), **server.state()}
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
            done.wait()
    except MlbotError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
