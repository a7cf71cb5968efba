"""The power of a chip, and what surrounds it in a server.

>>> Server(chips=8, power=1000.0, price=25000.0).chips
8
"""

from pydantic import Field

from sim.inputs.values import Value
from sim.units import Count, Dollars, JoulesPerByte, JoulesPerFlop, Watts


class Power(Value):
    """The power of a chip: its limit, its typical draw at work, and the parts of that.

    The energy of reading is the memory's.
    """

    maximum: Watts = Field(description="Limit of the chip, or of the card if sold as one [W].")
    typical: Watts | None = Field(
        default=None,
        description="Usual power at work [W], shown in results; energies come from the keys below.",
    )
    idle: Watts | None = Field(
        default=None, description="Power always drawn [W]; default: unknown."
    )
    flop: JoulesPerFlop | None = Field(
        default=None,
        description="Energy of computing at the fastest precision [J/FLOP]; inversely "
        "proportional to the rate at others.",
    )
    link: JoulesPerByte | None = Field(
        default=None, description="Energy of sending over each cable [J/B]; default: unknown."
    )


class Server(Value):
    """The surroundings of `chips` chips: hosts, fans, and their part of racks and network.

    Left out: the chips themselves.
    """

    chips: Count = Field(description="Number of chips in one server.")
    power: Watts = Field(description="Power that the surroundings of these chips always draw [W].")
    maximum: Watts | None = Field(
        default=None,
        description="Power that hosting provides for the surroundings, and charges [W]; default: "
        "that of `power`.",
    )
    price: Dollars = Field(description="Price of the surroundings of these chips [USD].")
