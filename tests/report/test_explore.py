"""The page of `sramsim explore`, without a browser: its data, what it holds, and its errors."""

import json
import re
import sys

import pytest

import sim
from sim.report.explore import explore_data, explore_page, json_for_script

HOSTILE = "</script><img src=http://127.0.0.1/ onerror=alert(1)>"
CARD = {"chip": "h100-sxm", "chips": 1, "engine": "ideal", "plan": {"weights": "fp16", "activations": "fp16"}}  # fmt: skip
SCENARIO = {
    "model": "llama-2-7b",
    "workload": {"kind": "closed", "users": 1, "requests": 20, "prompt": "64 token", "output": "8 token"},
    "systems": {"one": CARD, HOSTILE: {**CARD, "chips": 2, "plan": CARD["plan"] | {"tensor": 2}}},
}  # fmt: skip
OVER = {"workload.users": [1, 4, 16], "systems.one.plan.kv": ["fp16", "fp8"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    sim.sweep(SCENARIO, folder, OVER)
    return folder


def test_every_point_has_its_values(folder):
    swept = sim.sweep(SCENARIO, folder, OVER)
    data = explore_data(swept)
    assert len(data["rows"]) == 12
    row, values = data["rows"][0], swept.table.to_dicts()[0]
    assert row["at"] == {"workload.users": 1, "systems.one.plan.kv": "fp16"}
    assert row["is"]["user_speed"] == 1000 / values["median_tpot_ms"]
    assert row["is"]["throughput_per_chip"] == values["output_throughput"] / values["chips"]
    assert row["is"]["economics.usd_per_mtok"] == values["economics.usd_per_mtok"]
    assert {"workload.users", "median_ttft_ms", "energy.joules_per_token"} <= data["axes"].keys()
    assert "attainment" not in data["axes"]  # there is no SLO
    assert list(data["systems"]) == list(SCENARIO["systems"])


def test_data_cannot_end_their_script():
    text = json_for_script({"a": f"{HOSTILE}\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": f"{HOSTILE}\u2028"}


def test_the_page_holds_all_that_it_needs(folder):
    pytest.importorskip("plotly")
    page = explore_page(folder)
    assert page == explore_page(folder)
    assert HOSTILE not in page
    assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page) == []
    assert "plotly.js" in page
    assert page.count("'sha256-") == 2


def test_errors_are_one_line(folder, tmp_path, sramsim, monkeypatch):
    code, _, printed = sramsim("explore", str(folder), "-o", "page.txt")
    assert (code, "expected a name that ends with .html" in printed) == (2, True)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, printed = sramsim("explore", str(folder), "-o", str(tmp_path / "page.html"))
    assert (code, printed.count("\n")) == (2, 1)
    assert "try pip install 'sramsim[explore]'" in printed
    monkeypatch.undo()


def test_a_folder_without_a_sweep_is_an_error(tmp_path):
    pytest.importorskip("plotly")
    with pytest.raises(
        sim.UserError,
        match=r"got no sweep\.json; expected the folder of a finished sweep; try sramsim sweep",
    ):
        explore_page(tmp_path)
