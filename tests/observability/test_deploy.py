"""What is shipped to run elsewhere names only what exists, opens nothing to the world and holds no secret."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from mlbot_core.cli.main import app
from mlbot_core.observability.boards import BOARDS
from mlbot_core.observability.metrics_catalogue import CATALOGUE
from mlbot_core.observability.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("mlbot")}
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|WEBHOOK|PG_URL|CG_API")
KEYS = {"bybit_key", "bybit_secret"}


def commands():
    return set(typer.main.get_command(app).commands)


def must_exist(command):
    """The program of a command line is one that this project has."""
    program = Path(command[0]).name
    if program == "python" and command[1] == "-m":
        spec = importlib.util.find_spec(command[2])
        assert spec is not None, command
        main = Path(spec.submodule_search_locations[0]) / "__main__.py" if spec.submodule_search_locations else None
        assert main.exists() if main else 'if __name__ == "__main__"' in Path(spec.origin).read_text(encoding="utf-8")
    elif program == "mlbot":
        assert command[1] in commands(), command
    elif program != "python":
        assert (Path(sys.executable).parent / program).exists(), command


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_of_compose_exists(name):
    must_exist(OURS[name]["command"])
    test = OURS[name].get("healthcheck", {}).get("test")
    if test is not None:
        must_exist(test[1:])


def test_the_former_bots_commands_have_a_counterpart_and_the_topology_is_whole():
    whole = {"postgres", "code-server", "webserver", "daemon", "exporter", "risk-watch", "dead-man", "alerts"}
    assert whole | {"prometheus", "grafana", "emulator", "downloader", "trainer", "backtester"} <= set(SERVICES)
    # the only long-lived ones without a check of their own are watched by their heartbeats, or do nothing
    unchecked = {name for name, s in SERVICES.items() if "healthcheck" not in s and s.get("restart") != "no"}
    assert unchecked == {"pod", "risk-watch", "dead-man", "alerts"}


def test_every_port_is_published_on_loopback_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) >= 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert not any(service.get("network_mode") == "host" or service.get("privileged") for service in SERVICES.values())


def test_no_secret_is_inline_and_each_service_gets_only_what_it_needs():
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert variable.endswith("_FILE"), f"{name}: {variable} holds a secret"
                assert value.startswith("/run/secrets/")
                assert value.removeprefix("/run/secrets/") in service["secrets"], f"{name} lacks {value}"
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    holders = {name for name, service in SERVICES.items() if KEYS & set(service.get("secrets", ()))}
    assert holders == {"code-server", "daemon", "risk-watch"}
    assert {n for n, s in SERVICES.items() if "deadman_key" in s.get("secrets", ())} == {"dead-man"}
    assert not KEYS & set(SERVICES["dead-man"]["secrets"])


def test_containers_of_ours_are_confined():
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert sum(line.startswith("FROM") for line in lines) == 2


def test_what_is_mounted_or_copied_is_in_the_checkout():
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert "config/api_keys.yaml" in ignored
    for line in (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in [word for word in line.split()[1:-1] if not word.startswith("--")]:
                assert (ROOT / source).exists(), line
                assert f"!{source}" in ignored, line


def test_a_secret_file_becomes_a_variable_and_an_unreadable_one_an_error(tmp_path):
    (tmp_path / "key").write_text("canary\n", encoding="utf-8")
    (tmp_path / "none").touch()
    environ = {
        "PATH": os.environ["PATH"],
        "MLBOT_BYBIT_KEY_FILE": str(tmp_path / "key"),
        "MLBOT_CG_API_FILE": str(tmp_path / "none"),
    }
    command = [DEPLOY / "with-secrets", "sh", "-c", "echo ${MLBOT_BYBIT_KEY}/${MLBOT_CG_API-unset}"]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout == "canary/unset\n"
    environ["MLBOT_PG_URL_FILE"] = str(tmp_path / "absent")
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 2
    assert "MLBOT_PG_URL" in refused.stderr
    assert "canary" not in refused.stdout + refused.stderr


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_units_start_what_exists(unit):
    text = unit.read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(.*)$", text, re.M)[1].split()
    if "prometheus" not in unit.stem:
        must_exist(command)
    else:
        assert (ROOT / "deploy/prometheus/prometheus.yml").exists()
        assert "--web.listen-address=127.0.0.1:9093" in command
    assert "NoNewPrivileges=yes" in text
    assert not re.search(r"Environment=.*(KEY|SECRET|WEBHOOK)=", text)


def test_made_files_are_as_they_would_be_made():
    script = ROOT / "docs" / "make_observability.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_hold_their_unit_tests():
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("MLBOT_REQUIRE_PROMETHEUS"):
            pytest.fail("promtool is required here and absent")
        pytest.skip("no promtool on this machine (Debian: apt-get install prometheus)")
    for command in (
        ["check", "rules", "rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_boards_use_the_catalogues_names_and_every_metric_is_shown():
    texts = [expr for board in BOARDS for panel in board.panels for expr, _ in panel.queries]
    texts += [part for rule in RULES for part in rule.parts]
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for text in texts for name in re.findall(r"mlbot_\w+", text)}
    assert used <= set(CATALOGUE)
    assert not any("or vector(" in text for text in texts)
    plain = {"mlbot_build_info", "mlbot_limit_ratio", "mlbot_position_average_price_usd", "mlbot_process_running"}
    plain |= {
        "mlbot_exporter_source_present",
        "mlbot_decisions_total",
        "mlbot_heartbeats_total",
        "mlbot_halt_age_seconds",
    }
    assert set(CATALOGUE) - used == plain | {
        "mlbot_risk_states_total",
        "mlbot_risk_state_age_seconds",
        "mlbot_watch_failures_total",
    }
    for metric in CATALOGUE.values():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_panels_do_not_overlap_and_ask_the_provisioned_source():
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/mlbot.yml").read_text(encoding="utf-8"))
    uid = sources["datasources"][0]["uid"]
    for board in BOARDS:
        made = json.loads((DEPLOY / f"grafana/dashboards/{board.uid}.json").read_text(encoding="utf-8"))
        cells = set()
        for panel in made["panels"]:
            place = panel["gridPos"]
            mine = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                    for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
            assert not mine & cells, panel["title"]
            assert max(x for x, _ in mine) < 24, panel["title"]
            cells |= mine
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {uid}


def test_the_threat_model_names_files_that_exist():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:mlbot_core|tests|deploy|docs|config)/[\w./-]+)`", text)) | {"constraints.txt"}
    absent = {path for path in paths if not (ROOT / path).exists()}
    assert absent <= {"config/api_keys.yaml", "deploy/secrets/grafana_password"}
    assert len(paths) > 12


def test_the_bill_of_materials_names_every_pinned_package_that_is_installed(tmp_path):
    script = ROOT / "docs" / "make_sbom.py"
    subprocess.run([sys.executable, script, tmp_path / "sbom.json"], check=True, capture_output=True)
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    listed = {one["purl"] for one in bill["components"]}
    for name in ("torch", "duckdb", "pybit", "dagster", "prometheus-client"):
        assert [purl for purl in listed if purl.startswith(f"pkg:pypi/{name}@")], name
