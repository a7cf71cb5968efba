"""The time of an output token while a number of users decode at the same time.

loaded_tpot(deployment, 64, 4096)  # s, of each of 64 users of a replica at 4,096 positions
"""

import math

from sim.cost.system_costs import pass_times
from sim.cost.work import decodes_at
from sim.planning.deployment import Deployment
from sim.units import Seconds


def loaded_tpot(deployment: Deployment, users: int, context: float) -> Seconds:
    """Return the TPOT of `users` sequences of one replica, each at `context` positions.

    The sequences spread evenly over m micro-batches: TPOT = max(m slowest stages, one pass).
    Left out: prompts.  A step that computes one as well takes longer.
    """
    batches = min(users, deployment.limits.micro_batches)
    share = math.ceil(users / batches)
    work = decodes_at(share, context, deployment.limits.window)
    slowest, one_pass = pass_times(deployment.costs, work)
    return max(batches * slowest, one_pass)
