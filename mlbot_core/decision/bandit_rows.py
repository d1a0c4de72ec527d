"""The tables of the bandit's log and what their rows mean; damaged ones are refused, never guessed at."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlbot_core.decision.bandit import (
    ARMS,
    BanditError,
    BanditState,
    Choice,
    check_propensities,
    state_from_json,
    update,
)
from mlbot_core.decision.bandit_context import Context, ContextScale, context_from_json
from mlbot_core.errors import MlbotError

METADATA: Final = sa.MetaData()

EVENTS: Final = sa.Table(
    "bandit_events",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
ACTIONS: Final = sa.Table(
    "bandit_actions",
    METADATA,
    sa.Column("line", sa.Text, primary_key=True),
    sa.Column("decision_id", sa.String(128), primary_key=True),
    sa.Column("base", sa.String(64), nullable=False),
    sa.Column("state", sa.String(64), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("vector", sa.Text, nullable=False),
    sa.Column("propensities", sa.Text, nullable=False),
    sa.Column("arm", sa.Integer, nullable=False),
    sa.Column("explored", sa.Boolean, nullable=False),
)
REWARDS: Final = sa.Table(
    "bandit_rewards",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("decision_id", sa.String(128), nullable=False),
    sa.Column("reward", sa.String(32), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("line", "decision_id"),
)


class BanditLogError(MlbotError):
    """The bandit's log refused, or what it holds contradicts itself."""


@dataclass(frozen=True)
class Action:
    """A logged choice.

    Parameters
    ----------
    decision_id
        Names the decision within its line.
    base, state
        Versions of the promoted policy and of the state that chose.
    at_ms
        When, UTC ms.
    context
        As it was known.
    vector
        What the policy read of it.
    choice
        Arm, propensities, whether it explored.
    """

    decision_id: str
    base: str
    state: str
    at_ms: int
    context: Context
    vector: tuple[float, ...]
    choice: Choice


@dataclass(frozen=True)
class Promoted:
    """A line's policy as it was promoted, and what it was promoted on."""

    seq: int
    state: BanditState
    scale: ContextScale
    at_ms: int
    why: str
    verdict: Mapping[str, Any]


def fold(base: BanditState, settled: Sequence[tuple[Sequence[float], int, float]]) -> BanditState:
    """Return a policy after the rewards of settled decisions: (what it read, arm, reward) in the order of the rewards.

    A decision whose context could not be judged (its numbers are NaN) taught nothing and is passed over.
    """
    return deque(_states(base, settled), maxlen=1).pop()


def _states(base: BanditState, settled: Sequence[tuple[Sequence[float], int, float]]) -> Iterator[BanditState]:
    """Return a policy, and what it was after each of the rewards."""
    state = base
    yield state
    for vector, arm, reward in settled:
        if all(value == value for value in vector):
            state = update(state, vector, arm, reward)
            yield state


def folded(connection: Connection, line: str, base: Promoted) -> BanditState:
    """Return a line's policy after everything that was settled since its promotion."""
    return fold(base.state, _settled(connection, line, base))


def states_since(connection: Connection, line: str, base: Promoted) -> Iterator[BanditState]:
    """Return what a line's policy was after each of the decisions that were settled since its promotion."""
    return _states(base.state, _settled(connection, line, base))


def _settled(connection: Connection, line: str, base: Promoted) -> list[tuple[list[float], int, float]]:
    query = (
        sa.select(ACTIONS.c.vector, ACTIONS.c.arm, REWARDS.c.reward)
        .join(
            REWARDS,
            sa.and_(REWARDS.c.line == ACTIONS.c.line, REWARDS.c.decision_id == ACTIONS.c.decision_id),
        )
        .where(ACTIONS.c.line == line, ACTIONS.c.base == base.state.version)
        .order_by(REWARDS.c.seq)
    )
    rows = connection.execute(query)
    return [(floats(vector), int(arm), float.fromhex(reward)) for vector, arm, reward in rows]


