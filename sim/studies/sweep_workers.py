"""Workers of a sweep: this process, several processes, or a Dask cluster.

dict(compute_points({point.digest: point.document}, jobs=1, cluster=None))
"""

from collections.abc import Iterator, Mapping

from sim.inputs.document import Document
from sim.inputs.errors import ArgumentError
from sim.studies.processes import on_processes
from sim.studies.sweep_record import PointRecord, compute_record

Records = Iterator[tuple[str, PointRecord]]  # digest of a point, and its record


def compute_points(missing: Mapping[str, Document], jobs: int, cluster: str | None) -> Records:
    """Yield the record of each point when it is finished.

    missing: scenarios by digest.  cluster: address of a Dask scheduler, or None.
    """
    if cluster:
        return _compute_on_cluster(missing, cluster)
    return on_processes(compute_record, missing, jobs)


def _compute_on_cluster(missing: Mapping[str, Document], address: str) -> Records:
    """Yield records from the workers of a Dask scheduler, which replaces lost workers.

    The workers need this version of sramsim.  Files that the scenario names by path must have the
    same path there.
    Raises: UserError if Dask is not installed, or no scheduler answers at the address.
    """
    try:
        import distributed
    except ImportError:
        raise ArgumentError(
            "cluster",
            "got no package dask.distributed; expected it to be installed;"
            " try pip install 'sramsim[dask]'",
        ) from None
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            "cluster",
            f"got {address}, where no scheduler answers: {error};"
            " expected the address of a Dask scheduler; try tcp://HOST:8786",
        ) from None
    with client:
        futures = {
            client.submit(compute_record, document, pure=False): digest
            for digest, document in missing.items()
        }
        for future in distributed.as_completed(futures):
            yield futures[future], future.result()
