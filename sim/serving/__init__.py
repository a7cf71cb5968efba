"""Serving on SimPy: requests arrive, a router assigns them, replicas schedule and execute steps.

    >>> from sim.serving.policy import BatchState, continuous
    >>> continuous(BatchState(running=16, begun=True, prompts=2, budget=256, size=64, queue=None))
    BatchDecision(decodes=True, prompt_tokens=240, sequences=256)

Read `scheduler` first (the decisions, in vLLM's words), then `replica` (steps from the scheduler to
an executor, and back). `executors` takes steps through the stages. `service` and `fleet` send
requests to replicas. `ring` is a replica in closed form. `event_order` explains the order of events
at one time.
"""
