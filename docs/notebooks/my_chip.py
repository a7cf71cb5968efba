# %% [markdown]
# # My chip: an LPU with twice the SRAM
#
# A chip is a few numbers. `like` takes an entry of the catalogue and changes some of them. Every
# changed number can name its source, or say that it is assumed.

# %%
import sim

CHIP = {
    "like": "groq-lpu-v1",
    "memory.sram.capacity": "461 MB",
    "source": {"memory.sram.capacity": "assumed: twice that of LPU v1"},
}
PRECISION = {"weights": "int8", "activations": "int8", "kv": "fp16", "head": "int8"}
SCENARIO = {
    "model": "llama-2-70b",
    "workload": {
        "kind": "poisson",
        "rate": "0.1 request/s",
        "requests": 10,
        "prompt": "512 token",
        "output": "32 token",
    },
    "systems": {
        "lpu": {
            "chip": "groq-lpu-v1",
            "chips": 576,
            "engine": "groq-compiler",
            "plan": {"tensor": 8, **PRECISION},
        },
        "mine": {
            "chip": CHIP,
            "chips": 288,
            "engine": "groq-compiler",
            "plan": {"tensor": 8, **PRECISION},
        },
    },
}

# %% [markdown]
# Does the model fit, and how many chips does it need at least?

# %%
planned = sim.plan(SCENARIO)
print(planned)
for name, system in planned.summary([4096]).systems.items():
    print(f"{name}: fits {system.fits}, at least {system.minimum_chips} chips")

# %% [markdown]
# Half the chips hold the same model. A token passes half as many stages, so it saves hops. Each
# stage reads twice the weights.

# %%
result = sim.run(SCENARIO)
print(result.metrics.select("system", "chips", "median_tpot_ms", "energy.joules_per_token"))

# %% [markdown]
# How many chips does the model need with each size of SRAM? A change may set a key of the chip.

# %%
for capacity in ("346 MB", "461 MB"):
    changed = sim.plan(SCENARIO, systems__mine__chip__memory__sram__capacity=capacity)
    least = changed.summary([4096]).systems["mine"].minimum_chips
    print(f"{capacity}: at least {least} chips")
