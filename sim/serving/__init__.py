"""Serving on SimPy: requests arrive, a router assigns them, replicas schedule and execute steps.

    >>> from sim.serving.policy import BatchState, continuous
    >>> continuous(BatchState(running=16, begun=True, prompts=2, budget=256, size=64, queue=None))
    BatchDecision(decodes=True, prompt_tokens=240, sequences=256)

Read `scheduler` first (the decisions, in vLLM's words), then `replica` (steps from the scheduler to
an executor, and back). The modules:

* `service`, `users`, `front_end`: a run: requests come, wait for answers, and end.
* `fleet`, `outages`: the replicas behind one router, and their failures.
* `replica_config`, `limits`, `policy`: what a replica is given.
* `replica`, `admission`, `kv_cache`: a replica, its queue, and the room of its requests.
* `scheduler`, `micro_batch`, `request`, `prompt_chunks`, `step_draws`, `batch_wait`: the work of a
  step.
* `executors`, `kernel`: the way of steps through the stages.
* `ring`: a replica in closed form.
* `pools`, `pool_replicas`, `received`, `transfer`: prefill and decode on different replicas.
* `event_order`: the order of events at one time.
"""
