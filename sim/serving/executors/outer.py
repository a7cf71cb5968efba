"""An executor around another one, which makes the steps."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.results.rows import Traffic
from sim.serving.executors.executor import BatchStep, Executor
from sim.serving.kv_cache import KVCache
from sim.serving.request import Request
from sim.units import Seconds


class OuterExecutor(Executor):
    """An executor that passes on to another one all that it does not change.

    executor: the other one, which takes batch steps through the stages.
    """

    executor: Executor

    def abort(self) -> None:
        self.executor.abort()

    def stop(self) -> None:
        self.executor.stop()
        super().stop()

    def interrupt(self, request: Request | None = None) -> None:
        self.executor.interrupt(request)

    def end_before(self, time: Seconds) -> None:
        self.executor.end_before(time)

    def interrupt_step(self, batch_step: BatchStep) -> None:
        self.executor.interrupt_step(batch_step)

    def take_kv_from(self, kv_cache: KVCache) -> None:
        self.executor.take_kv_from(kv_cache)

    def assign_prefill_chunks(
        self, request: Request, idle: deque[Any], most: int, start_step: Callable[[Any], object]
    ) -> None:
        self.executor.assign_prefill_chunks(request, idle, most, start_step)

    def complete_silent(self) -> None:
        self.executor.complete_silent()

    def flush(self) -> None:
        self.executor.flush()

    def tally_so_far(self) -> Tally:
        return self.executor.tally_so_far()

    def busy_so_far(self) -> NDArray[np.float64]:
        return self.executor.busy_so_far()

    @property
    def free_at(self) -> Seconds:
        return self.executor.free_at

    @property
    def traffic(self) -> Traffic | None:
        return self.executor.traffic

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.executor.busy
