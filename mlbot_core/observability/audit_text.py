"""The chain of an audit as lines that a person reads from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_SHORT: Final = 12


def chain_lines(chain: Mapping[str, Any]) -> list[str]:
    """Return the lines of :func:`mlbot_core.observability.audit.explain`."""
    return list(_chain(chain))


def _chain(chain: Mapping[str, Any]) -> Iterator[str]:
    asked = chain["asked"]
    yield f"{asked['kind']} {asked['id']} of {asked['account']}"
    for fill in chain["fills"]:
        yield f"fill {fill['id']}: {fill['side']} {fill['qty']} at {fill['price']}, fee {fill['fee']}, {fill['at']}"
    for intent in chain["intents"]:
        yield from _intent(intent)
    if chain["decision"] is not None:
        yield from _decision(chain["decision"])
    if "forecast" in chain:
        yield from _signal(chain["forecast"], "")
    if "position_of" in chain:
        yield f"the newest decision at that time: {chain['position_of']}"
    if "note" in chain:
        yield f"note: {chain['note']}"


def _intent(intent: Mapping[str, Any]) -> Iterator[str]:
    stop = f", stop {intent['stop_loss']}" if intent["stop_loss"] else ""
    only = ", only reduces" if intent["reduce_only"] else ""
    state = intent["closed"] or "open"
    what = f"{intent['leg']} {intent['slice']}, {intent['side']} {intent['qty']}{only}{stop}"
    yield f"intent {intent['id']}: {what}; {state}"
    for order in intent["orders"]:
        yield (
            f"  order {order['id']} (attempt {order['attempt']}, sent {order['sends']} times at {order['begun']}): "
            f"{order['type']} {order['qty']}, filled {order['filled']}, {order['status'] or 'not seen'}"
        )


def _decision(decision: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"decision {decision['id']} on {decision['symbol']} {decision['timeframe']} bar {decision['bar']}, decided "
        f"{decision['decided']}: target {decision['target']} of NAV"
    )
    result = decision["result"]
    if result:
        yield f"  {result['action']} at level {result['level']}{_set('entered', result)}{_set('cleared', result)}"
    for name in ("observation", "forecast", "limits"):
        if decision[name]:
            yield f"  {name}: {_pairs(decision[name])}"
    if decision["cost_round_trip"] is not None:
        yield f"  cost of a round trip: {decision['cost_round_trip']:.6g}"
    for when in ("before", "after"):
        if decision["risk_state"][when]:
            yield f"  risk state {when}: {_pairs(decision['risk_state'][when])}"
    if decision.get("size"):
        yield from _size(decision["size"])
    if decision["stale"]:
        yield f"  inputs: {decision['stale']}"


def _size(size: Mapping[str, Any]) -> Iterator[str]:
    whose = "" if size["policy"] is None else f" {size['policy'][:_SHORT]} at state {size['state'][:_SHORT]}"
    asked = f", chosen for {size['decision']}" if size["decision"] else ""
    yield f"  size: {_plain(size['multiplier'])} of the cap by {size['by']}{whose} ({size['line']}){asked}"
    if size["context"]:
        yield f"    context: {_pairs(size['context'])}"
    if size["propensities"]:
        yield f"    probabilities of sizes: {_pairs(size['propensities'])}{', exploring' if size['explored'] else ''}"
    if size["problem"]:
        yield f"    {size['problem']}"


def _signal(signal: Mapping[str, Any], indent: str) -> Iterator[str]:
    numbers = {name: signal[name] for name in ("p_down", "p_neutral", "p_up", "score", "score_sd", "width", "edge")}
    late = ", LATE" if signal["late"] else ""
    yield (
        f"{indent}forecast of {signal['model_type']} {signal['model_version'][:_SHORT]} ({signal['role']}) for "
        f"{signal['market']} bar {signal['bar']}, decision time {signal['decision_time']}{late}"
    )
    yield f"{indent}  {_pairs(numbers)}"
    if signal["reason"]:
        yield f"{indent}  {signal['reason']}"
    if signal.get("model"):
        yield from _model(signal["model"], indent)
    for row in signal.get("contributions", ()):
        if row.get("note"):
            yield f"{indent}  contributions: {row['note']}"
        else:
            series = f" (of {', '.join(row['series'])})" if row["series"] else ""
            yield f"{indent}  {row['feature']} = {_plain(row['value'])}: {_plain(row['contribution'])}{series}"
    if signal.get("contributions_left_out"):
        yield f"{indent}  and {signal['contributions_left_out']} features with smaller contributions"
    for base in signal.get("base_forecasts", ()):
        yield f"{indent}  base {base['name']}: bar {base['bar']}, age {base['age_ms']} ms, {base['state']}"
        if "forecast" in base:
            yield from _signal(base["forecast"], indent + "    ")
    for series in signal.get("raw", ()):
        for row in series["rows"]:
            seen = f"observed {row['observed_at']}, known {row['known_at']}"
            yield (
                f"{indent}  raw {series['series']} {series['timeframe']} bar {row['ts']}, {seen} "
                f"({row['capture']}, {row['versions']} versions): {_pairs(row['values'])}"
            )
    if "note" in signal:
        yield f"{indent}  note: {signal['note']}"


def _model(model: Mapping[str, Any], indent: str) -> Iterator[str]:
    label = " SYNTHETIC" if model["synthetic"] else ""
    yield (
        f"{indent}  model {model['version'][:_SHORT]} of {model['of']}, {model['stage']}{label}: trained by run "
        f"{model['trained_by_run']} on data as of {model['data_as_of']}"
    )
    yield f"{indent}    fold: {model['fold']['name']}, {model['fold']['trained_to']}"
    for event in model["history"]:
        yield f"{indent}    {event['at']} {event['event']} by {event['who']}: {event['why']}"
    for row in model["gate"]:
        verdict = "pass" if row["passed"] else "FAIL"
        yield f"{indent}    gate {row['criterion']} {row['size']}: {_plain(row['value'])} ({row['bound']}) {verdict}"


def _set(name: str, result: Mapping[str, Any]) -> str:
    return f"; {name} {', '.join(result[name])}" if result.get(name) else ""


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "n/a" if value is None else str(value)
