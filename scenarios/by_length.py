"""A user's own routers, for `fleet.yaml` and `mixed-requests.yaml`: they choose a replica."""

from collections.abc import Sequence

from sim.serving.policy import RoutedReplica, relative_load
from sim.serving.request import Request

SHORT = 1024  # tokens of a prompt and its answer
LONG = 4096  # tokens of a prompt that agents send, and a chat rarely does
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


def long_apart(replicas: Sequence[RoutedReplica], request: Request) -> int:
    """Send requests with a long prompt to the replicas of `long`, and all others elsewhere."""
    is_long = request.prompt > LONG
    own = [number for number, r in enumerate(replicas) if (r.system == "long") == is_long]
    return min(own, key=lambda number: relative_load(replicas[number], request))
