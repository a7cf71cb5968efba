"""The search for the sizes of an attention pool and an FFN pool, as a scenario asks for it.

    plan: {search: capacity, chips: 72}   # of a system with `attention` and `ffn`

`sim.studies.pool_split` searches.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sim.cost.plan import DEGREES, Plan
from sim.inputs.errors import error_at_path
from sim.inputs.values import Value
from sim.units import Count, Dollars, Watts

LIMIT_KEYS = ("chips", "power", "price")


class SplitSearch(Value):
    """A search for the sizes and plans of both pools, and for the number of micro-batches.

    It takes those with the highest goodput under the SLO, within all limits given here. `chips`
    of a pool then limits that pool. For comparison, the search also finds the best ordinary system
    of the attention pool's chips within the same limits. It may have wide expert parallelism.
    """

    search: Literal["capacity"] = Field(
        description="Search by goodput within the SLO; the plans of the pools then have no degrees."
    )
    chips: Count | None = Field(
        default=None, description="Most chips of both pools together; default: no limit."
    )
    power: Watts | None = Field(
        default=None,
        description="Most power of the chips of both pools with their servers, each at its "
        "maximum [W]; default: no limit.",
    )
    price: Dollars | None = Field(
        default=None,
        description="Highest price of the chips of both pools with their servers [USD]; default: "
        "no limit.",
    )

    @model_validator(mode="after")
    def _limited(self) -> "SplitSearch":
        if all(getattr(self, key) is None for key in LIMIT_KEYS):
            reason = "got a search without a limit; expected chips, power or price of both pools; "
            raise error_at_path(("search",), self.search, f"{reason}try chips: 72")
        return self


def with_most_chips(data: Any) -> Any:
    """Return the data of a system whose pools without `chips` may take all chips of a search."""
    if not isinstance(data, Mapping) or not isinstance(data.get("plan"), Mapping):
        return data
    most, filled = data["plan"].get("chips"), dict(data)
    for pool in ("attention", "ffn"):
        own = data.get(pool)
        if most is not None and isinstance(own, Mapping) and not {"chips", "cluster"} & own.keys():
            filled[pool] = {**own, "chips": most}
    return filled


def require_open(plan: Plan) -> None:
    """Raise ValueError at the first degree of a pool's plan, because a search finds them."""
    for key in DEGREES:
        if key in plan.model_fields_set and (value := getattr(plan, key)) is not None:
            reason = f"got {value}; expected no degrees with a search of both pools, which finds "
            raise error_at_path(("plan", key), value, f"{reason}them; try leaving {key} out")
