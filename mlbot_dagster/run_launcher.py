"""Runs of the servers whose process was killed are found within seconds, and end as failed.

Dagster's own launcher starts a run in a process beside the code server and never looks at it again. Where the code
server is killed its runs die with it (the supervisor ends the whole group), and would count as running for ever: no
alert, no second try, and a place in the queue less. Run monitoring (``dagster.yaml``) asks this launcher every few
seconds; the code server knows which runs it executes.
"""

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

from mlbot_dagster import orphans

_PATIENCE_S = 5


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's launcher, which can also say whether a run is still executed."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Whether it can be asked; it can."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started a run whether it executes it.

        What cannot be asked counts as running: monitoring would end everything else at once. A server that does not
        answer is started again by its supervisor, and then says that it knows nothing of the run.
        """
        if orphans.TAG in run.tags and run.parent_run_id is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "a command executes it; its end is seen by the sweep")
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "no code server is known to ask")
        try:
            asked = CanCancelExecutionRequest(run_id=run.run_id)
            answer = deserialize_value(client.can_cancel_execution(asked, _PATIENCE_S), CanCancelExecutionResult)
        except DagsterUserCodeUnreachableError as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"its code server does not answer: {error}")
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone: the code server does not execute it")
