"""Frozen models over ``config/*.yaml`` and the few environment variables that move things on a machine.

========================  =====================================================================
variable                  meaning
========================  =====================================================================
``MLBOT_HOME``            where everything mutable lives; default ``.mlbot`` beside ``config``
``MLBOT_CONFIG_DIR``      the folder with the YAML files; default ``config`` of the checkout
``MLBOT_ARCHIVE_DIR``     recorded data; default ``../shared/data`` beside the checkout
``MLBOT_SOURCE``          overrides ``source`` of ``intervals.yaml``
``MLBOT_COINGLASS_URL``   base URL of the real Coinglass, should it move
``MLBOT_BYBIT_URL``       base URL of Bybit: another of its hosts, or a running emulator
``MLBOT_EMULATOR_URL``    a running emulator; without it each process starts its own
``MLBOT_THREADS``         cores that every numerical library may use
========================  =====================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from mlbot_core.config.bandit import BanditConfig
from mlbot_core.config.base import Frozen, TimeframeField, read_yaml
from mlbot_core.config.execution import ExecutionConfig
from mlbot_core.config.models import ModelsConfig
from mlbot_core.config.quality import QualityConfig
from mlbot_core.config.trading import FeesConfig, RiskConfig
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.timeframe import Market

SOURCE_NAMES = ("emulator", "coinglass", "bybit", "archive", "archive-vintages")
COINGLASS_URL = "https://open-api-v4.coinglass.com"


def _known_source(value: str) -> str:
    if value not in SOURCE_NAMES:
        raise ValueError(f"source {value!r} is unknown; choose one of {', '.join(SOURCE_NAMES)}")
    return value


SourceName = Annotated[str, AfterValidator(_known_source)]


class EmulatorConfig(Frozen):
    """The synthetic market of the local Coinglass server.

    Parameters
    ----------
    seed
        Of the market: the same seed, the same bars.
    start
        First day, UTC.
    mode
        ``planted``: a known signal is hidden in the flow; ``null``: there is none.
    plan
        Limits of calls and of history as Coinglass sells them.
    """

    seed: int
    start: date
    mode: Literal["planted", "null"]
    plan: Literal["hobbyist", "startup", "standard", "professional", "enterprise"]

    @property
    def identity(self) -> str:
        """Which of all synthetic markets this is: the same text, the same bars."""
        return f"{self.mode}, seed {self.seed}, from {self.start}"

    @property
    def start_ms(self) -> int:
        """First bar of the synthetic market, UTC ms."""
        return _date_ms(self.start)


class IntervalsConfig(Frozen):
    """``intervals.yaml``: symbols, timeframes, source, delays.

    Parameters
    ----------
    symbols
        Coins whose USDT perpetuals are followed.
    timeframes
        Lengths of the bars.
    history_start
        First day of a month, UTC: the first partition of every monthly asset.
    source
        Where market data comes from unless a run says otherwise.
    settle_delay_s
        Seconds from a bar's close to its decision, by source, in backtest and live alike.
    """

    symbols: tuple[str, ...] = Field(min_length=1)
    timeframes: tuple[TimeframeField, ...] = Field(min_length=1)
    history_start: date
    source: SourceName
    settle_delay_s: dict[str, float]
    quality: QualityConfig
    emulator: EmulatorConfig

    @model_validator(mode="after")
    def _complete(self) -> IntervalsConfig:
        missing = [name for name in SOURCE_NAMES if name not in self.settle_delay_s]
        if missing:
            raise ValueError(f"settle_delay_s lacks {', '.join(missing)}")
        if self.history_start.day != 1:
            raise ValueError(f"history_start {self.history_start} is not the first day of a month")
        return self

    @property
    def markets(self) -> tuple[Market, ...]:
        """Every configured symbol at every configured timeframe."""
        return tuple(Market(symbol, timeframe) for symbol in self.symbols for timeframe in self.timeframes)

    @property
    def history_start_ms(self) -> int:
        """First instant of the first partition, UTC ms."""
        return _date_ms(self.history_start)

    def settle_delay_ms(self, source: str) -> int:
        """Return the delay from a bar's close to its decision time for a source, in ms."""
        return int(self.settle_delay_s[source] * 1000)

    def market(self, text: str) -> Market:
        """Return the configured market written ``BTC-2h``.

        Raises
        ------
        UsageError
            If it is malformed or not configured.
        """
        market = Market.parse(text)
        if market not in self.markets:
            names = ", ".join(str(m) for m in self.markets)
            raise UsageError(
                f"market {text!r} is not configured; choose one of {names} or add it to config/intervals.yaml"
            )
        return market


