"""The cost of a step: time by term, bytes that must fit, and joules.

    >>> from sim.cost.work import Work
    >>> Work(decodes=16, context=16 * 512, logits=16).tokens  # 16 sequences, 512 positions each
    16

Read `layout` first, then `rows` and `step`. The modules, in the order of their imports:

* `plan`, `layout`: a model on chips, with degrees, precisions, bytes on each chip, and fit.
* `work`, `terms`: the tokens of a step; the rows of its cost, and their sums by cause.
* `multiplies`, `attention`, `experts`, `expert_moves`, `collectives`: the times of a layer's parts.
* `rows`, `causes`: all contributions to a step, and the numbers behind each.
* `step`: `Costs`, which turns `Work` into the time on each stage.
* `contributions`, `program`, `energy`: the same rows as lines of an explanation, as instructions of
  each chip, and as joules.
* `speculation`, `acceptance`: drafts. `draft_link`, `remote_draft`: a drafter on other chips.
* `layer_transfer`, `layer_cycle`, `ffn_pool`, `shard_collectives`, `attention_ffn`,
  `visit_program`: attention and MLPs on two pools of chips.
* `kv_transfer`: the bytes of a prompt's KV cache that go from one replica to another.
"""
