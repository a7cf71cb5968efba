"""A router of one's own, for `fleet.yaml`: a function that is given the replicas and a request, and says which replica gets it."""

from collections.abc import Sequence

from sim.policy import Job, Served, load

SHORT = 1024  # tokens of a prompt and its answer


def short_to_lpus(replicas: Sequence[Served], job: Job) -> int:
    """Short requests go to the LPUs while those have room for one more; all others to the least loaded GPUs."""
    lpus = [number for number, replica in enumerate(replicas) if replica.system == "lpus"]
    roomy = [number for number in lpus if job.tokens <= SHORT and load(replicas[number], job) < 1]
    gpus = [number for number in range(len(replicas)) if number not in lpus]
    return min(roomy or gpus, key=lambda number: load(replicas[number], job))
