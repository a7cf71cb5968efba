"""The cost of a step: time by term, bytes that must fit, and joules.

    >>> from sim.cost.work import Work
    >>> Work(decodes=16, context=16 * 512, logits=16).tokens  # 16 sequences, 512 positions each
    16

Where a step's time comes from: `rows` has all contributions, and `step` adds them up. Everything
outside asks a system for what `system_costs` lists, and three classes answer: `Costs` (stages),
`AttentionFfnCosts` (two pools of chips), `RemoteDraftCosts` (either of them with a drafter apart).

Read `layout` first, then `rows`, `system_costs` and `step`. The modules, by their imports:

* `plan`, `layout`: a model on chips, with degrees, precisions, bytes on each chip, and fit.
* `work`, `terms`: the tokens of a step; the rows of its cost, and their sums by cause.
* `multiplies`, `attention`, `experts`, `expert_moves`, `collectives`: the times of a layer's parts.
* `rows`, `causes`: all contributions to a step, and the numbers behind each.
* `energy`: the same rows as joules.
* `system_costs`: the questions to a system's costs, and what follows from the answers.
* `step`: `Costs`, which turns `Work` into the time on each stage.
* `contributions`, `program`: the same rows as lines of an explanation, and as instructions of each
  chip.
* `speculation`, `acceptance`: drafts. `draft_link`, `remote_draft`: a drafter on other chips.
* `layer_transfer`, `layer_cycle`, `ffn_pool`, `shard_collectives`, `attention_ffn`,
  `visit_program`: attention and MLPs on two pools of chips.
* `kv_transfer`: the bytes of a prompt's KV cache that go from one replica to another.
"""
