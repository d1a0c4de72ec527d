"""The size of one live decision: a promoted policy's, or volatility targeting's where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlbot_core.config.bandit import BanditConfig
from mlbot_core.decision.bandit import ARMS
from mlbot_core.decision.bandit_baselines import VOLATILITY_TARGET, volatility_target_arm
from mlbot_core.decision.bandit_context import Context
from mlbot_core.decision.bandit_log import BanditLog
from mlbot_core.errors import MlbotError

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
        Why a promoted policy could not be asked, for an alert; None where nothing is wrong.
    """

    multiplier: float
    by: str
    problem: str | None = None


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
        choice = log.act(line, decision_id, context, explore=config.explore_live)
    except MlbotError as error:
        return Sized(fallback, VOLATILITY_TARGET, str(error))
    return Sized(fallback, VOLATILITY_TARGET) if choice is None else Sized(choice.multiplier, BANDIT)
