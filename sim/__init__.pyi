from .cost.plan import PlanError
from .inputs.errors import ScenarioError, UserError
from .scenario.layout import check
from .scenario.scenario import Scenario, read
from .studies.capacity import capacity
from .studies.capacity_result import CapacityResult
from .studies.design import search_plans
from .studies.run import Planned, Result, plan, run
from .studies.sizing import size
from .studies.sweep import Swept, sweep

__all__ = [
    "CapacityResult",
    "PlanError",
    "Planned",
    "Result",
    "Scenario",
    "ScenarioError",
    "Swept",
    "UserError",
    "capacity",
    "check",
    "plan",
    "read",
    "run",
    "search_plans",
    "size",
    "sweep",
]

__version__: str
