from sim.hardware.chip import Compute, Memory, Op
from sim.units import Seconds


class InMemory(Compute):
    """Weights never move: a matrix takes `settle` for each token, whatever its size; attention is computed digitally."""

    settle: Seconds

    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        compute = op.tokens * self.settle if op.matrices else op.flops / self.peak(*op.precisions)
        return compute, (op.kv + op.activations) / memory.bandwidth
