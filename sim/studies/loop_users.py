"""How many users a closed loop has on average, if a share of the time there may be so many.

    waiting_users(100, 0.9)  # 88 on average, if in 90 % of all cases at most 100 may wait

Numbers of users vary if their requests or pauses differ. Normal distributions stand for them.
Source: the machine repairman model (Kleinrock, Queueing Systems, volume 1, section 3.8).
"""

import math
from statistics import NormalDist

MOST_SHARE = 0.9995  # of the requests within the SLO; a normal distribution has no end


def waiting_users(ahead: float, share: float) -> float:
    """Return the mean users that wait or pause, if for a share of the time there are `ahead`.

    They come and go as a Poisson process, because served users leave at a constant rate. So the
    variance is the mean m: m + z sqrt(m) = ahead.
    """
    return _mean_below(ahead, _deviations(share))


def served_users(most: float, pausing: float, share: float) -> float:
    """Return the mean users that are served, if for a share of the requests there are `most`.

    pausing: mean users that pause, if `most` are served.
    Each user pauses independently, so the variance is binomial. A request sees the mean over its
    answer, which varies less: the number of users is correlated over tau = 1/(1/answer + 1/pause).
    The variance of that mean is that of a correlation exp(-t/tau).
    Source: Papoulis, Probability, Random Variables, and Stochastic Processes, on time averages.
    """
    if not pausing:
        return most
    pause = pausing / (most + pausing)  # the share of a user's time, and tau/answer
    averaged = 2 * pause * (1 - pause * -math.expm1(-1 / pause))
    return _mean_below(most, _deviations(share) * math.sqrt(averaged * pause))


def _deviations(share: float) -> float:
    """Return how many standard deviations above its mean a number is, for a share of the time."""
    return NormalDist().inv_cdf(min(share, MOST_SHARE))


def _mean_below(most: float, factor: float) -> float:
    """Return the mean m with m + factor sqrt(m) = most."""
    root = (math.sqrt(factor * factor + 4 * most) - factor) / 2
    return root * root
