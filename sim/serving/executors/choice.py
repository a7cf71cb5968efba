"""The choice of a replica's executor."""

from functools import partial

import simpy

from sim.cost.energy import Tally
from sim.cost.step import Costs
from sim.cost.system_costs import SystemCosts
from sim.results.histogram import Gaps
from sim.serving.executors.chips import ChipExecutor
from sim.serving.executors.drawn_steps import DrawnStepsExecutor
from sim.serving.executors.executor import Executor
from sim.serving.executors.fast_forward import FastForwardExecutor
from sim.serving.executors.pausing import PausingExecutor
from sim.serving.executors.retry import RetryExecutor
from sim.serving.executors.stepwise import StepwiseExecutor
from sim.serving.replica_config import ReplicaConfig


def executor_for(
    env: simpy.Environment,
    config: ReplicaConfig,
    gaps: Gaps,
    leap: bool,
    independent: bool = False,
) -> Executor:
    """Return the executor of a replica.

    leap: whether to make the steps in which nothing changes in one event. Results are the same.
    independent: whether nothing that returns at another replica changes this one.
    """
    sampler = config.error_sampler
    if failing := config.pool_outages:
        make = partial(_between_failures, env, config, gaps, leap)
        return PausingExecutor(env, make, config.costs, gaps, failing.times)
    if config.machine:
        executor: Executor = ChipExecutor(env, config.machine(env, config.number), gaps)
    else:
        executor = _stage_executor(env, config, gaps, leap, independent)
    return RetryExecutor(env, executor, sampler, gaps) if sampler else executor


def _between_failures(
    env: simpy.Environment,
    config: ReplicaConfig,
    gaps: Gaps,
    leap: bool,
    costs: SystemCosts,
    tally: Tally,
) -> Executor:
    """Return an executor of one stage: attention and FFN pools, or a model and its drafter."""
    if config.machine:
        executor: Executor = ChipExecutor(env, config.machine(env, config.number), gaps)
    else:
        executor = (FastForwardExecutor if leap else StepwiseExecutor)(env, costs, gaps)
    executor.tally = tally
    sampler = config.error_sampler
    return RetryExecutor(env, executor, sampler, gaps) if sampler else executor


def _stage_executor(
    env: simpy.Environment, config: ReplicaConfig, gaps: Gaps, leap: bool, independent: bool
) -> Executor:
    """Return an executor of stages. The compiled one cannot simulate hosts that launch layers."""
    costs, limits = config.costs, config.limits
    if leap and limits.micro_batches == costs.stages == 1:
        if isinstance(costs, Costs) and costs.sampled:
            return DrawnStepsExecutor(env, costs, gaps)
        return FastForwardExecutor(env, costs, gaps)
    if leap and costs.stages > 1 and isinstance(costs, Costs) and not costs.launch:
        # Numba takes long to import, so it is imported only for a pipeline.
        from sim.serving.executors.compiled import CompiledPipelineExecutor

        return CompiledPipelineExecutor(env, config, gaps, independent)
    return StepwiseExecutor(env, costs, gaps)
