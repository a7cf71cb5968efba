"""Serving on SimPy: requests arrive, a router assigns them, replicas schedule and execute steps.

    >>> from sim.serving.policy import BatchState, continuous
    >>> continuous(BatchState(running=16, begun=True, prompts=2, budget=256, size=64, queue=None))
    BatchDecision(decodes=True, prompt_tokens=240, sequences=256)

Read `scheduler` first (the decisions, in vLLM's words), then `replica` (steps from the scheduler to
an executor, and back). The modules:

* `service`, `users`, `front_end`: one run, from the arrival of requests to their end.
* `fleet`, `outages`: the replicas behind one router, and their failures.
* `replica_config`, `limits`, `policy`: the configuration of a replica.
* `replica`, `admission`, `kv_cache`: a replica, its queue, and its KV cache.
* `scheduler`, `micro_batch`, `request`, `prompt_chunks`, `step_draws`: the work of a step.
* `batch_wait`, `rank_wait`: prompts that wait for other prompts.
* `executors`, `kernel`: the times of steps on their way through the stages.
* `ring`: a replica in closed form.
* `pools`, `pool_replicas`, `received`, `transfer`: prefill and decode on different replicas.
* `event_order`: the order of events at one time.
"""