def newest_kind(connection: Connection, line: str) -> str | None:
    """Return what happened last to a line; None where nothing did."""
    query = sa.select(EVENTS.c.kind).where(EVENTS.c.line == line).order_by(EVENTS.c.seq.desc()).limit(1)
    return connection.execute(query).scalar()


def read_promoted(connection: Connection, line: str) -> Promoted | None:
    """Return the policy that a line was last promoted with; None where it was turned off since, or never promoted.

    Raises
    ------
    BanditLogError, BanditError
        If it is damaged.
    """
    query = sa.select(EVENTS).where(EVENTS.c.line == line).order_by(EVENTS.c.seq.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    if row is None or row["kind"] != "promoted":
        return None
    return _promotion(line, row)


def read_promotion(connection: Connection, line: str, version: str) -> Promoted:
    """Return a line's policy of a version as it was promoted, whether or not it is in use.

    Raises
    ------
    BanditLogError, BanditError
        If it was never promoted, or is damaged.
    """
    where = sa.and_(EVENTS.c.line == line, EVENTS.c.kind == "promoted", EVENTS.c.version == version)
    query = sa.select(EVENTS).where(where).order_by(EVENTS.c.seq).limit(1)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise BanditLogError(f"the policy {version[:12]} of {line} was never promoted in this log")
    return _promotion(line, row)


def _promotion(line: str, row: Any) -> Promoted:
    try:
        body = json.loads(row["body"])
        state = state_from_json(body["state"])
        scale = ContextScale(**{name: float.fromhex(value) for name, value in body["scale"].items()})
        verdict = dict(body["verdict"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BanditLogError(f"the policy of {line} cannot be read ({error}); run: mlbot bandit off") from error
    if state.version != row["version"]:
        raise BanditLogError(f"the promoted policy of {line} is not the one that was promoted; run: mlbot bandit off")
    return Promoted(int(row["seq"]), state, scale, int(row["at_ms"]), str(row["why"]), verdict)


def read_action(connection: Connection, line: str, decision_id: str) -> Action | None:
    """Return the action of a decision; None where it was not made."""
    query = sa.select(ACTIONS).where(ACTIONS.c.line == line, ACTIONS.c.decision_id == decision_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else _read(row)


def read_actions(connection: Connection, line: str) -> list[tuple[Action, float | None]]:
    """Return a line's actions with their rewards (None: not settled), in the order in which they were made."""
    query = sa.select(ACTIONS).where(ACTIONS.c.line == line).order_by(sa.text("rowid"))
    actions = [_read(row) for row in connection.execute(query).mappings()]
    rewards = sa.select(REWARDS.c.decision_id, REWARDS.c.reward).where(REWARDS.c.line == line)
    told = {str(name): float.fromhex(value) for name, value in connection.execute(rewards)}
    return [(action, told.get(action.decision_id)) for action in actions]


def _read(row: Any) -> Action:
    try:
        arm = int(row["arm"])
        p = check_propensities(floats(row["propensities"]))
        if not 0 <= arm < len(ARMS) or p[arm] <= 0.0:
            raise BanditError(f"arm {arm} cannot have been chosen")
        choice = Choice(arm, tuple(float(value) for value in p), bool(row["explored"]))
        context = context_from_json(json.loads(row["context"]))
        return Action(
            str(row["decision_id"]),
            str(row["base"]),
            str(row["state"]),
            int(row["at_ms"]),
            context,
            tuple(floats(row["vector"])),
            choice,
        )
    except (ValueError, TypeError, AttributeError, BanditError) as error:
        raise BanditLogError(
            f"action {row['decision_id']} of {row['line']} cannot be read ({error}); restore the bandit's log from a "
            "backup, or run: mlbot bandit off"
        ) from error


def hexes(values: Any) -> str:
    """Return numbers as a text that keeps them exactly."""
    return json.dumps([float(value).hex() for value in values])


def floats(text: str) -> list[float]:
    """Return the numbers of such a text."""
    return [float.fromhex(value) for value in json.loads(text)]
