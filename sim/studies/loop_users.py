"""The mean number of users of a closed loop, from a number that may rarely be exceeded.

    waiting_users(100, 0.9)  # 88: with 88 on average, at most 100 wait for 90 % of the time

Numbers of users vary if their requests or pauses differ. Normal distributions stand for them.
Source: the machine repairman model (Kleinrock, Queueing Systems, volume 1, section 3.8).
"""

import math
from statistics import NormalDist

MOST_SHARE = 0.9995  # of the requests within the SLO; a normal distribution has no end


def waiting_users(most: float, share: float) -> float:
    """Return the mean users that wait or pause, with at most `most` for a share of the time.

    They come and go as a Poisson process, because served users leave at a constant rate. So the
    variance is the mean m, and m + z sqrt(m) = most, with z standard deviations for the share.
    """
    return _mean_below(most, _deviations(share))


def served_users(most: float, pausing: float, share: float) -> float:
    """Return the mean users that are served, with at most `most` for a share of the requests.

    pausing: mean users that pause, if `most` are served.
    Each user pauses independently, so the number at one time has a binomial variance. A request
    depends on the mean number during its answer, which varies less. The correlation of numbers
    at two times is exp(-t/tau), with tau = 1/(1/answer + 1/pause).
    Source: Papoulis, Probability, Random Variables, and Stochastic Processes, on time averages.
    """
    if not pausing:
        return most
    paused = pausing / (most + pausing)  # share of a user's time in pauses, which is tau/answer
    averaged = 2 * paused * (1 - paused * -math.expm1(-1 / paused))  # variance of mean / variance
    return _mean_below(most, _deviations(share) * math.sqrt(averaged * paused))


def _deviations(share: float) -> float:
    """Return z: a normal variable is at most z standard deviations above its mean for a share."""
    return NormalDist().inv_cdf(min(share, MOST_SHARE))


def _mean_below(most: float, factor: float) -> float:
    """Return the mean m with m + factor sqrt(m) = most."""
    root = (math.sqrt(factor * factor + 4 * most) - factor) / 2
    return root * root
