"""fees.yaml and risk.yaml: what is shipped is what is documented, and every violation is named at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlbot_core.config import FeesConfig, RiskConfig, Settings, load_settings
from mlbot_core.config.settings import checkout_root
from mlbot_core.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    shutil.copytree(checkout_root() / "config", folder, ignore=shutil.ignore_patterns("api_keys.yaml"))
    return folder


def load(config: Path) -> Settings:
    return load_settings({"MLBOT_CONFIG_DIR": str(config), "MLBOT_HOME": str(config.parent / "home")})


def test_the_shipped_limits_are_those_of_the_design(config: Path) -> None:
    risk = load(config).risk
    assert (risk.max_position, risk.trim_above, risk.daily_loss_limit, risk.max_drawdown) == (0.10, 1.05, 0.03, 0.25)
    # a stop-out at full cap costs 1 % of NAV
    assert risk.stop_distance * risk.max_position == pytest.approx(risk.stop_cost) == pytest.approx(0.01)
    assert risk == RiskConfig(max_position=0.10, daily_loss_limit=0.03, max_drawdown=0.25)


def test_the_shipped_fees_are_those_of_the_chosen_tier(config: Path) -> None:
    fees = load(config).fees
    assert (fees.tier, fees.taker_bp, fees.maker_bp) == ("vip0", 5.5, 2.0)
    btc = fees.instruments["BTC"]
    assert (btc.lot, btc.tick, btc.min_notional) == (0.001, 0.10, 5.0)
    assert FeesConfig.model_validate(fees.model_dump(mode="json")) == fees


def test_another_tier_brings_its_own_fees() -> None:
    tiers = {"vip0": {"taker_bp": 5.5, "maker_bp": 2.0}, "own": {"taker_bp": 4.0, "maker_bp": -0.5}}
    fees = FeesConfig(tier="own", tiers=tiers, slippage_bp=2.0)  # type: ignore[arg-type,call-arg]
    assert (fees.taker_bp, fees.maker_bp) == (4.0, -0.5)
    with pytest.raises(ValidationError, match="choose one of vip0, own"):
        FeesConfig(tier="vip9", tiers=tiers, slippage_bp=2.0)  # type: ignore[arg-type,call-arg]
    with pytest.raises(ValidationError, match="differ from those of tier own"):
        FeesConfig(tier="own", tiers=tiers, taker_bp=1.0, slippage_bp=2.0)  # type: ignore[arg-type,call-arg]


def test_fees_without_tiers_are_given_directly() -> None:
    fees = FeesConfig(taker_bp=5.5, maker_bp=2.0, slippage_bp=2.0)
    assert (fees.taker_bp, fees.maker_bp, fees.impact_bp, fees.participation) == (5.5, 2.0, 0.0, None)
    assert fees.instruments == {}


def test_five_violations_in_two_files_are_named_at_once_each_with_its_value_and_range(config: Path) -> None:
    risk, fees = config / "risk.yaml", config / "fees.yaml"
    risk.write_text("max_position: 1.5\ndaily_loss_limit: 0\nmax_drawdown: x\ntrim_abov: 1.05\n", encoding="utf-8")
    text = fees.read_text(encoding="utf-8")
    fees.write_text(
        text.replace("taker_bp: 5.5", "taker_bp: -1").replace("participation: 0.05", "participation: 7"),
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load(config)
    message = str(caught.value)
    lines = message.splitlines()
    assert lines[0] == "6 things are wrong in the configuration:"
    assert len(lines) == 7
    for file, field, value, allowed in (
        (risk, "max_position", "1.5", "(allowed: > 0 and <= 1)"),
        (risk, "daily_loss_limit", "0", "(allowed: > 0 and < 1)"),
        (risk, "max_drawdown", "'x'", "(allowed: > 0 and < 1)"),
        (risk, "trim_abov", "1.05", "one of the keys max_position, trim_above,"),
        (fees, "tiers.vip0.taker_bp", "-1", "(allowed: >= 0 and < 100)"),
        (fees, "participation", "7", "(allowed: > 0 and <= 1)"),
    ):
        line = [line for line in lines if f"{file}: {field} is {value}:" in line]
        assert len(line) == 1, (field, message)
        assert allowed in line[0]


def test_a_file_that_cannot_be_read_hides_no_violation_of_another(config: Path) -> None:
    (config / "fees.yaml").write_text("- 1\n", encoding="utf-8")
    (config / "risk.yaml").write_text("max_position: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config)
    for words in ("mapping of names", "max_position is 2", "daily_loss_limit: Field required", "max_drawdown: Field"):
        assert words in str(caught.value)


def test_a_stop_beyond_the_price_is_refused(config: Path) -> None:
    with pytest.raises(ValidationError, match="smaller than max_position"):
        RiskConfig(max_position=0.01, daily_loss_limit=0.03, max_drawdown=0.25, stop_cost=0.01)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("deduction: 1_200", "deduction: 1_300", "margin jumps from 10000 to 9900"),
        ("up_to: 2_600_000", "up_to: 1_000_000", "they must ascend"),
        ("lot: 0.001", "lot: 0", "instruments.BTC.lot is 0"),
        ("rate: 0.0063", "rate: 1.5", "instruments.BTC.maintenance.2.rate is 1.5"),
        ("tier: vip0", "tier: vip7", "choose one of vip0"),
    ],
)
def test_wrong_rules_of_the_exchange_are_named(config: Path, old: str, new: str, message: str) -> None:
    path = config / "fees.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
