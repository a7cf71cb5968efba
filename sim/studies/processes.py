"""Calls of one function on several processes of this machine.

dict(on_processes(math.sqrt, {"a": 4.0, "b": 9.0}, jobs=2))  # {'a': 2.0, 'b': 3.0}
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from sim.inputs.errors import ArgumentError, UserError

K = TypeVar("K")
A = TypeVar("A")
R = TypeVar("R")


def on_processes(
    function: Callable[[A], R], arguments: Mapping[K, A], jobs: int
) -> Iterator[tuple[K, R]]:
    """Yield the key and the result of each call when it is over.

    The processes end with this one. With one job, or one argument, the calls are made here.

    Raises: UserError if one of the processes is killed.
    """
    if min(jobs, len(arguments)) <= 1:
        yield from ((key, function(argument)) for key, argument in arguments.items())
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(jobs, len(arguments)),
        multiprocessing.get_context("spawn"),
        initializer=_follow_parent,
    )
    try:
        futures = {pool.submit(function, argument): key for key, argument in arguments.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ArgumentError(
            "jobs",
            "got a killed process (out of memory?); expected each to end by itself; try fewer jobs",
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def results_of(function: Callable[[A], R], arguments: Mapping[K, A], jobs: int) -> dict[K, R]:
    """Return the result of each call, in order of the arguments, for any number of jobs.

    Calls that cannot be pickled are made in this process, such as those with a user's own policy.
    Then a line on stderr says why.
    Raises: the UserError of the first call that has one.
    """
    alone = min(jobs, len(arguments)) <= 1
    if not alone and (reason := _pickle_problem((function, arguments))):
        alone = True
        print(f"jobs {jobs}: one process does all work, since {reason}", file=sys.stderr)
    if alone:
        return {key: function(argument) for key, argument in arguments.items()}
    ended = dict(on_processes(partial(_result_or_error, function), arguments, jobs))
    results = {}
    for key in arguments:
        result = ended[key]
        if isinstance(result, UserError):
            raise result
        results[key] = result
    return results


def _pickle_problem(value: object) -> str:
    """Return why another process cannot be sent a value, on one line; '' if it can."""
    try:
        pickle.dumps(value)
    except Exception as error:  # whatever the classes of a user raise
        return f"others cannot be sent a value: {' '.join(str(error).split())}"
    return ""


def _result_or_error(function: Callable[[A], R], argument: A) -> R | UserError:
    """Return the result of a call, or the error of the user that it raises."""
    try:
        return function(argument)
    except UserError as error:
        return error


def _follow_parent() -> None:
    """Make a process of the pool end with its parent, and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
