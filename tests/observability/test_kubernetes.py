"""The Kubernetes files: one pod opens the warehouse, nothing trades, and everything that is named exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import sqlalchemy as sa
import typer
import yaml

from mlbot_core.cli.main import app
from mlbot_dagster.partitions import TRAINED_MODELS
from mlbot_dagster.pods import TAG, PodRunLauncher

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
CLAIMS = {one["metadata"]["name"]: one for one in yaml.safe_load_all((FOLDER / "storage.yaml").read_text("utf-8"))}
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
LAUNCHER = VALUES["runLauncher"]["config"]["customRunLauncher"]
POD = LAUNCHER["config"]["kubernetes"]
IMAGED = (CODE, VALUES["dagsterDaemon"], VALUES["dagsterWebserver"])


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
    environment = dict(one.split("=") for one in POD["env_vars"])
    # a pod has a home of its own and the models of all
    for home, mounted, volumes in (
        (CODE["env"]["MLBOT_HOME"], CODE["volumeMounts"], CODE["volumes"]),
        (environment["MLBOT_HOME"], POD["volume_mounts"], POD["volumes"]),
    ):
        mounts, named = {one["mountPath"]: one for one in mounted}, {one["name"]: one for one in volumes}
        assert mounts[f"{home}/models"]["subPath"] == "models"
        assert ("emptyDir" in named[mounts[home]["name"]]) == (mounted is POD["volume_mounts"])
    # the code server knows the job that its pods run, and both mean the same folder
    assert environment["MLBOT_EXPORTS"] == CODE["env"]["MLBOT_EXPORTS"]
    assert any(environment["MLBOT_EXPORTS"].startswith(f"{one['mountPath']}/") for one in POD["volume_mounts"])


def test_the_launcher_exists_and_knows_a_pod_for_every_model_that_is_trained():
    assert VALUES["runLauncher"]["type"] == "CustomRunLauncher"
    assert getattr(importlib.import_module(LAUNCHER["module"]), LAUNCHER["class"]) is PodRunLauncher
    assert set(LAUNCHER["config"]["pods"]) == set(TRAINED_MODELS)
    for resources in LAUNCHER["config"]["pods"].values():
        assert set(resources) == {"requests", "limits"}
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}
    module_name = CODE["codeServerArgs"][CODE["codeServerArgs"].index("--module-name") + 1]
    assert importlib.util.find_spec(module_name) is not None


def test_whoever_gets_dagster_yaml_mounted_may_write_beside_it():
    # Dagster keeps outputs and logs of runs there; a folder that is made for the mount alone belongs to root
    home = VALUES["global"]["dagsterHome"]
    for mounts, volumes in (
        (POD["volume_mounts"], POD["volumes"]),
        *((part["volumeMounts"], part["volumes"]) for part in IMAGED[1:]),
    ):
        named = {one["name"]: one for one in volumes}
        (place,) = [one["name"] for one in mounts if one["mountPath"] == home]
        assert "emptyDir" in named[place]


def test_names_are_those_that_the_chart_makes():
    # the release is called mlbot and its chart dagster (the command at the head of the file)
    text = (FOLDER / "values.yaml").read_text(encoding="utf-8")
    assert "helm upgrade --install mlbot dagster/dagster --version" in text
    assert (POD["service_account_name"], POD["instance_config_map"]) == ("mlbot-dagster", "mlbot-dagster-instance")
    assert POD["job_namespace"] == "mlbot"
    assert POD["postgres_password_secret"] == VALUES["global"]["postgresqlSecretName"]
    assert POD["dagster_home"] == VALUES["global"]["dagsterHome"]
    assert POD["env_secrets"] == [one["name"] for one in CODE["envSecrets"]]


def test_storage_can_be_opened_by_the_database_driver_that_is_installed():
    url = sa.engine.url.URL.create(VALUES["postgresql"]["postgresqlScheme"], "mlbot", host="nowhere")
    assert sa.create_engine(url).dialect.driver == "psycopg2"


def test_limits_by_tag_are_those_of_one_machine():
    coordinator = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    here = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    runs = here["concurrency"]["runs"]
    pods = [one for one in coordinator["tagConcurrencyLimits"] if one["key"] == TAG]
    # what is in pods takes no place from the others
    assert coordinator["maxConcurrentRuns"] - pods[0]["limit"] == runs["max_concurrent_runs"]
    assert [one for one in coordinator["tagConcurrencyLimits"] if one not in pods] == runs["tag_concurrency_limits"]
    assert coordinator["dequeueIntervalSeconds"] == here["run_coordinator"]["config"]["dequeue_interval_seconds"]


def test_nothing_trades_and_no_secret_is_inline():
    for name in ("values.yaml", "storage.yaml"):
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        assert not re.search(r"BYBIT|DEADMAN|MAINNET|MLBOT_LIVE|password: *\S", text), name
    for security in (CODE["securityContext"], POD["security_context"]):
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
    for part in IMAGED:
        assert (part["podSecurityContext"]["runAsNonRoot"], part["podSecurityContext"]["runAsUser"]) == (True, 10001)
    # web UI and daemon decide where runs go; they hold no key
    assert not any("envSecrets" in part for part in IMAGED[1:])
    pod = POD["run_k8s_config"]["pod_spec_config"]
    assert (pod["security_context"]["run_as_non_root"], pod["security_context"]["run_as_user"]) == (True, 10001)
    # what runs there needs nothing of the cluster
    assert pod["automount_service_account_token"] is False
    assert VALUES["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    assert VALUES["ingress"]["enabled"] is False


def test_the_image_is_one_and_dagster_is_the_pinned_one():
    assert all(part["image"] == CODE["image"] for part in IMAGED)
    assert "job_image" not in POD
    pinned = re.search(r"^dagster==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    text = (FOLDER / "values.yaml").read_text(encoding="utf-8")
    assert f"--version {pinned[1]} " in text
    assert f"--build-arg KUBERNETES=1 --tag {CODE['image']['repository']}:{CODE['image']['tag']} " in text
    assert "ARG KUBERNETES=" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def test_the_page_names_what_exists():
    paths = set(re.findall(r"`((?:deploy|tests)/[\w./-]+)`", PAGE))
    assert len(paths) >= 5
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    for command in re.findall(r"`mlbot ([a-z]+)", PAGE):
        assert command in typer.main.get_command(app).commands
