"""The page of `sramsim report`: one HTML file from a folder of `run --out` or `sweep --out`.

The page loads nothing from a network. Figures are those of `plots`, as SVG. Their text is text, and
their colours follow the reader's light or dark mode. A few lines of script sort the tables.
Left out: a plotting library's script, 3 to 5 MB for each page. `sramsim explore` has one.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sim.inputs.key_paths import scalar_values
from sim.report.answer import answer_sentence, condition_lines
from sim.report.findings import notes
from sim.report.first_screen import key_rows, key_table, remarks
from sim.report.html_table import as_html
from sim.report.tables import run_tables
from sim.report.titled_tables import titled_table
from sim.results.encoding import encode_summary
from sim.results.labels import sortable_text, system_labels
from sim.results.saving import load_result
from sim.results.summary import RunOrigin

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

HERE = Path(__file__).parent  # of page.html, page.css and page.js
LEAD = "speed"  # the figure below the answer of a run
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Colours of figures on a dark page. The first is the ground. Other colours are visible on both.
DARK_COLOURS = {
    "#ffffff": "#14171a",
    "#000000": "#e8eaed",
    "#555555": "#aeb4bb",
    "#dddddd": "#33383e",
    "#eeeeee": "#262a2f",
    "#332288": "#8f83e0",
    "#aa4499": "#c56bb6",
    "#882255": "#c2608f",
    "#00446b": "#4f9fd0",
    "#803800": "#e08a50",
    "#005f45": "#3f9e7f",
    "#7a4964": "#a9718f",
}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of the page: its finding and caption as text, the rest as SVG."""

    name: str
    finding: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class PageContent:
    """The content of a page for a run or a sweep.

    scenario: its name. seed, origin: None if the result does not have them.
    lead: the figure below the answer. key_rows: the table of the first screen; None of a sweep.
    conditions: systems, requests, SLO. notes: what to know about the numbers.
    tables, figures: the rest. every: a title, and the table of all values.
    command: the one that made the folder.
    """

    scenario: str
    seed: int | None
    origin: RunOrigin | None
    answer: str
    lead: DrawnFigure | None
    key_rows: Markup | None
    conditions: list[str]
    notes: list[str]
    tables: list[Markup]
    figures: list[DrawnFigure]
    every: tuple[str, Markup]
    command: str


def html_page(folder: Path, brief: bool = False) -> str:
    """Return the page of a folder. Equal folders give equal bytes.

    brief: whether the page has only what prints on one sheet.
    Raises: UserError if the folder holds no result.
    """
    of_sweep = (folder / "sweep.json").is_file()
    return _page(_of_sweep(folder) if of_sweep else _of_run(folder, brief), brief)


def _of_run(folder: Path, brief: bool) -> PageContent:
    """Return the content of the page for one run."""
    from plots import draw_all

    saved = load_result(folder)
    summary = saved.summary
    labels = list(system_labels(summary.identities).values())
    every = titled_table("", labels)
    values = {name: scalar_values(encode_summary(s)) for name, s in summary.systems.items()}
    for key in dict.fromkeys(key for of_system in values.values() for key in of_system):
        every.add_row(key, *(sortable_text(of_system.get(key)) for of_system in values.values()))
    figures = page_figures(draw_all(saved))
    lead = next((figure for figure in figures if figure.name == LEAD), figures[0])
    return PageContent(
        scenario=summary.scenario,
        seed=summary.seed,
        origin=summary.origin,
        answer=answer_sentence(summary),
        lead=lead,
        key_rows=_table(key_table(key_rows(summary), labels, 0, len(labels))),
        conditions=condition_lines(summary),
        notes=remarks(summary) if brief else notes(summary),
        tables=[_table(table) for table in run_tables(summary)],
        figures=[figure for figure in figures if figure is not lead],
        every=("Every metric", _table(every)),
        command="run",
    )


def _of_sweep(folder: Path) -> PageContent:
    """Return the content of the page for a sweep: its table and its figures."""
    from plots import draw_swept
    from sim.studies.sweep import load_sweep

    swept = load_sweep(folder)
    rows = swept.table
    table = titled_table("", rows.columns[1:])
    table.columns[0].header = rows.columns[0]
    for row in rows.iter_rows():
        table.add_row(*map(sortable_text, row))
    failed = (rows["error"].fill_null("") != "").sum()
    note = f"{len(rows)} rows, each a system under one set of values"
    note += f"; {failed} of them failed." if failed else "."
    figures = page_figures(draw_swept(swept))
    return PageContent(
        scenario=swept.summary.scenario,
        seed=swept.summary.seed,
        origin=swept.summary.origin,
        answer=figures[0].finding if figures else note,
        lead=figures[0] if figures else None,
        key_rows=None,
        conditions=[],
        notes=[note] if figures else [],
        tables=[],
        figures=figures[1:],
        every=("Every point", _table(table)),
        command="sweep",
    )


