"""Numbers in headers of scenarios and in the README are those of `sramsim plan`."""

import re
from pathlib import Path

import pytest

import sim
from sim.inputs.names import catalogue_folder
from sim.planning.loaded_speed import loaded_tpot

ROOT = Path(__file__).parents[2]
LPX, KIMI, DRAFTER = "claims/lpx", "claims/lpx-kimi-k2", "claims/lpx-drafter"
SPECULATION = "claims/speculation"
README, GALLERY = "README.md", "docs/pages/gallery.md"


def text_of(file: str) -> str:
    """Return the header of a scenario, or a page of the repository, as one line."""
    if file.endswith(".md"):
        return " ".join((ROOT / file).read_text(encoding="utf-8").split())
    content = (catalogue_folder() / f"{file}.yaml").read_text(encoding="utf-8")
    lines = re.match(r"(?:#.*\n)+", content)[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def number(file: str, sentence: str) -> float:
    """Return the number that stands in the place of `{}` in a sentence of a text."""
    pattern = re.escape(sentence).replace(r"\{\}", r"([\d,]+(?:\.\d+)?)")
    return float(re.search(pattern, text_of(file))[1].replace(",", ""))


def unloaded(name: str, system: str, *changes: str):
    """Return TTFT and TPOT [s] of a single request."""
    scenario = sim.read(name, list(changes))
    return scenario.unloaded(scenario.deploy(system))


@pytest.mark.parametrize(
    ("file", "sentence", "name", "system", "changes"),
    [
        (README, "Wafers | {} token/s for one user of 8B", "wafer", "cs3-8b", []),
        (README, "on one CS-3, {} of 70B on four", "wafer", "cs3x4-70b", []),
        (README, "{} (v1) to", "tpu-generations", "v1", []),
        (README, "(v1) to {} (v7) token/s", "tpu-generations", "v7", []),
        (README, "more than the {} token/s that eight H100", "latency-vs-load", "h100x8", []),
        (GALLERY, "{} (LPUs) and", "latency-vs-load", "lpu-tp4", []),
        (GALLERY, "(LPUs) and {} token/s (H100)", "latency-vs-load", "h100x8-tp2", []),
        (GALLERY, "Only LPUs give a user more than {} token/s", "pareto", "h200x8", []),
        ("kimi-k2-afd", "from both ({} and", "kimi-k2-afd", "power", []),
        ("kimi-k2-afd", "and {} token/s)", "kimi-k2-afd", "afd-40", []),
        (LPX, "NVL72 alone gives a single user {} token/s", LPX, "nvl72", []),
        (LPX, "token/s, and {} without them", LPX, "nvl72", ["systems.nvl72.engine=ideal"]),
        (LPX, "With experts on LPX the user gets {} and", LPX, "afd-40", []),
        (
            LPX,
            "and {}. With whole steps on LPX",
            LPX,
            "afd-40",
            ["systems.afd-40.attention.engine=ideal"],
        ),
        (
            DRAFTER,
            "Without those of the GPUs, NVL72 alone gives {} token/s",
            DRAFTER,
            "nvl72",
            ["systems.nvl72.engine=ideal"],
        ),
        (
            SPECULATION,
            "All of 15 drafts accepted give {} token/s",
            SPECULATION,
            "lpu",
            ["systems.lpu.speculate.acceptance=1"],
        ),
    ],
)
def test_speeds_in_texts_are_those_of_a_single_user(file, sentence, name, system, changes):
    speed = 1 / unloaded(name, system, *changes).tpot
    assert number(file, sentence) == pytest.approx(speed, rel=0.005, abs=0.5)


@pytest.mark.parametrize(
    ("sentence", "system", "users"),
    [
        (
            "NVL72 alone gives the most token/s per MW up to {} token/s",
            "nvl72",
            4,
        ),  # of one of nine replicas
        ("From there to {} it is experts on LPX", "afd-40", 36),
    ],
)
def test_the_best_use_of_lpx_changes_at_speeds_with_36_users(sentence, system, users):
    speed = 1 / loaded_tpot(sim.read(LPX).deploy(system), users, 104_200)
    assert number(LPX, sentence) == pytest.approx(speed, rel=0.004)


@pytest.mark.parametrize(
    ("file", "sentence", "system", "ms"),
    [
        (README, "the first token | {} s;", "lpu-576", 1000),
        (README, "eight H100: {} s |", "h100x8", 1000),
        (README, "their matrix units would allow {} ms", "chip-allows", 1),
    ],
)
def test_times_in_texts_are_those_of_the_first_token(file, sentence, system, ms):
    ttft = 1000 * unloaded("claims/prefill", system).ttft
    assert ms * number(file, sentence) == pytest.approx(ttft, rel=0.02)


@pytest.mark.parametrize("name", [LPX, KIMI])
def test_the_path_to_the_experts_moves_a_token_as_far_as_the_header_says(name):
    moved = re.search(r"from ([\d.]+) to ([\d.]+) ms", text_of(name))
    for latency, ms in zip(("2 us", "20 us"), moved.groups(), strict=True):
        tpot = unloaded(name, "afd-40", f"systems.afd-40.transfer.latency={latency}").tpot
        assert float(ms) == pytest.approx(1000 * tpot, rel=0.005)


@pytest.mark.parametrize(
    ("sentence", "system"),
    [("with drafts on LPX from a chance of {}", "lpx"), ("with drafts on the GPUs from {}", "own")],
)
def test_drafts_beat_nvl72_alone_from_the_chance_of_the_header(sentence, system):
    def tpot(chance: float) -> float:
        key = f"systems.{system}.speculate.acceptance={chance:.3f}"
        return unloaded(DRAFTER, system, key).tpot

    chance, alone = number(DRAFTER, sentence), unloaded(DRAFTER, "nvl72").tpot
    assert tpot(chance + 0.01) < alone < tpot(chance - 0.01)


@pytest.mark.parametrize(
    ("sentence", "drafts"),
    [("a chance of about {} with 15 drafts", 15), ("or {} with 11", 11)],
)
def test_wafers_reach_the_published_speed_with_the_chance_of_the_header(sentence, drafts):
    def speed(chance: float) -> float:
        keys = {"tokens": drafts, "acceptance": f"{chance:.3f}"}
        changes = [f"systems.wafers.speculate.{key}={value}" for key, value in keys.items()]
        return 1 / unloaded(SPECULATION, "wafers", *changes).tpot

    chance = number(SPECULATION, sentence)
    assert speed(chance - 0.005) < 2148 < speed(chance + 0.005)