class Settings(Frozen):
    """Everything that is configured, and where things are."""

    home: Path
    config_dir: Path
    archive_dir: Path
    coinglass_url: str | None
    bybit_url: str | None = None
    emulator_url: str | None
    threads: int = Field(ge=1)
    intervals: IntervalsConfig
    models: ModelsConfig
    fees: FeesConfig
    risk: RiskConfig
    execution: ExecutionConfig
    bandit: BanditConfig = BanditConfig()

    @property
    def decision_market(self) -> Market:
        """The market of the one decision clock.

        Raises
        ------
        ConfigError
            If ``execution.yaml`` names one that ``intervals.yaml`` does not have.
        """
        chosen = Market(self.execution.symbol, self.execution.timeframe)
        if chosen not in self.intervals.markets:
            raise ConfigError(
                f"{self.config_dir / 'execution.yaml'} decides on {chosen}, which intervals.yaml does not have; choose "
                f"among {', '.join(map(str, self.intervals.markets))}"
            )
        return chosen

    @property
    def live_dir(self) -> Path:
        """Halt marker, heartbeats and reports of what is live."""
        return self.home / "live"

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file."""
        return self.home / "warehouse.duckdb"

    @property
    def dagster_home(self) -> Path:
        """Dagster's own home inside ours."""
        return self.home / "dagster"

    @property
    def models_dir(self) -> Path:
        """Where model artefacts lie, one folder a version."""
        return self.home / "models"

    @property
    def reports_dir(self) -> Path:
        """Where HTML reports lie."""
        return self.home / "reports"


def _date_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


CONFIG_FILES: Final[Mapping[str, type[Frozen]]] = {
    "intervals": IntervalsConfig,
    "models": ModelsConfig,
    "fees": FeesConfig,
    "risk": RiskConfig,
    "execution": ExecutionConfig,
    "bandit": BanditConfig,
}


def checkout_root() -> Path:
    """Return the folder that holds ``config``: this checkout, or the working directory for an installed package."""
    beside = Path(__file__).resolve().parents[2]
    return beside if (beside / "config" / "intervals.yaml").exists() else Path.cwd()


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the whole configuration.

    Parameters
    ----------
    environ
        Environment variables; the process's own by default.

    Raises
    ------
    ConfigError
        If a file is missing, is not YAML or holds a wrong value; every violation of every file is named at once, with
        file, field, value and what is allowed.
    """
    env = os.environ if environ is None else environ
    root = checkout_root()
    config_dir = Path(env.get("MLBOT_CONFIG_DIR") or root / "config").expanduser().resolve()
    source = env.get("MLBOT_SOURCE")
    try:
        threads = int(env.get("MLBOT_THREADS") or os.cpu_count() or 1)
    except ValueError as error:
        raise ConfigError(f"MLBOT_THREADS={env.get('MLBOT_THREADS')!r} is not a whole number") from error
    overrides = {"intervals": {"source": source} if source else None}
    read: dict[str, Any] = {}
    problems: list[str] = []
    for name, model in CONFIG_FILES.items():
        read[name], wrong = read_yaml(config_dir / f"{name}.yaml", model, overrides.get(name))
        problems += wrong
    if problems:
        count = f"{len(problems)} things are wrong in the configuration:\n  " if len(problems) > 1 else ""
        raise ConfigError(count + "\n  ".join(problems))
    return Settings(
        home=Path(env.get("MLBOT_HOME") or root / ".mlbot").expanduser().resolve(),
        config_dir=config_dir,
        archive_dir=Path(env.get("MLBOT_ARCHIVE_DIR") or root.parent / "shared" / "data").expanduser().resolve(),
        coinglass_url=env.get("MLBOT_COINGLASS_URL") or None,
        bybit_url=env.get("MLBOT_BYBIT_URL") or None,
        emulator_url=env.get("MLBOT_EMULATOR_URL") or None,
        threads=max(1, threads),
        **read,
    )
