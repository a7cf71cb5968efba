# %% [markdown]
# # The claims: what one user gains from 576 LPUs over one H100
#
# The scenario `llama2-70b-lpu-vs-h100` serves the same requests on 576 Groq LPUs, one H100 and
# eight. Their engines are partly fitted to measurements. `fitted_share` is the share of a token's
# time that is fitted.

# %%
import sim

result = sim.run("llama2-70b-lpu-vs-h100", workload__requests=10)
print(result)

# %% [markdown]
# `metrics` is a Polars frame with a row for each system. Its columns are always the same, so frames
# of several runs concatenate. `to_pandas()` needs `pip install 'sramsim[pandas]'`.

# %%
columns = ["system", "chips", "median_ttft_ms", "median_tpot_ms", "fitted_share"]
print(result.metrics.select(columns))

# %% [markdown]
# The speed of a user is 1/TPOT. This is the claim "ten times the speed", under its condition: low
# load, and a plan of 8 chips a stage.

# %%
speed = {name: system.metrics.user_speed for name, system in result.systems.items()}
for name, tokens in speed.items():
    print(f"{name}: {tokens:.0f} tokens/s, {speed['lpu'] / tokens:.1f} times as fast on LPUs")

# %% [markdown]
# The other side of the claim: J and $ for a token, at this low load, and in a system that is always
# full.

# %%
for name, system in result.summary.systems.items():
    now, full = system.costs, system.costs_at_capacity
    print(
        f"{name}: {now.energy.joules_per_token:.1f} J, full {full.energy.joules_per_token:.1f} J; "
        f"{now.economics.usd_per_mtok:.1f} $ a million tokens, "
        f"full {full.economics.usd_per_mtok:.1f} $"
    )
