"""A user's own router, for `fleet.yaml`: it chooses the replica that gets a request."""

from collections.abc import Sequence

from sim.serving.policy import Request, RoutedReplica, relative_load

SHORT = 1024  # tokens of a prompt and its answer
FEW = 0.2  # of the requests that the KV cache of the LPUs could hold


def short_to_lpus(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """Send short requests to the LPUs while few wait there; all others go to the least loaded GPUs.

    A prompt takes the LPUs one beat a token, so a few waiting prompts already delay a first token.
    """
    lpus = [number for number, replica in enumerate(replicas) if replica.system == "lpus"]
    roomy = [
        number
        for number in lpus
        if request.tokens <= SHORT and relative_load(replicas[number], request) < FEW
    ]
    gpus = [number for number in range(len(replicas)) if number not in lpus]
    return min(roomy or gpus, key=lambda number: relative_load(replicas[number], request))
