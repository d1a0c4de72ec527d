"""``python -m mlbot_core.emulator.paper``: the paper exchange as a process of its own.

Prints one JSON line with its URL when it answers, writes the same into ``running.json`` of its folder, and ends on
SIGTERM or SIGINT. Killed and started again on the same folder it goes on with the same account. The keys are those of
the emulator (``MLBOT_EMULATOR_TRADE_KEY`` and the others); they open nothing but this process. Exit code 0 after a
signal, 1 when it cannot serve, 2 for a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from mlbot_core.clock import clock_from_env
from mlbot_core.emulator.exchange.options import ExchangeOptions, keys_of
from mlbot_core.emulator.paper.bybit import BYBIT_URL, LiveBybit
from mlbot_core.emulator.paper.exchange import Setup
from mlbot_core.emulator.paper.server import PaperServer
from mlbot_core.errors import MlbotError, UsageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlbot_core.emulator.paper",
        description="Bybit's private v5 endpoints on loopback: made-up money, Bybit's live public prices.",
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the account is kept; made where absent")
    parser.add_argument("--symbol", action="append", help="a linear USDT contract; may be repeated; default: BTCUSDT")
    parser.add_argument("--bybit", default=BYBIT_URL, help=f"whose public prices (default {BYBIT_URL})")
    parser.add_argument("--balance", default="10000", help="USDT in a new account (default 10000)")
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between two looks at the market (default 1)")
    parser.add_argument(
        "--stale", type=float, default=10.0, help="older prices are not traded on, seconds (default 10)"
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="longest wait for an answer of Bybit, seconds")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: the account's last one, or any")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    args = _parser().parse_args(argv)
    clock = clock_from_env()
    try:
        try:
            balance = Decimal(args.balance)
        except InvalidOperation as error:
            raise UsageError(f"--balance {args.balance!r} is not a number") from error
        for option, value in (("--poll", args.poll), ("--stale", args.stale), ("--timeout", args.timeout)):
            if not value > 0:
                raise UsageError(f"{option} {value:g} must be positive")
        options = ExchangeOptions(keys=keys_of(os.environ), balance=balance)
        live = LiveBybit(args.bybit, clock, timeout_s=args.timeout, stale_ms=round(args.stale * 1000))
        setup = Setup(args.folder, tuple(args.symbol or ["BTCUSDT"]), options)
        server = PaperServer(setup, live, clock, poll_s=args.poll, port=args.port)
        # uvicorn ends at these signals and then raises them once more: the second time nothing is left to do
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        try:
            asyncio.run(server.run())
        finally:
            server.close()
    except MlbotError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
