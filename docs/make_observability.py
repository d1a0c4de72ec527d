"""Write Prometheus' rules with their unit tests, Grafana's boards and the runbook from what the code defines.

Usage: ``python docs/make_observability.py [--check]``; with ``--check`` nothing is written, and the exit status is 1 if
a file differs from what would be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlbot_core.observability.alerts import SILENT, SILENT_AFTER_S
from mlbot_core.observability.boards import BOARDS, Board, Panel
from mlbot_core.observability.exporter import PORT
from mlbot_core.observability.metrics_catalogue import CATALOGUE
from mlbot_core.observability.rules import RULES, Rule

ROOT = Path(__file__).resolve().parents[1]
RUNBOOK = "docs/runbook.md"
DATASOURCE = "mlbot-prometheus"
_MADE = "# Made by docs/make_observability.py; edit mlbot_core/observability instead.\n"
_TITLE_H, _STAT_H, _PLOT_H = 1, 4, 8

# what makes each alert fire, one sample a minute from time 0, and after how many minutes it has
A = 'account="emulator:1"'
S = f'{A}, symbol="BTCUSDT"'
M = 'source="emulator", symbol="BTC", timeframe="2h", model_type="meta"'
W = f'{A}, process="risk-watch"'
ON = (f"mlbot_process_ended_on_purpose{{{W}}}", "0x20")
Case = tuple[tuple[tuple[str, str], ...], int]
CASES: Mapping[str, Case] = {
    "MlbotHalted": (((f"mlbot_halted{{{A}}}", "0x4 1x5"),), 5),
    "MlbotRiskHalted": (((f"mlbot_risk_level{{{S}}}", "0x4 3x5"),), 5),
    "MlbotFlatToday": (((f"mlbot_risk_level{{{S}}}", "0x4 2x5"),), 5),
    "MlbotReduceOnly": (((f"mlbot_risk_level{{{S}}}", "0x4 1x20"),), 15),
    "MlbotDrawdownNear": (((f'mlbot_limit_headroom_ratio{{{S}, limit="drawdown"}}', "0.2x4 0.04x5"),), 6),
    "MlbotDailyLossNear": (((f'mlbot_limit_headroom_ratio{{{S}, limit="daily_loss"}}', "0.03x4 0.005x5"),), 6),
    "MlbotPositionOverCap": (((f'mlbot_limit_headroom_ratio{{{S}, limit="max_position"}}', "0x4 -0.02x5"),), 7),
    "MlbotRiskWatchSilent": (((f"mlbot_heartbeat_age_seconds{{{W}}}", "1x4 60+60x5"), ON), 6),
    "MlbotWatchBlind": (((f"mlbot_watch_blind_seconds{{{A}}}", "1x4 61+60x5"), ON), 6),
    "MlbotDeadManSilent": (
        (
            (f'mlbot_heartbeat_age_seconds{{{A}, process="dead-man"}}', "1x4 61+60x5"),
            (f'mlbot_process_ended_on_purpose{{{A}, process="dead-man"}}', "0x20"),
        ),
        6,
    ),
    "MlbotReconcile": (((f'mlbot_risk_cause_active{{{S}, cause="reconcile"}}', "0x4 1x5"),), 7),
    "MlbotWalletLogBroken": (((f'mlbot_wallet_log_breaks{{{A}, coin="USDT"}}', "0x4 1x10"),), 10),
    "MlbotAmbiguousOrders": (((f'mlbot_order_answers_total{{{A}, answer="ambiguous"}}', "0x4 3x10"),), 5),
    "MlbotOrdersRejected": (((f'mlbot_orders_total{{{A}, outcome="Rejected"}}', "0x4 4x10"),), 5),
    "MlbotOrdersSlow": (
        (
            (f'mlbot_decision_to_acknowledged_seconds_bucket{{{A}, le="10.0"}}', "0x20"),
            (f'mlbot_decision_to_acknowledged_seconds_bucket{{{A}, le="30.0"}}', "0x4 9x20"),
            (f'mlbot_decision_to_acknowledged_seconds_bucket{{{A}, le="+Inf"}}', "0x4 9x20"),
        ),
        10,
    ),
    "MlbotDecisionMissing": (
        (
            (f"mlbot_decision_age_seconds{{{S}}}", "8400+60x20"),
            (f"mlbot_decision_interval_seconds{{{S}}}", "7200x20"),
            ON,
        ),
        8,
    ),
    "MlbotDataStale": (
        (
            ('mlbot_series_age_seconds{series="price", symbol="BTC", timeframe="2h"}', "15600+60x20"),
            ('mlbot_series_interval_seconds{series="price", symbol="BTC", timeframe="2h"}', "7200x20"),
            ('mlbot_series_watched{series="price", symbol="BTC", timeframe="2h"}', "1x20"),
        ),
        12,
    ),
    "MlbotGaps": ((('mlbot_gaps_open{source="emulator", fillable="yes"}', "0x4 1x200"),), 130),
    "MlbotQualityFailed": ((('mlbot_quality_checks_failed{source="emulator"}', "0x4 1x200"),), 130),
    "MlbotForecastStale": (
        (
            (f'mlbot_forecast_age_seconds{{{M}, instance="mlbot"}}', "15600+60x20"),
            (f'mlbot_forecast_interval_seconds{{{M}, instance="mlbot"}}', "7200x20"),
            (f'mlbot_process_ended_on_purpose{{{W}, instance="mlbot"}}', "0x20"),
        ),
        12,
    ),
    "MlbotDrift": (
        (('mlbot_drift_features_ratio{source="emulator", symbol="BTC", timeframe="2h"}', "0x4 0.3x90"),),
        70,
    ),
    "MlbotChampionOld": (((f"mlbot_model_champion_data_age_seconds{{{M}}}", "5183800+60x90"),), 70),
    "MlbotAlertsUndelivered": (((f"mlbot_alert_oldest_pending_age_seconds{{{A}}}", "0x2 60+60x20"),), 16),
    "MlbotBlind": ((('mlbot_exporter_source_up{reads="ledger"}', "1x4 0x10"),), 7),
    "MlbotStandstill": ((('mlbot_exporter_source_age_seconds{reads="warehouse"}', "1x4 60+60x20"),), 18),
    "MlbotExporterDown": ((('up{job="mlbot", instance="127.0.0.1:9464"}', "1x4 0x10"),), 6),
    "MlbotDaemonSilent": ((('mlbot_dagster_daemon_heartbeat_age_seconds{daemon="SENSOR"}', "1x4 60+60x10"),), 9),
    "MlbotRunsFailed": ((('mlbot_dagster_runs{status="FAILURE"}', "2x4 3x10"),), 5),
    "MlbotEmulatorDown": ((("mlbot_emulator_up", "1x4 0x10"),), 6),
}


def files() -> dict[str, str]:
    """Return every made file by its path in the checkout."""
    made = {
        "deploy/prometheus/prometheus.yml": _MADE + _yaml(prometheus()),
        "deploy/prometheus/targets.json": _json([{"targets": [f"127.0.0.1:{PORT}"]}]),
        "deploy/prometheus/targets.compose.json": _json([{"targets": [f"pod:{PORT}"]}]),
        "deploy/prometheus/rules.yml": _MADE + _yaml(rule_file()),
        "deploy/prometheus/rules_test.yml": _MADE + _yaml(rule_tests()),
        "deploy/grafana/provisioning/datasources/mlbot.yml": _MADE + _yaml(datasource()),
        "deploy/grafana/provisioning/dashboards/mlbot.yml": _MADE + _yaml(provider()),
        RUNBOOK: runbook(),
    }
    for board in BOARDS:
        made[f"deploy/grafana/dashboards/{board.uid}.json"] = _json(dashboard(board))
    return made


def prometheus() -> dict[str, Any]:
    """Return Prometheus' configuration; where it listens is an option of its command line."""
    return {
        "global": {"scrape_interval": "5s", "scrape_timeout": "4s", "evaluation_interval": "5s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "mlbot", "file_sd_configs": [{"files": ["targets.json"]}]}],
    }


def rule_file() -> dict[str, Any]:
    """Return the alert rules."""
    return {"groups": [{"name": "mlbot", "rules": [_rule(rule) for rule in RULES]}]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.hold,
        "labels": {"severity": rule.severity},
        "annotations": _annotations(rule),
    }


def _annotations(rule: Rule) -> dict[str, str]:
    return {"summary": rule.what, "runbook": f"{RUNBOOK}#{rule.name.lower()}"}


def rule_tests() -> dict[str, Any]:
    """Return a unit test of each rule: silent at first, and firing with these very labels and texts later."""
    return {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [_rule_test(rule, *CASES[rule.name]) for rule in RULES],
    }


def _rule_test(rule: Rule, series: tuple[tuple[str, str], ...], minute: int) -> dict[str, Any]:
    labels = dict(re.findall(r'(\w+)="([^"]*)"', series[0][0]))
    if rule.name == "MlbotOrdersSlow":
        labels.pop("le")  # summed away by the quantile
    annotations = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for key, text in _annotations(rule).items()
    }
    expected = {"exp_labels": {**labels, "severity": rule.severity}, "exp_annotations": annotations}
    return {
        "name": rule.name,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [
            {"eval_time": "1m", "alertname": rule.name, "exp_alerts": []},
            {"eval_time": f"{minute}m", "alertname": rule.name, "exp_alerts": [expected]},
        ],
    }