def page_figures(figures: Mapping[str, "Figure"]) -> list[DrawnFigure]:
    """Return figures for the page, without title and caption.

    Both become text of the page, which is readable on a phone.
    """
    shown: list[DrawnFigure] = []
    for name, figure in figures.items():
        title = figure.get_suptitle()
        caption = "; ".join(part for part in re.split(r"\n|\s{2,}", figure.get_supxlabel()) if part)
        # The empty lines at the end of a title stay. They leave space for a key.
        figure.suptitle(title[len(title.rstrip("\n")) :])
        figure.supxlabel("")
        repeated = caption in {other.caption for other in shown}
        finding = " ".join(title.split())
        svg = inline_svg(figure, f"{name}-", finding)
        shown.append(DrawnFigure(name, finding, "" if repeated else caption, svg))
    return shown


def inline_svg(figure: "Figure", prefix: str, label: str) -> Markup:
    """Return a figure as SVG for a page that has other figures.

    Ids get the prefix. Text is text, and a style sheet may change the colours.
    """
    import matplotlib

    written = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    for short, space in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(short, space)
    root = ElementTree.fromstring(written.getvalue())
    _remove_page_rules(root)
    for element in root.iter():
        _adapt_to_page(element, prefix)
    width = root.attrib.pop("width")
    del root.attrib["height"]
    for key, value in (("role", "img"), ("aria-label", label), ("style", f"max-width: {width}")):
        root.set(key, value)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _remove_page_rules(root: ElementTree.Element) -> None:
    """Remove metadata and style elements, because their rules would hold for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)


def _adapt_to_page(element: ElementTree.Element, prefix: str) -> None:
    """Prefix the ids of an element, and move its colours to a style with variables."""
    painted = [
        f"{key}: {element.attrib.pop(key)}" for key in ("fill", "stroke") if element.get(key)
    ]
    if painted:
        element.set("style", "; ".join([*painted, element.get("style", "")]))
    for key, value in element.attrib.items():
        if key == "id":
            value = prefix + value
        elif key == f"{{{XLINK}}}href":
            value = value.replace("#", f"#{prefix}", 1)
        elif key == "style":
            value = re.sub(r"#[0-9a-f]{6}\b", lambda match: colour_variable(match[0]), value)
        element.set(key, value.replace("url(#", f"url(#{prefix}"))


def colour_variable(colour: str) -> str:
    """Return a colour, as a variable of the style sheet if it differs on a dark page."""
    return f"var(--c{colour[1:]}, {colour})" if colour in DARK_COLOURS else colour


def scenario_yaml(content: PageContent) -> str:
    """Return the scenario as it was run, with assignments and seed; '' if it was made in code."""
    origin = content.origin
    if not (origin and origin.inputs):
        return ""
    question = f"# {origin.question}\n" if origin.question else ""
    seed = {} if content.seed is None else {"seed": content.seed}
    return question + yaml.safe_dump(
        {**origin.inputs, **seed},
        sort_keys=False,
        default_flow_style=None,
        width=110,
        allow_unicode=True,
    )


def _table(table: "Table") -> Markup:
    return Markup(as_html(table))


def comment_html(origin: RunOrigin | None) -> Markup:
    """Return the opening comment of a scenario as HTML, with its commands and keys as code."""
    text = str(escape((origin and origin.question) or ""))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", text))


def _page(content: PageContent, brief: bool) -> str:
    origin, scenario = content.origin, scenario_yaml(content)
    name = f"{content.scenario}.yaml"
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        {
            **vars(content),
            "brief": brief,
            "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
            "script": Markup(script),
            "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            "dark": DARK_COLOURS,
            "name": content.scenario,
            "question": comment_html(origin),
            "scenario": scenario,
            "file": name,
            "link": f"data:text/yaml;base64,{base64.b64encode(scenario.encode()).decode()}",
            "sources": (origin and origin.sources) or {},
            "doubtful": ("assumed", "fitted", "changed", "no source"),
            "version": (origin and origin.version) or "unknown",
            "reproduce": f"sramsim {content.command} {shlex.quote(name)} --out out",
        }
    )
