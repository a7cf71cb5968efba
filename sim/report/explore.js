"use strict";
// The chart, its controls and the table of `sramsim explore`. Data come from the element `data`.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const systems = Object.keys(data.systems);
const keys = [...new Set(data.rows.flatMap((row) => Object.keys(row.at)))];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

// Names come from files, and Plotly reads some markup in texts.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const number = (value) => (typeof value === "number" ? Number(value.toPrecision(3)).toLocaleString("en") : "-");
const unitOf = (axis) => (axis.unit ? ` [${axis.unit}]` : "");
const titleOf = (axis) => axis.label + unitOf(axis) + (axis.better ? (axis.better > 0 ? " - more is better" : " - less is better") : "");

function choose(select, wanted) {
  for (const [key, axis] of Object.entries(data.axes)) {
    select.add(new Option(axis.label, key));
  }
  if (wanted in data.axes) select.value = wanted;
}
choose(byId("x"), "user_speed");
choose(byId("y"), "throughput_per_chip");

// A logarithmic scale is a good start if the values span two decades.
function wide(key) {
  const values = data.rows.map((row) => row.is[key]).filter((value) => value > 0);
  return values.length > 1 && Math.max(...values) > 100 * Math.min(...values);
}
byId("x-log").checked = wide(byId("x").value);
byId("y-log").checked = wide(byId("y").value);

// Filters: a box for each system, and for each value of a swept key. A button turns a whole filter on or off.
const text = (value) => (value === null ? "default" : String(value));
const boxes = [];
function filter(name, values, label, test) {
  const fieldset = document.createElement("fieldset");
  const legend = document.createElement("legend");
  const all = Object.assign(document.createElement("button"), { type: "button", textContent: "all / none" });
  all.addEventListener("click", () => {
    const own = [...fieldset.querySelectorAll("input")];
    const on = own.some((box) => !box.checked);
    for (const box of own) box.checked = on;
    draw();
  });
  legend.append(`${name} `, all);
  fieldset.append(legend);
  for (const value of values) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    const tick = document.createElement("label");
    tick.className = "tick";
    tick.append(box, ` ${label(value)}`);
    fieldset.append(tick);
    boxes.push({ box, hides: (row) => test(row, value) });
  }
  byId("filters").append(fieldset);
}
filter("system", systems, (name) => data.systems[name].label, (row, name) => row.system === name);
for (const key of keys) {
  const values = [...new Set(data.rows.map((row) => text(row.at[key])))];
  filter(key, values, (value) => value, (row, value) => text(row.at[key]) === value);
}
function visible() {
  const off = boxes.filter(({ box }) => !box.checked);
  const stable = byId("stable").checked;
  return data.rows.filter((row) => !(stable && row.verdict !== "STABLE") && !off.some(({ hides }) => hides(row)));
}

// The points that no other beats on both axes. Where neither direction is better, more counts.
function front(rows, x, y) {
  const sign = (key) => data.axes[key].better || 1;
  const sorted = [...rows].sort((a, b) => sign(x) * (b.is[x] - a.is[x]) || sign(y) * (b.is[y] - a.is[y]));
  let best = -Infinity;
  return sorted.filter((row) => {
    const value = sign(y) * row.is[y];
    const ahead = value > best;
    best = Math.max(best, value);
    return ahead;
  });
}

// A line joins the points that differ in one key only: the key with the most values. A null ends a line.
const variety = (key) => new Set(data.rows.map((row) => text(row.at[key]))).size;
const along = keys.reduce((a, b) => (variety(b) > variety(a) ? b : a), keys[0]);
function lines(rows) {
  const groups = new Map();
  for (const row of rows) {
    const others = JSON.stringify(keys.filter((key) => key !== along).map((key) => row.at[key]));
    groups.set(others, [...(groups.get(others) ?? []), row]);
  }
  return [...groups.values()].flatMap((group, place) => (place ? [null, ...group] : group));
}

const isDark = matchMedia("(prefers-color-scheme: dark)");
const colourOf = (name) => {
  const { colour } = data.systems[name];
  return (isDark.matches && data.dark[colour.toLowerCase()]) || colour;
};
const style = () => {
  const of = getComputedStyle(document.body);
  return { ink: of.color, line: of.getPropertyValue("--line").trim(), paper: of.backgroundColor };
};
const swept = (row) => keys.map((key) => `${key}: ${text(row.at[key])}`).join("<br>");
function hover(row, x, y) {
  const lines = [x, y].map((key) => `${data.axes[key].label}: ${number(row.is[key])} ${data.axes[key].unit}`);
  return [`<b>${plain(data.systems[row.system].label)}</b>`, ...lines.map(plain), plain(swept(row)).replace(/&lt;br>/g, "<br>"), plain(row.verdict)].join("<br>");
}

// Ticks at 1, 2 and 5 of each decade, or at 1 alone over more than three decades.
function logTicks(values) {
  const steps = Math.max(...values) > 1000 * Math.min(...values) ? [1] : [1, 2, 5];
  const ticks = Array.from({ length: 30 }, (_, place) => place - 12).flatMap((power) => steps.map((step) => Number(`${step}e${power}`)));
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  return { tickvals: ticks, ticktext: ticks.map((tick) => (tick < 1000 ? String(tick) : short.format(tick))) };
}

