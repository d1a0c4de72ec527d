"""The Kubernetes files: one pod opens the warehouse, nothing trades, and everything that is named exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import typer
import yaml

from mlbot_core.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
JOB = yaml.safe_load((FOLDER / "heavy-job.yaml").read_text(encoding="utf-8"))
CLAIMS = {one["metadata"]["name"]: one for one in yaml.safe_load_all((FOLDER / "storage.yaml").read_text("utf-8"))}
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
POD = JOB["spec"]["template"]["spec"]
CONTAINERS = [*POD["initContainers"], *POD["containers"]]
OURS = [one for one in CONTAINERS if one["args"][0] == "mlbot"]


def claims(volumes):
    return {one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one}


def test_one_pod_alone_can_mount_the_warehouse_and_is_never_doubled():
    assert CLAIMS["mlbot-home"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert claims(CODE["volumes"]) == set(CLAIMS) == {"mlbot-home", "mlbot-shared"}
    assert claims(POD["volumes"]) == {"mlbot-shared"}
    # nobody else gets volumes: neither by the chart's other parts nor by being launched from the code server
    rest = {name: part for name, part in VALUES.items() if name != "dagster-user-deployments"}
    assert "mlbot-home" not in yaml.safe_dump(rest)
    assert CODE["includeConfigInLaunchedRuns"] == {"enabled": False}
    assert (CODE["replicaCount"], CODE["deploymentStrategy"]["type"]) == (1, "Recreate")
    homes = {mount["mountPath"]: mount["name"] for mount in CODE["volumeMounts"]}
    assert homes[CODE["env"]["MLBOT_HOME"]] == "home"
    job_volumes = {one["name"]: one for one in POD["volumes"]}
    for container in OURS:
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        home = {one["name"]: one["value"] for one in container["env"]}["MLBOT_HOME"]
        assert "emptyDir" in job_volumes[mounts[home]["name"]]
        # both sides see the same models
        assert mounts[f"{home}/models"]["subPath"] == "models"
    assert {m["mountPath"]: m.get("subPath") for m in CODE["volumeMounts"]}["/data/models"] == "models"


def test_runs_stay_in_the_pod_of_the_code_server_by_a_launcher_that_exists():
    launcher = VALUES["runLauncher"]
    assert launcher["type"] == "CustomRunLauncher"
    custom = launcher["config"]["customRunLauncher"]
    module = importlib.import_module(custom["module"])
    assert module.DefaultRunLauncher.__name__ == custom["class"]
    module_name = CODE["codeServerArgs"][CODE["codeServerArgs"].index("--module-name") + 1]
    assert importlib.util.find_spec(module_name) is not None


def test_limits_by_tag_are_those_of_one_machine():
    coordinator = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    here = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    runs = here["concurrency"]["runs"]
    assert coordinator["maxConcurrentRuns"] == runs["max_concurrent_runs"]
    assert coordinator["tagConcurrencyLimits"] == runs["tag_concurrency_limits"]
    assert coordinator["dequeueIntervalSeconds"] == here["run_coordinator"]["config"]["dequeue_interval_seconds"]


def test_nothing_trades_and_no_secret_is_inline():
    for name in ("values.yaml", "heavy-job.yaml", "storage.yaml"):
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        assert not re.search(r"BYBIT|DEADMAN|MAINNET|MLBOT_LIVE|password: *\S", text), name
    for container in (CODE, *CONTAINERS):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
    for pod in (CODE["podSecurityContext"], POD["securityContext"]):
        assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 10001)
    assert VALUES["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    assert VALUES["ingress"]["enabled"] is False


def test_the_image_is_one_and_dagster_is_the_pinned_one():
    image = CODE["image"]
    assert {one["image"] for one in CONTAINERS} == {f"{image['repository']}:{image['tag']}"}
    pinned = re.search(r"^dagster==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert f"--version {pinned[1]} " in (FOLDER / "values.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("container", OURS, ids=lambda one: one["name"])
def test_commands_of_the_job_exist(container):
    assert container["args"][1] in typer.main.get_command(app).commands


def test_the_job_imports_then_trains_with_the_key_of_the_registry_in_its_home():
    assert [one["args"][:3] for one in OURS] == [["mlbot", "db", "import"], ["mlbot", "train", "--interval"]]
    (key,) = [one for one in CONTAINERS if one not in OURS]
    home = {one["name"]: one["value"] for one in key["env"]}["MLBOT_HOME"]
    assert key["args"][:2] == ["install", "--mode=0600"]
    assert key["args"][3] == f"{home}/registry.key"
    holders = [one["name"] for one in CONTAINERS if any(m["name"] == "registry" for m in one["volumeMounts"])]
    assert holders == ["key"]
    assert POD["restartPolicy"] == "Never"


def test_the_page_names_what_exists():
    paths = set(re.findall(r"`((?:deploy|tests)/[\w./-]+)`", PAGE))
    assert len(paths) >= 5
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    for command in re.findall(r"`mlbot ([a-z]+)", PAGE):
        assert command in typer.main.get_command(app).commands
