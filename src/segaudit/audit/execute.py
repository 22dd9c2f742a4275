"""Two executors with one interface: tasks in, finished tasks out, in any order. Same plan, same records."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread

import torch

from segaudit.audit.work import Work, work
from segaudit.types import UserError

Executor = Callable[[Sequence[Work]], Iterator[Work]]


def default_workers() -> int:
    """One worker a core; one in all where there is a GPU."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def local(workers: int) -> Executor:
    """Worker processes on this machine, one thread each so that their number changes no result."""

    def run(tasks: Sequence[Work]) -> Iterator[Work]:
        if workers == 1 or len(tasks) <= 1:
            before = torch.get_num_threads()
            try:
                torch.set_num_threads(1)
                for task in tasks:
                    work(task)
                    yield task
            finally:
                torch.set_num_threads(before)
                torch.set_flush_denormal(False)  # work turns it on
            return
        count = min(workers, len(tasks))
        with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
            futures = {pool.submit(work, task): task for task in tasks}
            try:
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process died, most often for want of memory; give the same command again with fewer "
                    "--workers or a smaller batch: what is finished is kept"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return run


def _start_worker() -> None:
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker of a killed run would wait for work for ever, with its memory and its GPU."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def on_ray(address: str) -> Executor:
    """The nodes of a Ray cluster, or `local` for one started here and ended with the work.

    All nodes must see the store, the data and the working folder under the same paths.
    """
    host, _, port = address.rpartition(":")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listen on the loopback address alone
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'segaudit[cluster]'") from error

    def run(tasks: Sequence[Work]) -> Iterator[Work]:
        if not tasks:
            return
        try:
            if host and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        except (OSError, ValueError) as error:
            raise UserError(f"--ray {address}: no cluster answers there ({error})") from error
        try:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
            remote = ray.remote(num_cpus=1, num_gpus=gpus)(_on_node)
            waiting = {remote.remote(task, os.getcwd()): task for task in tasks}
            while waiting:
                done, _ = ray.wait(list(waiting))
                for reference in done:
                    ray.get(reference)
                    yield waiting.pop(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (UserError(str(cause)) if isinstance(cause, UserError) else error) from error
        finally:
            ray.shutdown()  # what still runs of this job ends with it

    return run


def _on_node(task: Work, folder: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    work(task)
