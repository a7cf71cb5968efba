"""Checks of the decisions of policies, of which any may be a user's function."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from sim.inputs.errors import UserError
from sim.serving.policy import (
    BatchDecision,
    Batching,
    BatchState,
    Order,
    RoutedReplica,
    Router,
    continuous,
    first_come_first_served,
    is_steady,
)
from sim.serving.request import Request


def checked_batching(policy: Batching) -> Batching:
    """Return a batching policy with a check of every decision.

    Raises: UserError from the returned policy, when its answer is not a BatchDecision, or breaks
    the declaration that it is steady.
    """
    if policy is continuous:  # the default, which is asked at nearly every step
        return policy
    is_declared = is_steady(policy)

    def _decide(state: BatchState) -> BatchDecision:
        decision = policy(state)
        if not _is_decision(decision):
            raise UserError(
                f"policy {policy_name(policy)}: got {decision!r} for {state}; "
                "expected a BatchDecision of true or false and two whole numbers, at least 0; "
                "try BatchDecision(True, state.budget - state.running, state.budget)"
            )
        if is_declared and decision != (expected := continuous(state)):
            raise UserError(
                f"policy {policy_name(policy)}: got {decision!r} for {state}; "
                f"expected {expected!r}, as it is declared steady; try to leave out @steady"
            )
        return decision

    return _decide


def policy_name(function: Callable[..., Any]) -> str:
    """Return the name of a policy, for errors."""
    return getattr(function, "__name__", repr(function))


def _is_decision(decision: object) -> bool:
    if not isinstance(decision, tuple) or len(decision) != 3:
        return False
    decodes, *counts = decision
    return decodes in (True, False) and all(map(_is_count, counts))


def _is_count(number: object) -> bool:
    if type(number) is int:  # nearly always, and ten times as fast as the test of its kind
        return number >= 0
    if isinstance(number, bool) or not isinstance(number, Integral):
        return False
    return int(number) >= 0


def checked_order(order: Order) -> Order:
    """Return an order with a check of every key.

    Raises: UserError from the returned order, when its answer is not a number.
    """
    if order is first_come_first_served:  # the default
        return order

    def _key_of(request: Request) -> float:
        key = order(request)
        if type(key) is float and key == key:
            return key
        if not isinstance(key, Real) or math.isnan(key):
            raise UserError(
                f"order {policy_name(order)}: got {key!r} for request {request.id}; "
                "expected a number, the smallest first; try request.arrival"
            )
        return float(key)

    return _key_of


def checked_router(router: Router) -> Router:
    """Return a router with a check of every choice.

    Raises: UserError from the returned router, when its answer is not the number of a replica.
    """

    def _choose(replicas: Sequence[RoutedReplica], request: Request) -> int:
        number = router(replicas, request)
        if not isinstance(number, Integral) or not 0 <= int(number) < len(replicas):
            raise UserError(
                f"router {policy_name(router)}: got {number!r} for request {request.id}; "
                f"expected the place of a replica, 0 to {len(replicas) - 1}; "
                "try range(len(replicas))"
            )
        return int(number)

    return _choose
