"""A system whose attention and MLPs are on two pools of chips, which work in every layer."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.inputs.errors import error_at_path, errors_below, quoted_value
from sim.inputs.values import Value
from sim.model.transformer import Model
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import Deployment, DeploymentParts, LimitOverrides
from sim.planning.remote_draft import DRAFTER_PATH, add_drafter
from sim.scenario.split_search import SplitSearch, require_open, with_most_chips
from sim.scenario.system import Shown, System
from sim.serving.policy import Router, ring

# Keys that neither pool simulates. The FFN pool refuses all keys but FFN_KEYS.
REFUSED = ("network",)
FFN_KEYS = (
    "chip",
    "chips",
    "cluster",
    "engine",
    "plan",
    "topology",
    "memory_fraction",
    "jitter",
    "exceptions",
    "faults",
    "outages",
    "label",
    "colour",
)
# Keys of a plan about attention, KV cache and head, which the FFN pool does not hold, or about
# stages, which all have equal numbers of layers.
NOT_OF_FFN = ("attention", "dispatch", "kv", "head", "balance", "kv_split", "kv_in")
# Keys of the pools' plans whose only simulated value is 1.
ONLY_ONE = {"attention": ("pipeline", "replicas", "expert"), "ffn": ("attention_data", "replicas")}


class AttentionFfn(Shown):
    """A system with attention on one pool of chips, and MLPs and experts on another one.

    Embedding, attention, KV cache, routers, norms and head are on the attention pool. Hidden states
    cross to the FFN pool and back in every layer. Both pools serve one replica. A step is cut into
    `micro_batches` parts, which take turns: each pool works on one part while the other pool works
    on another part.
    With m parts a layer takes max(m * slowest of pools and links, attention + out + FFN + back).

    The options of the scheduler are those of `attention`. Several copies make a `fleet`.
    `step_overhead` and `sequence_overhead` are those of the engine of `attention`.
    At chip fidelity the visits to the pools follow from the queues of chips and links.
    `attention.fidelity` and `attention.link_errors` apply to both pools, and to the links between
    them. A message between the pools crosses one cable.
    An outage of `ffn` stops all steps, and the attention pool keeps its sequences. An outage of
    `attention` stops one rank, whose number is `replica`. The sequences of other ranks go on.
    The drafter of `attention.speculate` is on the attention pool, or on a third kind of chips. A
    micro-batch of its drafts is cut into `micro_batches` again.
    The system may be a prefill pool or a decode pool.
    """

    attention: System = Field(
        description="Chips, engine and plan of attention, with the options of the scheduler."
    )
    ffn: System = Field(description="Chips, engine and plan of MLPs and experts.")
    micro_batches: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2,
        description="Parts of each step, which take turns on the pools; a search finds them if "
        "they are left out.",
    )
    plan: SplitSearch | None = Field(
        default=None,
        description="Search for the sizes and plans of both pools; default: their own.",
    )
    transfer: LayerTransfer = Field(description="Links between the pools.")

    @model_validator(mode="before")
    @classmethod
    def _most_chips(cls, data: Any) -> Any:
        return with_most_chips(data)

    @model_validator(mode="after")
    def _simulated(self) -> "AttentionFfn":
        for pool, system in self.pools.items():
            with errors_below(pool):
                _require_simulated(pool, system)
                if self.plan:
                    require_open(system.plan)
                    _require_own_drafter(system)
        return self

    @property
    def fails(self) -> bool:
        """Whether a pool or a drafter has outages while it serves."""
        return any(system.fails for system in self.pools.values())

    @property
    def full_label(self) -> str | None:
        """The label, with the number of all chips in place of '{chips}'."""
        chips = self.ffn.hardware[1] + self.attention.all_chips
        return self.label and self.label.replace("{chips}", f"{chips:,}")

    @property
    def pools(self) -> dict[str, System]:
        """Both pools, by name."""
        return {"attention": self.attention, "ffn": self.ffn}

    @property
    def router(self) -> Router:
        """The router of requests, which has one replica to choose."""
        return self.attention.router

    def deploy(self, model: Model, lengths: tuple[float, float]) -> Deployment:
        """Return the deployment of both pools. lengths: tokens of a mean request, and its prompt.

        Raises: ValueError at the key of a pool if its parts contradict each other.
        """
        if self.plan:
            reason = "got capacity; expected the sizes of both pools here; "
            hint = "try sim.search_plans(scenario), which finds them"
            raise error_at_path(("plan", "search"), "capacity", f"{reason}{hint}")
        with errors_below("attention"):
            attention = pool_parts(self.attention, model)
        ffn = pool_parts(self.ffn, model)
        sharing = PoolSharing(self.micro_batches, self.transfer)
        limits = attention[1], ffn[1]
        deployed = deploy_with_ffn(attention[0], ffn[0], sharing, lengths, limits)
        of, chips = self.attention.speculate, self.attention.drafter
        if not (of and chips and (drafts := deployed.layout.speculation)):
            return deployed
        drafter = chips.parts(drafts.model), chips.limits
        with errors_below("attention"):
            return add_drafter(deployed, drafter, of.draft.exchange, lengths, limits[0])


def pool_parts(system: System, model: Model) -> tuple[DeploymentParts, LimitOverrides]:
    """Return the parts of a pool, and the limits that replace its defaults.

    Raises: ValueError if the drafter does not suit the model.
    """
    whole, drafts = system.model or model, system.speculate
    return system.parts(whole, drafts.speculation(whole) if drafts else None), system.limits


def _require_simulated(pool: str, system: System) -> None:
    """Raise ValueError at the first key of a pool that is not simulated."""
    refused = list(REFUSED)
    if pool == "ffn":
        refused += [key for key in system.model_fields_set if key not in FFN_KEYS]
    _require_simulated_parts(pool, system)
    for key in refused:
        if (value := getattr(system, key)) not in (None, (), 0.0, False):
            got = "a mapping" if isinstance(value, Value) else quoted_value(value)
            if isinstance(value, Model):
                got = value.id
            reason = f"got {got}; expected none, because it is not simulated in the {pool} pool"
            raise error_at_path((key,), value, f"{reason}; try leaving {key} out")
    _require_simulated_plan(pool, system.plan)
    if system.policies.batching is ring:
        reason = (
            "got ring; expected continuous, since pools have no ring of beats; try policy: "
            "continuous"
        )
        raise error_at_path(("policy",), "ring", reason)
    if system.routing == "sampled":
        reason = (
            "got sampled; expected mean loads of experts, since all micro-batches of a step take "
            "equal times; try leaving routing out"
        )
        raise error_at_path(("routing",), "sampled", reason)


def _require_simulated_plan(pool: str, plan: Plan) -> None:
    """Raise ValueError at the first key of a pool's plan that is not simulated."""
    for key in NOT_OF_FFN if pool == "ffn" else ():
        if (value := getattr(plan, key)) != Plan.model_fields[key].default:
            reason = f"got {str(value)!r}; expected none, because the ffn pool does not use it; "
            raise error_at_path(("plan", key), value, f"{reason}try leaving {key} out")
    for key in ONLY_ONE[pool]:
        if (value := getattr(plan, key)) not in (None, 1):
            hint = "try a fleet of copies" if key == "replicas" else f"try leaving {key} out"
            reason = f"got {value}; expected 1 in the {pool} pool; {hint}"
            raise error_at_path(("plan", key), value, reason)
    if plan.search:
        reason = f"got a search for {plan.search}; expected a plan for the {pool} pool; "
        example = "{attention_data: 8}" if pool == "attention" else "{expert: 8}"
        raise error_at_path(("plan", "search"), plan.search, f"{reason}try plan: {example}")
    if plan.slots:
        reason = f"got {plan.slots}; expected none in the {pool} pool; try leaving slots out"
        raise error_at_path(("plan", "slots"), plan.slots, reason)


