"""Workers of a sweep: this process, several processes, or a Dask cluster.

dict(compute_points({point.digest: point.document}, jobs=1, cluster=None))
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.studies.sweep_record import PointRecord, compute_record

Records = Iterator[tuple[str, PointRecord]]  # digest of a point, and its record


def compute_points(missing: Mapping[str, Document], jobs: int, cluster: str | None) -> Records:
    """Yield the record of each point when it is finished.

    missing: scenarios by digest.  cluster: address of a Dask scheduler, or None.
    """
    jobs = min(jobs, len(missing))
    if cluster:
        return _compute_on_cluster(missing, cluster)
    if jobs > 1:
        return _compute_on_processes(missing, jobs)
    return ((digest, compute_record(document)) for digest, document in missing.items())


def _compute_on_processes(missing: Mapping[str, Document], jobs: int) -> Records:
    """Yield records from processes of this machine, which end with this process.

    Raises: UserError if one of them is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        futures = {
            pool.submit(compute_record, document): digest for digest, document in missing.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "sweep: got a killed process (out of memory?); the same command computes the rest;"
            " try fewer --jobs"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Make a process of the pool end with its parent, and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _compute_on_cluster(missing: Mapping[str, Document], address: str) -> Records:
    """Yield records from the workers of a Dask scheduler, which replaces lost workers.

    The workers need this version of sramsim.  Files that the scenario names by path must have the
    same path there.
    Raises: UserError if Dask is not installed, or no scheduler answers at the address.
    """
    try:
        import distributed
    except ImportError:
        raise UserError(
            "--dask: got no dask.distributed; expected it; try pip install 'sramsim[dask]'"
        ) from None
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--dask: got {address}, where no scheduler answers: {error};"
            " expected the address of a Dask scheduler; try tcp://HOST:8786"
        ) from None
    with client:
        futures = {
            client.submit(compute_record, document, pure=False): digest
            for digest, document in missing.items()
        }
        for future in distributed.as_completed(futures):
            yield futures[future], future.result()
