"""Runs that ask for a pod of their own get one; all others stay beside the code server, which opens the warehouse.

For a cluster (``deploy/kubernetes/values.yaml``). A run asks by the tag :data:`TAG`; its value names an entry of
``pods`` in the launcher's configuration, which says what a pod of that kind may use. The job that trains asks with the
model's type, so that a network gets other machines than a ridge regression. On one machine nobody reads the tag.

Who opens the warehouse is decided here and nowhere else: a run without the tag is a process in the code server's pod,
and a pod that this launcher starts has no volume of the code server's to open it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext
from dagster._serdes import ConfigurableClassData

from mlbot_core.errors import ConfigError
from mlbot_dagster import orphans
from mlbot_dagster.run_launcher import WatchedRunLauncher

if TYPE_CHECKING:
    from dagster_k8s import K8sRunLauncher

TAG: Final = "mlbot/pod"


class PodRunLauncher(WatchedRunLauncher):
    """Sends tagged runs to Kubernetes and all others to the code server.

    Parameters
    ----------
    pods
        By value of the tag: the resources of the pod, as Kubernetes writes them (``requests`` and ``limits``).
    kubernetes
        Configuration of ``dagster_k8s.K8sRunLauncher``, the same for all of them but for the resources.

    Raises
    ------
    ConfigError
        If ``dagster-k8s`` is not installed.
    """

    def __init__(
        self,
        pods: Mapping[str, Mapping[str, Any]],
        kubernetes: Mapping[str, Any],
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(inst_data=inst_data)
        make = _package().K8sRunLauncher
        self._pods: dict[str, K8sRunLauncher] = {
            name: make(**{**kubernetes, "resources": dict(resources)}) for name, resources in pods.items()
        }

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration: resources by value of the tag, and what the stock launcher is told."""
        stock = _package().K8sRunLauncher.config_type()
        return {
            "pods": dg.Field(dg.Map(str, dg.Permissive(), key_label_name=TAG)),
            "kubernetes": dg.Field(dg.Shape({name: one for name, one in stock.items() if name != "resources"})),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Build it from its configuration."""
        return cls(config_value["pods"], config_value["kubernetes"], inst_data)

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Tell every launcher whose it is."""
        super().register_instance(instance)
        for pod in self._pods.values():
            pod.register_instance(instance)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run where its tag says.

        Raises
        ------
        ConfigError
            If the tag names no entry of ``pods``; the run then fails with this message.
        """
        pod = self._of(context.dagster_run)
        if pod is None:
            super().launch_run(context)
        else:
            pod.launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """End a run where it was started."""
        run = self._instance.get_run_by_id(run_id)
        pod = None if run is None else self._of(run)
        return bool(super().terminate(run_id) if pod is None else pod.terminate(run_id))

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Ask whoever started the run whether it is still executed."""
        pod = self._of(run)
        return super().check_run_worker_health(run) if pod is None else pod.check_run_worker_health(run)

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Return what Kubernetes says of the pod of a run that failed."""
        pod = self._of(run)
        if pod is None:
            return super().get_run_worker_debug_info(run, include_container_logs)
        return pod.get_run_worker_debug_info(run, include_container_logs)

    def dispose(self) -> None:
        """Let go of everything."""
        for pod in self._pods.values():
            pod.dispose()
        super().dispose()

    def _of(self, run: dg.DagsterRun) -> K8sRunLauncher | None:
        """Return who has the run; None of the code server, and of a command, which executes its runs itself."""
        asked = run.tags.get(TAG)
        if asked is None or (orphans.TAG in run.tags and run.parent_run_id is None):
            return None
        if asked not in self._pods:
            raise ConfigError(
                f"run {run.run_id[:8]} asks by its tag {TAG} for a pod {asked!r}, and the launcher knows "
                f"{', '.join(sorted(self._pods)) or 'none'}; add its resources to `pods` of the run launcher"
            )
        return self._pods[asked]


def _package() -> Any:
    try:
        import dagster_k8s
    except ImportError as error:
        raise ConfigError(
            "runs in pods need the package dagster-k8s, of the release of dagster (constraints.txt); build the image "
            "with --build-arg KUBERNETES=1, or pip install --constraint constraints.txt dagster-k8s"
        ) from error
    return dagster_k8s