def datasource() -> dict[str, Any]:
    """Return where Grafana asks; the address is taken from its environment."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": DATASOURCE,
                "type": "prometheus",
                "access": "proxy",
                "url": "$MLBOT_PROMETHEUS_URL",
                "isDefault": True,
                "editable": False,
                "jsonData": {"timeInterval": "5s"},
            }
        ],
    }


def provider() -> dict[str, Any]:
    """Return where Grafana finds the boards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "mlbot",
                "folder": "mlbot",
                "type": "file",
                "allowUiUpdates": False,
                "options": {"path": "/etc/grafana/dashboards"},
            }
        ],
    }


def dashboard(board: Board) -> dict[str, Any]:
    """Return a board as Grafana reads it."""
    panels, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(board.panels, 1):
        height = _STAT_H if panel.look == "stat" and panel.width <= 4 else _PLOT_H
        if x + panel.width > 24:
            x, y, row = 0, y + row, 0
        panels.append(_panel(panel, number, {"h": height, "w": panel.width, "x": x, "y": y}))
        x, row = x + panel.width, max(row, height)
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.about,
        "tags": ["mlbot"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "utc",
        "links": [{"type": "dashboards", "tags": ["mlbot"], "title": "mlbot", "asDropdown": False}],
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": DATASOURCE}
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds or ((None, "blue"),)]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.thresholds else "palette-classic"},
    }
    if panel.texts:
        options = {str(value): {"text": text, "index": n} for n, (value, text) in enumerate(panel.texts)}
        defaults["mappings"] = [{"type": "value", "options": options}]
    made: dict[str, Any] = {
        "id": number,
        "type": panel.look,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": dict(place),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": source,
                "expr": expr,
                "legendFormat": legend or "__auto",
                "instant": panel.look != "timeseries",
                "range": panel.look == "timeseries",
            }
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }
    if panel.look in ("stat", "bargauge"):
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return made


