"""Where the code of a run of the command line lives, as Dagster notes it of runs that were launched from the UI."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

# as in workspace.yaml
LOCATION = "mlbot"
_CODE = ModuleCodePointer("mlbot_dagster.definitions", "defs")


@contextmanager
def noted(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Note the origin of the runs of ``job`` that are created within a ``with`` block.

    ``execute_in_process`` creates its run without one. Such a run is not listed under its job in the UI, and its button
    for re-execution answers with a stack trace.
    """
    create = instance.create_run_for_job
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), SINGLETON_REPOSITORY_NAME)
    code = RepositoryPythonOrigin(
        sys.executable, _CODE, container_image=None, entry_point=DEFAULT_DAGSTER_ENTRY_POINT, container_context=None
    )

    def create_noted(**arguments: Any) -> dg.DagsterRun:
        return create(
            **arguments, remote_job_origin=RemoteJobOrigin(place, job), job_code_origin=JobPythonOrigin(job, code)
        )

    instance.create_run_for_job = create_noted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del instance.create_run_for_job
