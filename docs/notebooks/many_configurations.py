# %% [markdown]
# # 200 configurations: which plan, at which load?
#
# A sweep runs a scenario at each point of a grid: 4 widths of a stage x 2 precisions x 5 prompts x
# 5 numbers of users are 200 points. It takes about 12 s on one core.

# %%
import polars

import sim

SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {
        "kind": "closed",
        "users": 1,
        "requests": 32,
        "prompt": "512 token",
        "output": "8 token",
    },
    "systems": {
        "h100s": {
            "chip": "h100-sxm",
            "chips": 8,
            "engine": "vllm",
            "plan": {"tensor": 8, "weights": "fp16", "activations": "fp16", "kv": "fp16"},
        }
    },
}
plan = "systems.h100s.plan"
OVER = {
    f"{plan}.tensor": [1, 2, 4, 8],
    f"{plan}.weights": ["fp16", "fp8"],
    "workload.prompt": ["64 token", "128 token", "256 token", "512 token", "1024 token"],
    "workload.users": [1, 2, 4, 8, 16],
}

# %% [markdown]
# A point that does not fit is a row with its error. Give `folder=` to keep finished points, and
# `jobs=None` to use all cores.

# %%
swept = sim.sweep(SCENARIO, over=OVER)
print(swept)

# %% [markdown]
# The Pareto front at prompts of 512 tokens: a faster user against more tokens per chip. With tensor
# below 8, the other chips are further stages.

# %%
points = (
    swept.metrics.filter(polars.col("workload.prompt") == "512 token")
    .with_columns(
        speed=1000 / polars.col("median_tpot_ms"),
        per_chip=polars.col("output_throughput") / polars.col("chips"),
    )
    .sort("speed", descending=True)
)
front = points.filter(polars.col("per_chip") == polars.col("per_chip").cum_max())
keys = ["workload.users", f"{plan}.tensor", f"{plan}.weights"]
print(front.select(*keys, "speed", "per_chip", "economics.usd_per_mtok"))

# %% [markdown]
# `sramsim explore DIR -o explore.html` shows the folder of a sweep as a page with this chart.
