"""The hand-over between pools: the decode engine's, unless the transfer has its own."""

import pytest

import sim
from sim.scenario.pools import Pools
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.transfer import Transfer
from sim.workload.arrivals import Poisson
from sim.workload.lengths import Length


@pytest.mark.parametrize(
    ("given", "seconds"), [({}, 0.05), ({"handover": 0.0}, 0.0), ({"handover": 0.02}, 0.02)]
)
def test_a_transfer_has_the_hand_over_of_the_decode_engine_or_its_own(
    make_model, make_chip, make_engine, given, seconds
):
    def system(handover):
        engine = make_engine(handover=handover)
        return System(chip=make_chip(), chips=1, engine=engine, token_budget=16, kv_tokens=400)

    pools = Pools(
        prefill=system(0.7), decode=system(0.05), transfer=Transfer(bandwidth=1e12, **given)
    )
    lengths = {"prompt": Length(fixed=8), "output": Length(fixed=2)}
    workload = Poisson(rate=1, requests=2, **lengths)
    rows = sim.run(Scenario(model=make_model(), workload=workload, systems={"pd": pools}))
    rows = rows.systems["pd"].rows
    step = rows.last_token - rows.transfers.end - seconds
    assert (step > 0).all()
    assert step == pytest.approx(step[0], rel=1e-6)
    assert step[0] < 0.01
