"""sramsim: token latency of language models that live in the SRAM of hundreds of chips.

    import sim
    result = sim.run("llama2-70b-lpu-vs-h100")       # a file, or a scenario of the catalogue
    result.systems["lpu"].metrics.tpot.median        # result.metrics is a Polars frame

Anything that takes simulated time is a process or a resource. Anything else is a function.

Packages, from the top to the bottom. Each imports only those below it.

    cli                               the command line
    report                            tables in the terminal, the HTML page, the reference
    (plots)                           figures, a package of its own
    studies, validation               run, sweep, capacity, best plans; measured points and fits
    scenario                          one question, and the systems that it compares
    planning, catalogue               how a model is laid on chips; entries and their sources
    serving, chipsim, reliability     SimPy: scheduler and executors; chips and links; failures
    results                           rows of a run, metrics, verdict
    cost, economics                   the time, bytes and joules of a step; what systems cost
    model, hardware, workload         values made from files
    inputs                            YAML to values, and errors with file and line
    units                             '80 TB/s' to floats in SI units
"""

import lazy_loader

__version__ = "0.1.0"

# `__init__.pyi` lists the public names. Each is imported on first use: `import sim` stays quick.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
