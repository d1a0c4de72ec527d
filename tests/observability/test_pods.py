"""Who gets a pod and who does not, and a pod's first step: load the newest export, and never over somebody's store."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.launcher import WorkerStatus

from mlbot_core.clock import FixedClock
from mlbot_core.errors import ConfigError, MissingDataError, UsageError
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.backup import export_store
from mlbot_dagster import fitting, orphans
from mlbot_dagster.partitions import TRAINED_MODELS
from mlbot_dagster.pods import TAG, PodRunLauncher

ROOT = Path(__file__).resolve().parents[2]
VALUES = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))
CONFIG = VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "http://127.0.0.1:PORT"}}]
contexts: [{name: here, context: {cluster: here, user: me}}]
users: [{name: me, user: {}}]
"""


@dg.op
def rest() -> None:
    pass


@dg.job
def anything() -> None:
    rest()


class Api:
    """One Job, as a Kubernetes API server tells of it; it can be deleted."""

    def __init__(self) -> None:
        self.status: dict[str, int] | None = {"active": 1}
        self.deleted: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = outer.status is not None and "/jobs/" in self.path
                job = {"kind": "Job", "metadata": {"name": "one", "namespace": "mlbot"}, "status": outer.status}
                listing = {"kind": "PodList", "items": []}
                if found or "/pods" in self.path:
                    self._answer(200, job if found else listing)
                else:
                    self._answer(404, {"kind": "Status", "status": "Failure", "code": 404})

            def do_DELETE(self) -> None:
                outer.deleted.append(self.path.partition("?")[0].rpartition("/")[2])
                self._answer(200, {"kind": "Status", "status": "Success"})

            def _answer(self, code, content):
                body = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def api():
    made = Api()
    yield made
    made.stop()


@pytest.fixture
def launcher(tmp_path, api):
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.replace("PORT", str(api.port)))
    outside = CONFIG["kubernetes"] | {"load_incluster_config": False, "kubeconfig_file": str(path)}
    return lambda: PodRunLauncher.from_config_value(None, checked(CONFIG | {"kubernetes": outside}))


def checked(config):
    done = process_config(resolve_to_config_type(PodRunLauncher.config_type()), config)
    assert done.success, done.errors
    return done.value


def test_the_configuration_of_the_values_is_what_both_launchers_take(launcher):
    assert set(launcher()._pods) == set(TRAINED_MODELS)
    with_own = CONFIG | {"kubernetes": CONFIG["kubernetes"] | {"resources": {}}}
    wrong = process_config(resolve_to_config_type(PodRunLauncher.config_type()), with_own)
    assert not wrong.success, "resources are said by tag and nowhere else"


def test_a_tag_decides_and_what_a_command_executes_itself_is_nobodys(launcher):
    with dg.DagsterInstance.ephemeral() as instance:
        made = launcher()
        made.register_instance(instance)

        def of(**tags):
            return made._of(
                instance.create_run_for_job(anything, tags={k.replace("__", "/"): v for k, v in tags.items()})
            )

        assert of() is None
        for model, resources in CONFIG["pods"].items():
            pod = of(mlbot__pod=model)
            assert dict(pod.resources) == resources
            assert pod._instance is instance
        assert of(mlbot__pod="tft", **{orphans.TAG: "1-abc"}) is None
        with pytest.raises(ConfigError, match=r"asks by its tag mlbot/pod for a pod 'gpu'.*catboost, constant"):
            of(mlbot__pod="gpu")


def test_whoever_started_a_run_is_asked_how_it_is_and_ends_it(launcher, api):
    with dg.DagsterInstance.ephemeral() as instance:
        made = launcher()
        made.register_instance(instance)

        def started(**tags):
            return instance.create_run_for_job(anything, tags=tags, status=dg.DagsterRunStatus.STARTED)

        pod, beside = started(**{TAG: "tft"}), started()

        def health(run):
            return made.check_run_worker_health(run).status

        assert health(pod) is WorkerStatus.RUNNING
        api.status = {"failed": 1}
        assert health(pod) is WorkerStatus.FAILED
        api.status = None
        assert health(pod) is WorkerStatus.UNKNOWN
        # no cluster is asked of the others, and nobody knows a server of this one
        assert health(beside) is WorkerStatus.RUNNING
        assert made.get_run_worker_debug_info(beside) is None
        assert made.terminate(beside.run_id) is False
        assert api.deleted == []
        assert made.terminate(pod.run_id) is True
        assert api.deleted == [f"dagster-run-{pod.run_id}"]
        assert instance.get_run_by_id(pod.run_id).status is dg.DagsterRunStatus.CANCELING


def test_without_the_package_the_launcher_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dagster_k8s", None)
    for make in (PodRunLauncher.config_type, lambda: PodRunLauncher(CONFIG["pods"], CONFIG["kubernetes"])):
        with pytest.raises(ConfigError, match=r"--constraint constraints\.txt dagster-k8s"):
            make()


JOBS = """
from mlbot_dagster.definitions import defs
names = {job.name for job in defs.resolve_all_job_defs()}
print("fit" in names)
if "fit" in names:
    print(defs.resolve_job_def("fit").partitioned_config.get_tags_for_partition_key("BTC-2h|tft")["mlbot/pod"])
"""


def said(code, home, **extra):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"MLBOT_HOME": str(home)} | extra,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_job_of_pods_is_only_where_there_are_pods_and_asks_for_one_by_model(tmp_path):
    assert said(JOBS, tmp_path) == ["False"]
    assert said(JOBS, tmp_path, MLBOT_EXPORTS="/shared/exports") == ["True", "tft"]
    assert TAG == "mlbot/pod"


def store(path):
    return Warehouse(path / "warehouse.duckdb", FixedClock(0))


def test_a_pod_loads_the_newest_whole_export_and_nothing_is_loaded_over_a_store(tmp_path):
    exports = tmp_path / "exports"
    with pytest.raises(MissingDataError, match="mlbot db export"):
        fitting.load_newest(store(tmp_path), exports)
    owner = store(tmp_path / "owner")
    with owner.write() as con:
        con.execute("CREATE TABLE IF NOT EXISTS probe AS SELECT 1 AS one")
    for name in ("2025-05-31", "2025-06-30", "2025-07-31.partial-7"):
        export_store(owner, exports / name)
    mine = store(tmp_path / "pod")
    assert fitting.load_newest(mine, exports) == exports / "2025-06-30"
    assert mine.path.exists()
    with pytest.raises(UsageError, match=r"there is a store at .*with its tag mlbot/pod"):
        fitting.load_newest(owner, exports)


def test_a_server_that_dagster_starts_itself_outlives_a_database_that_is_away(tmp_path):
    code = (
        "from dagster._grpc import server\n"
        "import mlbot_dagster.definitions, mlbot_dagster.code_server as ours\n"
        "first = server.DagsterApiServer._check_for_orphaned_runs\n"
        "ours.look_again()\n"
        "print(first.__module__, first is server.DagsterApiServer._check_for_orphaned_runs)\n"
    )
    assert said(code, tmp_path) == ["mlbot_dagster.code_server", "True"]