function draw() {
  const [x, y] = [byId("x").value, byId("y").value];
  const drawable = (row) => [[x, "x-log"], [y, "y-log"]].every(([key, log]) =>
    typeof row.is[key] === "number" && (row.is[key] > 0 || !byId(log).checked));
  const rows = visible();
  const drawn = rows.filter(drawable);
  const { ink, line, paper } = style();
  const traces = systems.flatMap((name, place) => {
    const own = lines(drawn.filter((row) => row.system === name));
    if (!own.length) return [];
    const label = data.systems[name].label;
    const colour = colourOf(name);
    return [{
      type: "scatter", mode: byId("lines").checked ? "lines+markers" : "markers", name: plain(label),
      x: own.map((row) => row && row.is[x]), y: own.map((row) => row && row.is[y]), customdata: own,
      text: own.map((row) => row && hover(row, x, y)), hovertemplate: "%{text}<extra></extra>",
      line: { color: colour, width: 1.5, dash: DASHES[place % DASHES.length] },
      marker: {
        size: 10, symbol: SYMBOLS[place % SYMBOLS.length],
        color: own.map((row) => (row?.verdict === "STABLE" ? colour : paper)), line: { color: colour, width: 2 },
      },
    }];
  });
  if (byId("front").checked) {
    const best = front(drawn, x, y);
    traces.push({
      type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
      x: best.map((row) => row.is[x]), y: best.map((row) => row.is[y]), line: { color: ink, width: 4, dash: "solid" }, opacity: 0.35,
    });
  }
  const phone = matchMedia("(max-width: 56rem)").matches;
  const axis = (key, log) => ({
    title: { text: plain(phone ? data.axes[key].label + unitOf(data.axes[key]) : titleOf(data.axes[key])), standoff: 8 },
    type: byId(log).checked ? "log" : "linear", gridcolor: line, zerolinecolor: line, automargin: true, exponentformat: "SI",
    ...(byId(log).checked ? logTicks(drawn.map((row) => row.is[key])) : { rangemode: "tozero" }),
  });
  Plotly.react("chart", traces, {
    xaxis: axis(x, "x-log"), yaxis: axis(y, "y-log"), font: { color: ink, family: "inherit", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 10, r: 10, t: 10, b: 10 },
    legend: { orientation: "h", y: -0.14, yanchor: "top" }, hovermode: "closest",
    dragmode: phone ? false : "zoom", // a finger on the chart scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink, activecolor: ink },
    hoverlabel: { bgcolor: paper, font: { color: ink }, align: "left" },
  }, { responsive: true, displaylogo: false, displayModeBar: phone ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: "" }); // no button that uploads the chart
  const missing = rows.length - drawn.length;
  byId("shown").textContent = `${drawn.length} of ${data.rows.length} points` +
    (missing ? `; ${missing} more have no value to draw here, such as zero on a logarithmic axis` : "") + ". Filled: STABLE. Hollow: any other verdict.";
  byId("meanings").replaceChildren(...[...new Set([x, y])].flatMap((key) => {
    const word = document.createElement("dt");
    const meaning = document.createElement("dd");
    word.textContent = titleOf(data.axes[key]);
    meaning.textContent = data.axes[key].meaning;
    return [word, meaning];
  }));
  table();
}

// The table: for each system, the point with the most tokens per chip at a speed of a user.
const COLUMNS = ["user_speed", "throughput_per_chip", "median_ttft_ms", "economics.usd_per_mtok", "energy.joules_per_token", "chips"]
  .filter((key) => key in data.axes);
function cells(kind, texts) {
  const row = document.createElement("tr");
  for (const [place, content] of texts.entries()) {
    const cell = document.createElement(kind === "th" || place === 0 ? "th" : "td");
    if (kind !== "th" && place === 0) cell.scope = "row";
    if (place > keys.length + 1) cell.style.textAlign = "right";
    cell.textContent = content;
    row.append(cell);
  }
  return row;
}
function none(label) {
  const row = cells("td", [label, "no shown point is this fast"]);
  row.cells[1].colSpan = keys.length + 1 + COLUMNS.length;
  row.className = "none";
  return row;
}
function table() {
  const least = Number(byId("speed").value);
  byId("best").tHead.replaceChildren(cells("th", ["system", ...keys.map((key) => key.replaceAll(".", ".\u200b")), "verdict", ...COLUMNS.map((key) => data.axes[key].label + unitOf(data.axes[key]))]));
  byId("best").tBodies[0].replaceChildren(...systems.map((name) => {
    const fast = visible().filter((row) => row.system === name && row.is.user_speed >= least);
    const score = (row) => row.is.throughput_per_chip ?? -1;
    const best = fast.reduce((a, b) => (a && score(a) >= score(b) ? a : b), null);
    const { label } = data.systems[name];
    return best
      ? cells("td", [label, ...keys.map((key) => text(best.at[key])), best.verdict, ...COLUMNS.map((key) => number(best.is[key]))])
      : none(label);
  }));
}

const speeds = data.rows.map((row) => row.is.user_speed).filter((value) => value > 0).sort((a, b) => a - b);
if (speeds.length) byId("speed").value = Number(speeds[Math.floor(speeds.length / 2)].toPrecision(2));
draw();
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("change", (event) => {
  if (event.target.id === "x" || event.target.id === "y") byId(`${event.target.id}-log`).checked = wide(event.target.value);
  draw();
});
byId("speed").addEventListener("input", table);
// Three digits, and not above the value: else the clicked point would not reach its own speed.
function floor3(value) {
  const step = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number((Math.floor(value / step) * step).toPrecision(3));
}
byId("chart").on("plotly_click", ({ points }) => {
  const row = points[0].customdata;
  if (!row || !(row.is.user_speed > 0)) return;
  byId("speed").value = floor3(row.is.user_speed);
  table();
});
isDark.addEventListener("change", draw);
