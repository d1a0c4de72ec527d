"""What the Kubernetes files rest on, by plain processes: the Job that the launcher posts is carried out by hand.

Everything is real but the cluster: Postgres, the code server, Dagster's command that launches a partition, the launcher
with the configuration of ``values.yaml``, the Kubernetes client. A server on loopback takes the Job; its command is run
with its environment in an empty home, as the pod would.
"""

from __future__ import annotations

import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from mlbot_core.cli.supervisor import end_group

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
VALUES = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
DAEMON = VALUES["dagsterDaemon"]
LAUNCHER = VALUES["runLauncher"]["config"]["customRunLauncher"]
IMAGE = f"{CODE['image']['repository']}:{CODE['image']['tag']}"
FROM, TO, CLOCK = "2024-01-01", "2024-07-01", "fixed:2024-07-05T00:10:00Z"
PARTITION = "BTC-2h|lightgbm"


class Cluster:
    """Takes Jobs as a Kubernetes API server does, and starts none of them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, dict[str, Any]]] = []
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.jobs.append((self.path, job))
                self._answer(201, job)

            def do_GET(self) -> None:
                # run monitoring asks how its Jobs are
                named = {f"{path}/{job['metadata']['name']}/status": job for path, job in outer.jobs}
                job = named.get(self.path)
                outer.asked += job is not None
                if job is None:
                    self._answer(404, {"kind": "Status", "status": "Failure", "code": 404})
                else:
                    self._answer(200, job | {"status": {"active": 1}})

            def _answer(self, code: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def kubeconfig(self, path: Path) -> Path:
        named = [{"name": "here", "cluster": {"server": self.url}}]
        context = [{"name": "here", "context": {"cluster": "here", "user": "me"}}]
        content = {"apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": named}
        path.write_text(yaml.safe_dump(content | {"contexts": context, "users": [{"name": "me", "user": {}}]}))
        return path

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.stop()


class Pod:
    """A home of its own; books and Dagster's storage in the common Postgres, models in the common folder."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.home = folder / name
        self.home.mkdir()
        (folder / "shared" / "models").mkdir(parents=True, exist_ok=True)
        (self.home / "models").symlink_to(folder / "shared" / "models")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLBOT_", "DAGSTER_"))}
        kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        self.environment = kept | dict(environment) | {"MLBOT_HOME": str(self.home)}

    def run(self, command: list[str], seconds: float = 900) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @contextmanager
    def serving(self, command: list[str], **extra: str) -> Iterator[None]:
        with (self.home / "served.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | extra,
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield
        finally:
            end_group(process.pid, 30, process)

    def mlbot(self, *words: str) -> Any:
        return json.loads(self.run([sys.executable, "-m", "mlbot_core.cli.main", *words, "--json"]))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Books:
    """What Postgres holds."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(
            url.replace("postgresql://", "postgresql+psycopg2://"), poolclass=sa.pool.NullPool
        )

    def ask(self, text: str) -> list[tuple[Any, ...]]:
        with self._engine.connect() as con:
            return [tuple(row) for row in con.execute(sa.text(text))]

    def runs(self) -> bool:
        return bool(self.ask("SELECT 1 FROM pg_tables WHERE tablename = 'runs'"))

    def trials(self) -> int:
        tables = {name for (name,) in self.ask("SELECT tablename FROM pg_tables")}
        return self.ask("SELECT count(*) FROM trials")[0][0] if "trials" in tables else 0

    def status(self, job: str) -> dict[str, str]:
        return dict(self.ask(f"SELECT run_id, status FROM runs WHERE pipeline_name = '{job}' ORDER BY id"))  # type: ignore[arg-type]


def configure(config: Path) -> None:
    for name, section, values in (
        ("intervals", "", {"timeframes": ["2h"], "history_start": FROM}),
        ("models", "walk_forward", {"train_days": 120, "min_train_days": 60, "test_days": 30, "models": {}}),
    ):
        path = config / f"{name}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        (content[section] if section else content).update(values)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def instance(folder: Path, url: str, kubeconfig: Path, port: int) -> Path:
    """Write ``dagster.yaml`` and the workspace as the chart's templates write them from the values; return the folder.

    Run monitoring looks more often, that is all.
    """
    config = dict(LAUNCHER["config"])
    config["kubernetes"] = config["kubernetes"] | {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    parts = sa.make_url(url)
    database = {"username": parts.username, "password": "", "hostname": parts.host, "port": parts.port}
    database |= {"db_name": parts.database, "scheme": VALUES["postgresql"]["postgresqlScheme"]}
    made: dict[str, Any] = {
        f"{part}_storage": {
            "module": f"dagster_postgres.{part if part == 'event_log' else part + '_storage'}",
            "class": name,
            "config": {"postgres_db": database},
        }
        for part, name in (
            ("run", "PostgresRunStorage"),
            ("event_log", "PostgresEventLogStorage"),
            ("schedule", "PostgresScheduleStorage"),
        )
    }
    queue = DAEMON["runCoordinator"]["config"]["queuedRunCoordinator"]
    made["run_launcher"] = {"module": LAUNCHER["module"], "class": LAUNCHER["class"], "config": config}
    made["run_coordinator"] = {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {
            "max_concurrent_runs": queue["maxConcurrentRuns"],
            "tag_concurrency_limits": queue["tagConcurrencyLimits"],
            "dequeue_interval_seconds": queue["dequeueIntervalSeconds"],
        },
    }
    made["run_monitoring"] = {"enabled": True, "poll_interval_seconds": 2, "max_resume_run_attempts": 0}
    made["run_retries"] = {"enabled": True, "max_retries": DAEMON["runRetries"]["maxRetries"]}
    made["telemetry"] = {"enabled": VALUES["telemetry"]["enabled"]}
    folder.mkdir()
    (folder / "dagster.yaml").write_text(yaml.safe_dump(made))
    place = {"host": "127.0.0.1", "port": port, "location_name": "mlbot"}
    (folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": place}]}))
    return folder


def wait(ready: Any, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.5)
    return found


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_heavy_partition_is_fitted_in_a_pod_and_the_owner_of_the_warehouse_fits_nothing(
    tmp_path: Path, make_home: Any, postgres_url: str, cluster: Cluster
) -> None:
    config = Path(make_home("unused").environment["MLBOT_CONFIG_DIR"])
    configure(config)
    shared, models, books = tmp_path / "shared", tmp_path / "shared" / "models", Books(postgres_url)
    common = {
        "MLBOT_CONFIG_DIR": str(config),
        "MLBOT_SOURCE": "emulator",
        "MLBOT_CLOCK": CLOCK,
        "MLBOT_PG_URL": postgres_url,
        "MLBOT_THREADS": "1",
    }
    owner = Pod(tmp_path, "owner", common | {"MLBOT_EXPORTS": str(shared / "exports"), "DAGSTER_CURRENT_IMAGE": IMAGE})
    owner.mlbot("backfill", "--from", FROM, "--to", TO, "-i", "2h")
    owner.mlbot("db", "export", str(shared / "exports" / "2024-07-01"))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = instance(tmp_path / "dagster", postgres_url, cluster.kubeconfig(tmp_path / "kubeconfig"), port)
    daemon = Pod(tmp_path, "daemon", {"DAGSTER_HOME": str(home)})
    workspace = ["-w", str(home / "workspace.yaml")]

    def launch(job: str) -> str:
        """Launch a partition by Dagster's command, as the button of the UI does; return the run."""
        known = set(books.status(job)) if books.runs() else set()
        command = [sys.executable, "-m", "dagster", "job", "backfill", "-j", job, "--partitions", PARTITION]
        daemon.run([*command, "--noprompt", *workspace])
        (run_id,) = set(books.status(job)) - known
        return run_id

    with ExitStack() as started:
        words = ["code-server", "start", "-h", "127.0.0.1", "-p", str(port), *CODE["codeServerArgs"]]
        started.enter_context(owner.serving([sys.executable, "-m", "dagster", *words], DAGSTER_HOME=str(home)))
        wait(lambda: answers(port), 120, "the code server")
        started.enter_context(daemon.serving([sys.executable, "-m", "dagster._daemon", "run", *workspace]))

        # the heavy half: a pod of the model's kind, which could not open the warehouse
        fit = launch("fit")
        wait(lambda: cluster.jobs, 120, "the Job")
        ((path, job),) = cluster.jobs
        assert path == f"/apis/batch/v1/namespaces/{LAUNCHER['config']['kubernetes']['job_namespace']}/jobs"
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["resources"] == LAUNCHER["config"]["pods"]["lightgbm"]
        assert container["image"] == IMAGE
        claims = {
            one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one
        }
        assert claims == {"mlbot-shared"}
        assert spec["restartPolicy"] == "Never"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert {one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one} == {"mlbot-secrets"}
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert given["MLBOT_HOME"] in {mount["mountPath"] for mount in container["volumeMounts"]}

        # what differs is what mounts and the secret would have given it
        worker = Pod(
            tmp_path,
            "worker",
            {key: value for key, value in given.items() if value is not None}
            | common
            | {"MLBOT_EXPORTS": str(shared / "exports"), "DAGSTER_HOME": str(home)},
        )
        before = time.monotonic()
        worker.run(container["args"])
        print(f"fitted in {time.monotonic() - before:.0f} s: {shlex.join(container['args'])[:120]}")
        assert books.status("fit") == {fit: "SUCCESS"}
        assert cluster.asked, "run monitoring asks the cluster how the Job is"
        trained = contents(models)
        assert any(name.startswith("folds/") for name in trained)
        assert not (worker.home / "registry.key").exists()
        assert books.trials() == 0

        # the light half: beside the code server, which finds every fold, stores forecasts, registers and counts once
        before = time.monotonic()
        train = launch("train")
        wait(lambda: books.status("train")[train] in ("SUCCESS", "FAILURE"), 600, "the run beside the code server")
        print(f"taken over in {time.monotonic() - before:.0f} s")
        assert books.status("train")[train] == "SUCCESS"
        assert len(cluster.jobs) == 1
        assert {name: one for name, one in contents(models).items() if name in trained} == trained
        assert books.trials() == 1
        (model,) = owner.mlbot("models", "list", "--all")["models"]
        assert model["model"]
        (backtest,) = owner.mlbot("backtest", "-i", "2h", "-m", "lightgbm")["summaries"]
        assert backtest["folds"] >= 3
