"""sramsim: what happens to token latency if a language model lives in the SRAM of hundreds of chips.

    import sim
    result = sim.run("llama2-70b-lpu-vs-h100")       # a file, or a scenario of the catalogue
    result.systems["lpu"].metrics["median_tpot_ms"]  # or result.metrics and result.requests, as Polars frames

What can be waited for is a process or a resource; what can only be computed is a function.  From the door to the ground:

    cli                                         the command line
    page                                        the HTML page of a result
    report : changes : schema                   results for people; what changed between two; what files may hold
    (plots)                                     figures, a package of its own
    trace : sweep                               what every chip and link does while a request gets its tokens; a scenario at many
                                                points
    validate                                    published figures beside simulated ones
    result                                      Result, run, planned: what systems did, took and cost
    design                                      plans searched by the highest goodput
    capacity                                    the highest rate, or the most users, that meets an SLO
    identity                                    what a result names beside its numbers
    scenario                                    Scenario, check: a question, and its systems laid out
    planner : catalogue : tables                lays models on chips, searches plans, times a lone request; what the catalogue
                                                holds, with sources; a result as a table
    irregular                                   stragglers, other chips, slow and dead links
    stages : serve : replica : passing : kernel : machine : faults    cuts models into stages; SimPy: arrivals and the router,
                                                replicas, micro-batches and their way through the stages (step by step, in leaps,
                                                compiled), chips and links; failures and repairs over months
    metrics                                     from rows to TTFT, TPOT, goodput
    verdict                                     whether a system keeps up, and how to read its numbers
    program : network                           what each chip executes in a step; cables that messages take
    records : policy : replay                   rows that leave a run; decisions of a scheduler; steps that links spoil
    energy : economics : parity                 joules by cause; what systems cost, and tokens; what a card may cost
    cost                                        Work -> time by term: where model, chip and engine meet
    plan                                        degrees, bytes, fit
    chip : topology : model : engine : workload : measurements     values made from files
    traces : fields                             requests as they were recorded, in six formats; what a key may be given as
    overrides                                   entries that are like another, with changes
    files                                       YAML to values; errors with file and line; the catalogue
    paths                                       plain data by paths of keys
    units                                       '80 TB/s' to floats in SI units
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ScenarioError": "inputs.files",
    "UserError": "inputs.files",
    "PlanError": "cost.plan",
    "Result": "studies.run",
    "Scenario": "scenario.scenario",
    "check": "scenario.scenario",
    "planned": "studies.run",
    "read": "scenario.scenario",
    "run": "studies.run",
    "search_plans": "studies.design",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: `import sim` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"sim.{_HOMES[name]}"), name)
