"""The size of one live decision: a promoted policy's, or volatility targeting's where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mlbot_core.config.bandit import BanditConfig
from mlbot_core.decision.bandit import ARMS
from mlbot_core.decision.bandit_baselines import VOLATILITY_TARGET, volatility_target_arm
from mlbot_core.decision.bandit_context import Context
from mlbot_core.decision.bandit_log import Action, BanditLog
from mlbot_core.errors import MlbotError
from mlbot_core.timeframe import Market

BANDIT: Final = "bandit"


@dataclass(frozen=True)
class Sized:
    """A size and where it comes from.

    Parameters
    ----------
    multiplier
        Share of the cap, one of :data:`mlbot_core.decision.bandit.ARMS`.
    by
        ``bandit`` or ``volatility target``.
    problem
        Why a promoted policy could not be asked; None where nothing is wrong.
    action
        What stands in the log; None where the bandit chose nothing.
    """

    multiplier: float
    by: str
    problem: str | None = None
    action: Action | None = field(default=None, compare=False)


def line_of(source: str, market: Market, model_type: str) -> str:
    """Return the name under which a model's sizes are logged: ``archive BTC-2h lightgbm``."""
    return f"{source} {market} {model_type}"


def size_of(log: BanditLog, line: str, decision_id: str, context: Context, config: BanditConfig) -> Sized:
    """Return the size of a decision; asked again for the same decision, the same one.

    What the bandit chooses is durable before it is returned. A log that cannot be used costs no trading: the size is
    then volatility targeting's, and the problem is told. A wrong size is bounded by the cap either way.

    Parameters
    ----------
    decision_id
        Of the period of a position: ask when the forecast calls for a side that it did not call for before, and keep
        the answer until it leaves that side.
    """
    fallback = ARMS[volatility_target_arm(config.baselines.target_volatility, context)]
    try:
        # asked again after a crash, the account may look otherwise: what was chosen then stands
        known = log.action(line, decision_id) if log.promoted(line) is not None else None
        if known is None:
            if log.act(line, decision_id, context, explore=config.explore_live) is None:
                return Sized(fallback, VOLATILITY_TARGET)
            known = log.action(line, decision_id)
    except MlbotError as error:
        return Sized(fallback, VOLATILITY_TARGET, str(error))
    if known is None:
        return Sized(fallback, VOLATILITY_TARGET, f"the log of {line} does not keep what was written into it")
    return Sized(known.choice.multiplier, BANDIT, action=known)