def _require_own_drafter(system: System) -> None:
    """Raise ValueError if a search of both pools would leave out the chips of a drafter."""
    if system.drafts_apart:
        reason = "got a drafter on other chips with a search of both pools, which counts theirs "
        reason += "alone; expected one on the attention pool; try leaving system and transfer out"
        raise error_at_path(DRAFTER_PATH, None, reason)


def _require_simulated_parts(pool: str, system: System) -> None:
    """Raise ValueError at the first drafter, failure or different chip that is not simulated."""
    for number, exception in enumerate(system.exceptions):
        if exception.like:
            reason = f"got {exception.like.id}; expected a chip of the pool's kind; try speed: 0.5"
            raise error_at_path(("exceptions", number, "like"), exception.like.id, reason)
    if pool == "attention":
        if system.faults and (spares := system.faults.spares):
            reason = f"got {spares}; expected 0 in the attention pool, whose ranks work without "
            reason += "each other; try leaving spares out"
            raise error_at_path(("faults", "spares"), spares, reason)
        return
    for number, outage in enumerate(system.outages):
        if outage.requests == "fail":
            reason = "got fail; expected retry in the ffn pool, since the attention pool keeps its "
            reason += "requests; try leaving requests out"
            raise error_at_path(("outages", number, "requests"), "fail", reason)
