"""How much of the cap a live decision uses, and what its size was worth: the bandit's part in a live run.

Where no policy was ever promoted for a market and model, nothing here does anything: a forecast may use the whole cap.
Else a size is chosen where the forecast calls for a side that it did not call for before, and stays until the forecast
leaves that side (the period), as the policy learned it:

* from the promoted policy, whose choice is durable before the decision can use it;
* by volatility targeting where the policy was turned off, at once, or cannot be asked; the decision says why.

What is chosen is kept with the decision, so that the period can be followed from one decision to the next, whoever
makes it, and replayed without asking anything that changed since. When a period's result is known from the account's
book, it is settled, once; the book does not change, so whoever does it again finds the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import duckdb

from mlbot_core.config import Settings
from mlbot_core.config.bandit import BanditRewardConfig
from mlbot_core.decision.bandit import ARMS, nearest_arm
from mlbot_core.decision.bandit_baselines import VOLATILITY_TARGET
from mlbot_core.decision.bandit_context import Context, context_to_json
from mlbot_core.decision.bandit_inputs import reward_of
from mlbot_core.decision.bandit_live import BANDIT, Sized, line_of, size_of
from mlbot_core.decision.bandit_log import Action, BanditLog
from mlbot_core.decision.bandit_periods import Flow, Look, earned
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.decision.sizing import next_side
from mlbot_core.errors import MlbotError
from mlbot_core.execution import evidence
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import fold_key
from mlbot_core.execution.ledger_states import BAR
from mlbot_core.execution.turns import FILLS_SEQ
from mlbot_core.live.observation import Said
from mlbot_core.live.sizing_context import context_of
from mlbot_core.warehouse import Warehouse

_UNKNOWN: Final = Context(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)


def sized(
    store: Warehouse, settings: Settings, ledger: ExecutionLedger, source: str, contract: str, said: Said
) -> Said:
    """Return what a decision rests on with its size; unchanged where no policy was ever promoted, or nothing is due.

    Settles what is over first, so that the policy chooses with all that it can know. Never raises: whatever is wrong
    with the policy gives volatility targeting, and the decision says so.

    Parameters
    ----------
    ledger, contract
        The account's book, and the symbol as the exchange names it.
    said
        On the bar that is about to be decided.
    """
    log = BanditLog(settings.home, store.clock)
    line = line_of(source, said.market, settings.execution.model)
    newest = ledger.newest_decision(contract)
    if said.ts != said.market.timeframe.last_closed(store.clock.now_ms()) or (newest and newest.ts >= said.ts):
        # it will not be decided: an action would be one of which nothing comes
        return said
    problems: list[str] = []
    try:
        if not log.was_promoted(line):
            return said
        settle(log, line, ledger, contract, settings.bandit.reward)
    except MlbotError as error:
        problems.append(str(error))
    former = None if newest is None else size_in(newest.details)
    former = former if former is not None and former["line"] == line else None
    cost = costs_from_fees(settings.fees).round_trip
    side = int(next_side(0 if former is None else int(former["side"]), said.forecast.edge, cost))
    size = _kept(log, line, former, side)
    if size is None and side == 0:
        # nothing is called for; a position that could not be closed keeps what it was given
        size = _record(line, side, Sized(ARMS[0] if former is None else _multiplier(former), VOLATILITY_TARGET), None)
    elif size is None:
        size = _new(store, settings, ledger, log, source, contract, said, line, side)
    told = "; ".join([*problems, *([size["problem"]] if size["problem"] else [])])
    words = f"sized by {VOLATILITY_TARGET}: {told}" if told and size["by"] != BANDIT else told
    return replace(
        said,
        forecast=said.forecast._replace(multiplier=_multiplier(size)),
        size=size,
        reason="; ".join(part for part in (said.reason, words) if part),
    )


def settle(
    log: BanditLog, line: str, ledger: ExecutionLedger, contract: str, config: BanditRewardConfig
) -> tuple[str, ...]:
    """Write down what came of every size whose period is over on this account; return their decisions.

    An action without a decision in the book (a crash in between, and the bar was never decided) had no outcome and
    stays open.

    Raises
    ------
    BanditLogError
        If the log refuses.
    """
    mine = [one for one in log.pending(line) if one.decision_id.startswith(f"{ledger.account}|")]
    if not mine:
        return ()
    rows = [
        row | {"details": json.loads(row["details"])}
        for row in ledger.rows("decisions", limit=1_000_000)
        if (row["symbol"], row["trigger"]) == (contract, BAR)
    ]
    rows.sort(key=lambda row: int(row["ts"]))
    done = []
    for action in mine:
        result = _result(action, rows, ledger, contract)
        if result is not None:
            log.settle(line, action.decision_id, float(reward_of(*result, config)))
            done.append(action.decision_id)
    return tuple(done)


def size_in(details: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a stored decision keeps of its size; None where nobody sized it."""
    caller = details.get("caller")
    said = caller.get("signal") if isinstance(caller, Mapping) else None
    size = said.get("size") if isinstance(said, Mapping) else None
    return size if isinstance(size, Mapping) else None


