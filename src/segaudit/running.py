"""What the commands share: reading a spec, running it with a progress bar, and writing its page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from segaudit.audit.spec import RunSpec


def run(path: Path, out: str | None, workers: int | None, ray: str | None, limit: int | None) -> None:
    """Run a spec, write its page, and print where that is.

    path: The spec's file. out: The store's path [runs/NAME]. workers: Local processes [one a core]. ray: A cluster's
        address, or "local". limit: Only that many images.
    """
    from segaudit.audit import execute
    from segaudit.audit.run import run as audit

    spec = read(path, limit)
    out = out or f"runs/{spec.name}"
    count = workers or execute.default_workers()
    executor = execute.on_ray(ray) if ray else execute.local(count)
    with bar("auditing") as (shown, task):
        audit(
            spec,
            out,
            executor,
            f"ray {ray}" if ray else f"{count} local workers",
            lambda done, total: shown.update(task, completed=done, total=total, description=f"part {done}/{total}"),
        )
    print(report(out))


def read(path: Path, limit: int | None) -> RunSpec:
    """A run's spec, with only so many images."""
    from segaudit.audit import parts
    from segaudit.audit.spec import RunSpec

    spec = parts.read(RunSpec, path)
    if limit is None:
        return spec
    if spec.membership is not None:
        spec = spec.model_copy(update={"membership": spec.membership.of(limit)})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"args": spec.data.args | {"limit": limit}})})


def report(path: str) -> str:
    """Write the page of a run; returns where it is."""
    from segaudit.audit.run import results
    from segaudit.audit.store import Store
    from segaudit.report.page import page

    store = Store(path)
    store.write("report/index.html", page(results(path)).encode())
    return f"{store.path}/report/index.html"


@contextmanager
def bar(what: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, silent where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as shown:
        yield shown, shown.add_task(what, total=None)
