"""The page of `sramsim report` in a headless Chromium: silent, without a network, readable on a phone, in light and dark."""

import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars
import pytest
from matplotlib.image import imread

from sim import read, run, sweep
from sim.report import page
from sim.results.saving import save_result

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the path"),
]
PATIENCE = 60  # s


class Browser:
    """A Chromium that is spoken to over a pipe, in its DevTools protocol: no driver and no port are needed."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self.write = os.pipe()
        self.read, theirs_out = os.pipe()
        words = f"{CHROMIUM} --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir={profile} --remote-debugging-pipe"
        joined = f"exec {words} about:blank 3<&{theirs_in} 4>&{theirs_out}"
        self.process = subprocess.Popen(
            ["bash", "-c", joined],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.sent, self.unread, self.events = 0, b"", list[dict[str, Any]]()
        self.session = ""
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.tell("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **given: Any) -> dict[str, Any]:
        """One command and its answer; events that come before it are kept."""
        self.sent += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(
            self.write,
            json.dumps({"id": self.sent, "method": method, "params": given, **session}).encode()
            + b"\0",
        )
        while (message := self.hear()).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def hear(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            assert select.select([self.read], [], [], max(0, end - time.monotonic()))[0], (
                "Chromium does not answer"
            )
            heard = os.read(self.read, 1 << 20)
            assert heard, "Chromium has ended"
            self.unread += heard
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int = 1200, scheme: str = "light") -> None:
        """A file in a window of this width, whole, with all that its script does at once."""
        self.events.clear()
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.tell(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.tell("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.hear())

    def value(self, script: str) -> Any:
        answer = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def said(self) -> list[dict[str, Any]]:
        """Whatever the console shows: messages, errors, what the page's policy refused."""
        return [
            e
            for e in self.events
            if e["method"]
            in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        ]

    def asked_for(self) -> list[str]:
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, to: Path) -> None:
        """A screenshot of the whole page."""
        to.write_bytes(
            base64.b64decode(
                self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            )
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, of one whose names are hostile, and of a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    given = {
        "run": ["workload.requests=20"],
        "hostile": ["workload.requests=2", 'id="</script><script>alert(1)</script>"'],
    }
    for name, assignments in given.items():
        scenario = read("llama3-8b-lpu-vs-h100", assignments)
        if name == "hostile":
            systems = {
                f"<img src=http://127.0.0.1/{each} onerror=alert(1)>": system
                for each, system in scenario.systems.items()
            }
            scenario = scenario.model_copy(update={"systems": systems})
        save_result(run(scenario).saved(), folder)
        (folder / f"{name}.html").write_text(page.html_page(folder), encoding="utf-8")
        if name == "run":
            (folder / "brief.html").write_text(page.html_page(folder, True), encoding="utf-8")
    (folder / "sweep.json").write_text(
        json.dumps({"scenario": "mine", "keys": [], "points": [], "systems": []})
    )
    speeds = {
        "rate": [1, 2, 10, 3],
        "system": ["b", "a", "c", "d"],
        "speed": [30.0, 4.0, None, 1e-3],
        "error": [None] * 4,
    }
    polars.DataFrame(speeds).write_parquet(folder / "table.parquet")
    (folder / "sweep.html").write_text(page.html_page(folder), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in (*given, "brief", "sweep")}


OPEN_ALL = "document.querySelectorAll('details').forEach((each) => (each.open = true))"


@pytest.mark.parametrize("name", ["run", "hostile", "sweep"])
def test_it_is_silent_and_asks_for_nothing_but_itself(
    browser: Browser, files: dict[str, Path], name: str
) -> None:
    browser.open(files[name])
    browser.value(OPEN_ALL)
    assert browser.said() == []
    assert browser.asked_for() == [files[name].as_uri()]


@pytest.mark.parametrize("name", ["run", "hostile", "brief", "sweep"])
def test_on_a_phone_it_does_not_scroll_sideways(
    browser: Browser, files: dict[str, Path], name: str
) -> None:
    browser.open(files[name], width=360)
    browser.value(OPEN_ALL)
    assert browser.value("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert browser.value("Math.min(...[...document.querySelectorAll('p, td, th, figcaption, summary, pre')]"
                         ".map((each) => parseFloat(getComputedStyle(each).fontSize)))") >= 12  # fmt: skip


LETTERS = """
[...document.querySelectorAll("h1, p, td, th, a, summary, figcaption, pre, svg text")].map((each) => {
  const style = getComputedStyle(each);
  return [each instanceof SVGElement ? style.fill : style.color, getComputedStyle(document.body).backgroundColor];
})
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_letter_stands_out_from_the_page(
    browser: Browser, files: dict[str, Path], scheme: str, tmp_path: Path
) -> None:
    """At the 4.5:1 that WCAG asks of text; and the whole is as light, or as dark, as the reader asked."""
    browser.open(files["run"], scheme=scheme)
    pairs = {tuple(pair) for pair in browser.value(LETTERS)}
    assert len(pairs) > 2
    for letter, paper in pairs:
        dark, light = sorted((luminance(letter), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (letter, paper)
    browser.picture(tmp_path / "page.png")
    mean = imread(tmp_path / "page.png")[:, :, :3].mean()
    assert mean > 0.85 if scheme == "light" else mean < 0.2


def luminance(colour: str) -> float:
    """Of 'rgb(1, 2, 3)'.  Source: WCAG 2.2, relative luminance."""
    parts = (int(part) / 255 for part in colour.strip("rgba()").split(",")[:3])
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_what_a_figure_refers_to_is_drawn(browser: Browser, files: dict[str, Path]) -> None:
    """Every fill, clip and marker by reference is found in its own figure: a hatch without its pattern would be a hole."""
    browser.open(files["run"])
    missing = """
    [...document.querySelectorAll("svg *")].flatMap((each) =>
      [each.getAttribute("style"), each.getAttribute("clip-path"), each.getAttribute("xlink:href")]
        .flatMap((value) => [...(value || "").matchAll(/(?:url\\(|^)#([^)]+)/g)].map((found) => found[1]))
        .filter((id) => !each.ownerSVGElement.querySelector("#" + CSS.escape(id))))
    """
    assert browser.value(missing) == []


def test_a_head_sorts_its_table_and_none_comes_last(
    browser: Browser, files: dict[str, Path]
) -> None:
    browser.open(files["sweep"])
    press = "document.querySelectorAll('.sortable th button')[{}].click()"
    column = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[{}].textContent)"
    browser.value(press.format(2))
    assert browser.value(column.format(2)) == ["0.001", "4", "30", "-"]
    browser.value(press.format(2))
    assert browser.value(column.format(2)) == ["30", "4", "0.001", "-"]
    browser.value(press.format(0))
    assert browser.value(column.format(0)) == ["1", "2", "3", "10"]
    browser.value(press.format(1))
    assert browser.value(column.format(1)) == ["a", "b", "c", "d"]


def test_on_paper_everything_is_open(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["run"])
    assert browser.value("document.querySelectorAll('details:not([open])').length") > 0
    assert base64.b64decode(browser.tell("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert browser.value("document.querySelectorAll('details:not([open])').length") == 0


def test_the_brief_page_prints_on_one_sheet(browser: Browser, files: dict[str, Path]) -> None:
    """In both of the usual paper sizes [inch]."""
    browser.open(files["brief"])
    for width, height in ((8.27, 11.69), (8.5, 11)):
        pdf = browser.tell("Page.printToPDF", paperWidth=width, paperHeight=height)["data"]
        assert len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(pdf))) == 1


def test_figures_are_as_wide_as_a_phone_at_most(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["run"], width=390)
    widths = "[...document.querySelectorAll('figure svg')].map((each) => each.clientWidth)"
    assert 0 < max(browser.value(widths)) <= 390


# The page of `sramsim explore`.

EVIL = "<img src=http://127.0.0.1/ onerror=alert(1)>"


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep over users and prompts, of a card and of two cards with a hostile name."""
    pytest.importorskip("plotly")
    from sim.report.explore import explore_page

    folder = tmp_path_factory.mktemp("explored")
    plan = {"weights": "fp16", "activations": "fp16"}
    card = {"chip": "h100-sxm", "chips": 1, "engine": "ideal", "plan": plan}
    lengths = {"prompt": "64 token", "output": "8 token"}
    scenario = {
        "model": "llama-2-7b",
        "workload": {"kind": "closed", "users": 1, "requests": 40, **lengths},
        "systems": {"one": card, EVIL: {**card, "chips": 2, "plan": {**plan, "tensor": 2}}},
    }
    over = {"workload.users": [1, 4, 16], "workload.prompt": ["64 token", "96 token"]}
    sweep(scenario, folder, over)
    (folder / "explore.html").write_text(explore_page(folder), encoding="utf-8")
    return folder / "explore.html"


def change(browser: Browser, element: str, what: str) -> None:
    event = "new Event('change', {bubbles: true})"
    browser.value(f"{{const e = byId('{element}'); {what}; e.dispatchEvent({event})}}")


@pytest.mark.parametrize("width", [390, 1400])
def test_a_sweep_is_explored_without_a_network(
    browser: Browser, explored: Path, width: int
) -> None:
    browser.open(explored, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("byId('chart').data.length") == 2
    assert browser.value("byId('shown').textContent").startswith("12 of 12 points.")
    assert browser.value("byId('chart').getBoundingClientRect().height") > 300
    assert "more is better" in browser.value("byId('meanings').textContent")
    # A pointer over a point: its values.
    assert "throughput per chip" in browser.value("byId('chart').data[0].text[0]")
    assert browser.value("document.querySelectorAll('img').length") == 0
    # Another axis, a logarithmic scale, the front, a filter.
    change(browser, "x", "e.value = 'median_ttft_ms'")
    change(browser, "x-log", "e.checked = true")
    assert browser.value("byId('chart').layout.xaxis.type") == "log"
    assert "TTFT" in browser.value("byId('chart').layout.xaxis.title.text")
    change(browser, "front", "e.checked = true")
    assert browser.value("byId('chart').data[2].name") == "Pareto front"
    browser.value("document.querySelector('#filters input').click()")
    assert browser.value("byId('shown').textContent").startswith("6 of 12 points.")
    # The button of the first filter: on where some are off, then off.
    for points in (12, 0, 12):
        browser.value("document.querySelector('#filters button').click()")
        assert browser.value("byId('shown').textContent").startswith(f"{points} of 12 points.")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.said() == []
    assert browser.asked_for() == [explored.as_uri()]


def test_a_line_joins_points_that_differ_in_one_key(browser: Browser, explored: Path) -> None:
    browser.open(explored)
    for trace in browser.value("byId('chart').data.map((t) => t.customdata.map((r) => r && r.at))"):
        ends = [pair for pair in pairwise(trace) if None not in pair]
        assert len(ends) == 4  # three users, at each of two prompts
        for one, other in ends:
            assert [key for key in one if one[key] != other[key]] == ["workload.users"]


def test_no_button_of_the_chart_needs_a_network(browser: Browser, explored: Path) -> None:
    """The library can upload a chart, to a service of its maker."""
    browser.open(explored)
    buttons = browser.value(
        "[...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)"
    )
    assert len(buttons) == 4
    assert not any(word in text.lower() for text in buttons for word in ("share", "cloud", "edit"))


def test_a_finger_can_use_the_page(browser: Browser, explored: Path) -> None:
    """Controls are 44 px high (WCAG 2.2); a swipe over the chart scrolls; a tap takes a point's speed."""
    browser.open(explored, width=390)
    browser.value("byId('filters').open = true")
    heights = """
    [...document.querySelectorAll("select, #speed, .tick, summary, legend button")]
      .map((each) => each.getBoundingClientRect().height)
    """
    assert min(browser.value(heights)) >= 44
    browser.value("byId('filters').open = false; byId('speed').value = 0")
    point = browser.value("""
    (() => {
      byId("chart").scrollIntoView();
      const { x, y, width, height } = document.querySelector(".points path").getBoundingClientRect();
      return [x + width / 2, y + height / 2];
    })()
    """)
    browser.tell("Emulation.setTouchEmulationEnabled", enabled=True)
    finger = [{"x": point[0], "y": point[1]}]
    browser.tell("Input.dispatchTouchEvent", type="touchStart", touchPoints=finger)
    browser.tell("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    speed = float(browser.value("byId('speed').value"))
    assert 0 < speed <= browser.value("data.rows[0].is.user_speed") < 1.01 * speed
    # A script that prevents the moves of a finger keeps the page from scrolling.
    browser.value("""
    kept = [];
    addEventListener("touchmove", (event) => kept.push(event.defaultPrevented), { passive: true });
    1
    """)
    browser.tell("Input.dispatchTouchEvent", type="touchStart", touchPoints=finger)
    for step in range(1, 5):
        moved = [{"x": point[0], "y": point[1] - 30 * step}]
        browser.tell("Input.dispatchTouchEvent", type="touchMove", touchPoints=moved)
    browser.tell("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert browser.value("kept.length") > 0
    assert not browser.value("kept.some(Boolean)")
    browser.tell("Emulation.setTouchEmulationEnabled", enabled=False)


def test_the_front_and_the_table_hold_the_best_points(browser: Browser, explored: Path) -> None:
    browser.open(explored)
    front = browser.value(
        "front(data.rows, 'user_speed', 'throughput_per_chip').map(r => [r.is.user_speed, r.is.throughput_per_chip])"
    )
    points = browser.value("data.rows.map(r => [r.is.user_speed, r.is.throughput_per_chip])")
    for x, y in points:
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ([x, y] in front) == (not beaten)
    speeds = sorted(x for x, _ in points)
    browser.value(f"byId('speed').value = {speeds[-1] - 1e-6}; table()")
    cells = "[...byId('best').tBodies[0].rows].map(row => row.cells[1].textContent)"
    # Only one system is so fast, with one user.
    assert sorted(browser.value(cells)) == ["1", "no shown point is this fast"]
    browser.value("byId('speed').value = 0; table()")
    assert browser.value(cells) == ["16", "16"]
    head, *rows = browser.value("[...byId('best').rows].map(row => row.cells[3].textContent)")
    assert head == "verdict"
    assert set(rows) <= set(browser.value("data.rows.map(row => row.verdict)"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_letter_of_the_chart_stands_out(
    browser: Browser, explored: Path, scheme: str
) -> None:
    browser.open(explored, scheme=scheme)
    for letter, paper in {tuple(pair) for pair in browser.value(LETTERS)}:
        dark, light = sorted((luminance(letter), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (letter, paper)