def _multiplier(size: Mapping[str, Any]) -> float:
    return float.fromhex(size["multiplier"])


def _kept(log: BanditLog, line: str, former: Mapping[str, Any] | None, side: int) -> dict[str, Any] | None:
    """Return the size of the period that goes on; None where one begins, or the policy that chose it is off."""
    if former is None or side == 0 or int(former["side"]) != side:
        return None
    if former["by"] == BANDIT:
        try:
            if log.promoted(line) is None:
                return None
        except MlbotError:
            return None
    return dict(former)


def _new(
    store: Warehouse,
    settings: Settings,
    ledger: ExecutionLedger,
    log: BanditLog,
    source: str,
    contract: str,
    said: Said,
    line: str,
    side: int,
) -> dict[str, Any]:
    config = settings.bandit
    try:
        context = context_of(store, settings, ledger, source, contract, said)
    except (MlbotError, duckdb.Error) as error:
        missing = Sized(ARMS[nearest_arm(math.nan)], VOLATILITY_TARGET, f"what the policy looks at is missing: {error}")
        return _record(line, side, missing, _UNKNOWN)
    found = size_of(log, line, f"{ledger.account}|{said.ts}", context, config)
    return _record(line, side, found, context) | {"target_volatility": config.baselines.target_volatility.hex()}


def _record(line: str, side: int, found: Sized, context: Context | None) -> dict[str, Any]:
    """Return a size as the decision keeps it: plain values, floats by their hexadecimal text."""
    action = found.action
    told = action.context if action is not None else context
    return {
        "line": line,
        "side": side,
        "by": found.by,
        "multiplier": found.multiplier.hex(),
        "problem": found.problem or "",
        "context": None if told is None else context_to_json(told),
        "decision": None if action is None else action.decision_id,
        "policy": None if action is None else action.base,
        "state": None if action is None else action.state,
        "explored": None if action is None else action.choice.explored,
        "propensities": None if action is None else [p.hex() for p in action.choice.propensities],
    }


def _result(
    action: Action, rows: Sequence[Mapping[str, Any]], ledger: ExecutionLedger, contract: str
) -> tuple[float, float] | None:
    """Return log growth and deepest fall of an action's period; None while it is not over, or was never decided."""
    of_it = [at for at, row in enumerate(rows) if (size_in(row["details"]) or {}).get("decision") == action.decision_id]
    if not of_it or of_it[-1] + 1 >= len(rows):
        return None
    size = size_in(rows[of_it[0]]["details"]) or {}
    side, last = int(size["side"]), of_it[-1] + 1
    after = size_in(rows[last]["details"])
    if after is None or int(after["side"]) != side:
        # the exit is filled in the bar after the decision that ended the period
        last += 1
    if last >= len(rows):
        return None
    seen = [evidence.read(row["details"]).observation for row in rows[of_it[0] : last + 1]]
    seqs = [int(row["details"][FILLS_SEQ]) for row in rows[of_it[0] : last + 1]]
    fills = ledger.fills_after(contract, seqs[0])
    looks = []
    for first, upto, one in zip(seqs, seqs[1:], seen[1:], strict=False):
        between = sorted((fill for seq, fill in fills if first < seq <= upto), key=fold_key)
        flows = [
            Flow(
                float(fill.qty) * fill.side.sign if fill.kind.moves_position else 0.0,
                float(fill.price),
                float(fill.fee),
                fill.side.sign,
            )
            for fill in between
        ]
        looks.append(Look(one.mark, flows))
    return earned(side, seen[0].position, seen[0].mark, seen[0].nav, looks)
