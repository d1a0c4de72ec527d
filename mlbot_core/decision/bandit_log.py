"""The bandit's durable log: actions with their propensities, rewards, and who turned it on or off and why.

``<home>/bandit.sqlite`` (WAL, ``synchronous=FULL``). A policy in use is nothing but a fold over its log: the promoted
state plus every reward in the order in which it was written. So a crash can lose no update and count none twice:

* an action is written before it is told to anybody; asked again for the same decision, the log answers with it;
* a reward is written once a decision: the same one again changes nothing, another one is refused;
* a decision without a reward stays in :meth:`BanditLog.pending` until it is settled.

A log belongs to a *line*, the text of a market and model (``archive BTC-2h lightgbm``). Turning a line off also writes
a marker file, first and whatever the state of the database: ``off`` must not depend on anything that may be broken.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.clock import Clock
from mlbot_core.decision.bandit import (
    BanditState,
    Choice,
    choose,
    state_to_json,
)
from mlbot_core.decision.bandit_context import (
    Context,
    ContextScale,
    context_to_json,
    context_vector,
)
from mlbot_core.decision.bandit_rows import (
    ACTIONS,
    EVENTS,
    METADATA,
    REWARDS,
    Action,
    BanditLogError,
    Promoted,
    fold,
    folded,
    hexes,
    newest_kind,
    read_action,
    read_actions,
    read_promoted,
    read_promotion,
    states_since,
)
from mlbot_core.errors import MlbotError
from mlbot_core.models.canonical import canonical_json
from mlbot_core.validation.sqlstore import SqlStore

FILE_NAME: Final = "bandit.sqlite"
OFF_FOLDER: Final = "bandit-off"
_LOCK: Final = "mlbot bandit"

__all__ = ["Action", "BanditLog", "BanditLogError", "Promoted", "fold"]


class BanditLog:
    """The log of one home.

    Parameters
    ----------
    home
        Folder of the database and of the markers; created by the first write.
    clock
        Says when something happened.
    timeout_s
        Longest wait for other processes, in seconds.
    """

    def __init__(self, home: Path, clock: Clock, timeout_s: float = 60.0) -> None:
        self._home = home
        self._clock = clock
        self._store = SqlStore(home / FILE_NAME, None, timeout_s, METADATA, _refused)

    def promoted(self, line: str) -> Promoted | None:
        """Return the policy that a line uses; None where it was never promoted or is off.

        Raises
        ------
        BanditLogError, BanditError
            If the store cannot be read, or the stored policy is damaged.
        """
        if self._marker(line).exists():
            return None
        return self._store.reading(EVENTS, lambda connection: read_promoted(connection, line), None)

    def state(self, line: str) -> BanditState | None:
        """Return what a line's policy has learned until now: the fold over its log; None where nothing is promoted."""
        if self._marker(line).exists():
            return None

        def learned(connection: Connection) -> BanditState | None:
            base = read_promoted(connection, line)
            return None if base is None else folded(connection, line, base)

        return self._store.reading(EVENTS, learned, None)

    def act(self, line: str, decision_id: str, context: Context, *, explore: bool) -> Choice | None:
        """Choose and write it down, or return what was written for this decision before.

        What comes back is durable; None where nothing is promoted or the line is off.

        Raises
        ------
        BanditLogError
            If the same decision was made with another context.
        """
        if self._marker(line).exists():
            return None
        told = canonical_json(context_to_json(context))
        with self._writing() as connection:
            base = read_promoted(connection, line)
            if base is None:
                return None
            known = read_action(connection, line, decision_id)
            if known is not None:
                if canonical_json(context_to_json(known.context)) != told:
                    raise BanditLogError(
                        f"decision {decision_id} of {line} was made already in another context; a decision is made once"
                    )
                return known.choice
            state = folded(connection, line, base)
            vector = context_vector(context, base.scale)
            choice = choose(state, vector, f"{line}|{decision_id}", explore=explore)
            row = {
                "line": line,
                "decision_id": decision_id,
                "base": base.state.version,
                "state": state.version,
                "at_ms": self._clock.now_ms(),
                "context": told,
                "vector": hexes(vector),
                "propensities": hexes(choice.propensities),
                "arm": choice.arm,
                "explored": explore,
            }
            connection.execute(sa.insert(ACTIONS).values(row))
        return choice

    def settle(self, line: str, decision_id: str, reward: float) -> bool:
        """Write down what came of a decision; False where the same reward is there already.

        Raises
        ------
        BanditLogError
            If there is no such decision, it has another reward already, or the reward is not a finite number.
        """
        text = float(reward).hex()
        if text in ("nan", "inf", "-inf"):
            raise BanditLogError(f"the reward of decision {decision_id} of {line} is {reward}; settle it with a number")
        with self._writing() as connection:
            if read_action(connection, line, decision_id) is None:
                raise BanditLogError(f"decision {decision_id} of {line} was never made; nothing was settled")
            where = sa.and_(REWARDS.c.line == line, REWARDS.c.decision_id == decision_id)
            known = connection.execute(sa.select(REWARDS.c.reward).where(where)).scalar()
            if known is not None:
                if known != text:
                    raise BanditLogError(
                        f"decision {decision_id} of {line} has a reward of {float.fromhex(known):g} already, not "
                        f"{reward:g}; a decision is settled once"
                    )
                return False
            seq = int(connection.execute(sa.select(sa.func.max(REWARDS.c.seq))).scalar() or 0) + 1
            row = {"seq": seq, "line": line, "decision_id": decision_id, "reward": text, "at_ms": self._clock.now_ms()}
            connection.execute(sa.insert(REWARDS).values(row))
        return True

    def actions(self, line: str) -> list[tuple[Action, float | None]]:
        """Return every action of a line with its reward (None: not settled), in the order in which they were made."""
        nothing: list[tuple[Action, float | None]] = []
        return self._store.reading(ACTIONS, lambda connection: read_actions(connection, line), nothing)

    def action(self, line: str, decision_id: str) -> Action | None:
        """Return what was chosen for a decision; None where nothing was."""
        return self._store.reading(ACTIONS, lambda connection: read_action(connection, line, decision_id), None)

    def was_promoted(self, line: str) -> bool:
        """Return whether a policy of the line was ever promoted, whatever came of it since."""
        return self._store.reading(EVENTS, lambda connection: newest_kind(connection, line) is not None, False)

    def again(self, line: str, decision_id: str) -> tuple[Action, Choice]:
        """Return a logged action, and what comes out when it is chosen again from the log as it stood then.

        Neither the policy in use nor anything that was settled afterwards is asked.

        Raises
        ------
        BanditLogError, BanditError
            If there is no such action, or the log does not lead to the state that chose.
        """
        found = self._store.reading(ACTIONS, lambda connection: _chosen_again(connection, line, decision_id), None)
        if found is None:
            raise BanditLogError(f"decision {decision_id} of {line} is not in the bandit's log")
        return found

    def pending(self, line: str) -> list[Action]:
        """Return the actions without a reward: what is to be settled when their periods are over."""
        return [action for action, reward in self.actions(line) if reward is None]

    def promote(
        self, line: str, state: BanditState, scale: ContextScale, *, why: str, verdict: Mapping[str, Any]
    ) -> None:
        """Let a line use a policy from now on. Whether it may is the caller's to judge; the verdict is kept with it."""
        body = {
            "state": state_to_json(state),
            "scale": {"target_volatility": scale.target_volatility.hex(), "max_drawdown": scale.max_drawdown.hex()},
            "verdict": dict(verdict),
        }
        with self._writing() as connection:
            self._add(connection, line, "promoted", state.version, why, body)
        self._marker(line).unlink(missing_ok=True)

    def off(self, lines: Sequence[str], *, why: str) -> str | None:
        """Turn lines off: volatility targeting from now on. Holds when this returns, whatever the database does.

        Returns
        -------
        str or None
            Why the event could not be written into the log as well; None where it was.
        """
        markers = self._home / OFF_FOLDER
        markers.mkdir(parents=True, exist_ok=True)
        for line in lines:
            with self._marker(line).open("w", encoding="utf-8") as stream:
                stream.write(json.dumps({"line": line, "why": why, "at_ms": self._clock.now_ms()}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        folder = os.open(markers, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        try:
            with self._writing() as connection:
                used = [line for line in lines if newest_kind(connection, line) == "promoted"]
                for line in used:
                    self._add(connection, line, "off", "", why, {})
        except MlbotError as error:
            return str(error)
        return None

    def is_off(self, line: str) -> bool:
        """Return whether the marker of a line says off."""
        return self._marker(line).exists()

    def events(self) -> list[dict[str, Any]]:
        """Return promotions and what was turned off, oldest first: line, kind, version, ``at_ms`` and why."""
        columns = [EVENTS.c[name] for name in ("line", "kind", "version", "at_ms", "why")]
        query = sa.select(*columns).order_by(EVENTS.c.seq)
        nothing: list[dict[str, Any]] = []
        return self._store.reading(
            EVENTS, lambda connection: [dict(row) for row in connection.execute(query).mappings()], nothing
        )

    def _writing(self) -> Any:
        self._home.mkdir(parents=True, exist_ok=True)
        return self._store.transaction(_LOCK)

    def _add(
        self, connection: Connection, line: str, kind: str, version: str, why: str, body: Mapping[str, Any]
    ) -> None:
        seq = int(connection.execute(sa.select(sa.func.max(EVENTS.c.seq))).scalar() or 0) + 1
        row = {"seq": seq, "line": line, "kind": kind, "version": version, "at_ms": self._clock.now_ms(), "why": why}
        connection.execute(sa.insert(EVENTS).values(row | {"body": canonical_json(dict(body))}))

    def _marker(self, line: str) -> Path:
        return self._home / OFF_FOLDER / hashlib.sha256(line.encode()).hexdigest()[:32]


def _chosen_again(connection: Connection, line: str, decision_id: str) -> tuple[Action, Choice] | None:
    action = read_action(connection, line, decision_id)
    if action is None:
        return None
    base = read_promotion(connection, line, action.base)
    for state in states_since(connection, line, base):
        if state.version == action.state:
            vector = context_vector(action.context, base.scale)
            return action, choose(state, vector, f"{line}|{decision_id}", explore=action.choice.explored)
    raise BanditLogError(
        f"the log of {line} does not lead to the state {action.state[:12]} that chose for decision {decision_id}"
    )


def _refused(place: str, cause: str) -> BanditLogError:
    return BanditLogError(
        f"the bandit's log ({place}) refused: {cause}; to go on with volatility targeting run: mlbot bandit off"
    )
