# %% [markdown]
# # My trace: recorded requests on two systems
#
# A trace is a CSV file with the arrival [s] and the lengths of each request. The formats of Azure,
# BurstGPT, Mooncake, vLLM's benchmark and others are recognised by their content.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import sim

folder = TemporaryDirectory()
path = Path(folder.name) / "mine.csv"
random = np.random.default_rng(0)
arrivals = np.cumsum(random.exponential(0.25, 120))
lines = ["arrived_at,num_prefill_tokens,num_decode_tokens"]
lines += [
    f"{at:.3f},{prompt},{output}"
    for at, prompt, output in zip(
        arrivals, random.integers(50, 2000, 120), random.integers(10, 120, 120), strict=True
    )
]
path.write_text("\n".join(lines) + "\n")

# %% [markdown]
# The same requests, at the same times, on each system. `time_scale: 0.5` doubles the load.

# %%
CARD = {"chip": "h100-sxm", "chips": 1, "engine": "vllm"}
SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {"kind": "trace", "path": str(path)},
    "slo": {"ttft": "500 ms", "tpot": "30 ms"},
    "systems": {
        "fp16": {**CARD, "plan": {"weights": "fp16", "activations": "fp16"}},
        "fp8": {**CARD, "plan": {"weights": "fp8", "activations": "fp8"}},
    },
}
for scale in (1.0, 0.1):
    result = sim.run(SCENARIO, workload__time_scale=scale)
    print(f"time_scale {scale}:")
    print(result.metrics.select("system", "verdict", "median_ttft_ms", "attainment"))

# %% [markdown]
# `requests` has a row for each request and system. These are the longest waits.

# %%
rows = result.requests.with_columns(
    ttft=result.requests["first_token"] - result.requests["arrival"]
)
print(rows.sort("ttft", descending=True).select("system", "id", "prompt_tokens", "ttft").head(4))
folder.cleanup()