def runbook() -> str:
    """Return what to do at each alert, and what each metric means."""
    lines = [
        "# Runbook",
        "",
        "Made by `docs/make_observability.py` from `mlbot_core/observability/rules.py` and `metrics_catalogue.py`.",
        "",
        "Every alert names its part of this page. What the trader itself has to tell goes the same way, by the book.",
        "",
    ]
    for rule in RULES:
        what = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: f"*{found[1]}*", rule.what)
        hold = "at once" if rule.hold == "0s" else f"after {rule.hold}"
        lines += [f"## {rule.name}", "", f"**{rule.severity}**, {hold}. {what}", "", rule.do, ""]
        lines += ["```promql", rule.expr, "```", ""]
    lines += [
        f"## {SILENT}",
        "",
        f"**critical**, after {SILENT_AFTER_S:g} s. Prometheus does not answer: no rule above is evaluated.",
        "",
        "It comes from the notifier itself (`mlbot_core/observability/alerts.py`). Start Prometheus again and see "
        "its log; what the trader itself has to tell goes on meanwhile.",
        "",
    ]
    lines += ["## Metrics", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in CATALOGUE.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=118)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def main() -> int:
    """Write the files, or compare them."""
    made = files()
    stale = [path for path, text in made.items() if not _same(ROOT / path, text)]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"differs: {path}" for path in stale) or "all files are as they would be made")
        return 1 if stale else 0
    for path in stale:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(made[path], encoding="utf-8")
        print(f"written: {path}")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
