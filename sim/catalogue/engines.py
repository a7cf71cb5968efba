"""The engines of the catalogue that were measured on a chip.

>>> [engine.id for engine in measured_engines("groq-lpu-v1")]
['groq-compiler']
"""

from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names, find_entry

NO_ENGINE = "ideal"  # without losses, for chips on which no engine was measured


def measured_engines(chip: str) -> list[Engine]:
    """Return the engines measured on a chip of the catalogue, by id.

    The engine measured on most kinds of chips is first: its numbers depend least on one of them.
    """
    engines = [read_value(path, Engine) for path in catalogue_names("engines").values()]
    measured = [engine for engine in engines if chip in engine.points]
    return sorted(measured, key=lambda engine: (-len(engine.points), engine.id))


def default_engine(chip: Chip, bits: str) -> Engine:
    """Return the first engine measured on a chip, for weights of so many bits.

    Without one: `ideal`, which loses nothing.
    """
    for engine in measured_engines(chip.id):
        if bits in engine.memory_efficiency and bits in engine.compute_efficiency:
            return engine
    return read_value(find_entry(NO_ENGINE, "engines"), Engine)
