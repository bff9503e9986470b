"use strict";

function dataOf(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

// Colours of the figures in the dark: those of `figures/style.py`, and of plotly's scales, by what they are in the light.
const NIGHT = {
  "#222222": "#e6e9ec",
  "#000000": "#e6e9ec",
  "#767676": "#9aa4ae",
  "#bbbbbb": "#56606a",
  "#ececec": "#2b3138",
  "#0072b2": "#4ba3e3",
  "#d55e00": "#f0803c",
  "#009e73": "#2fc497",
  "rgba(255,255,255,0.8)": "rgba(21,24,28,0.8)",
};
const NIGHT_SCALES = {
  "rgb(252,251,253)": [[0, "#1b1f24"], [1, "#b79be0"]],
  "rgb(103,0,31)": [[0, "#e0705a"], [0.5, "#1b1f24"], [1, "#5aa9e6"]],
};

function atNight(value, key) {
  if (Array.isArray(value)) {
    if (key === "colorscale" && NIGHT_SCALES[value[0]?.[1]]) return NIGHT_SCALES[value[0][1]];
    return value.map((part) => atNight(part));
  }
  if (value === null || typeof value !== "object") return (typeof value === "string" && NIGHT[value]) || value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, atNight(part, name)]));
}

// On a narrow page panels that stand side by side come one below the other.
const PANEL_GAP = 80;

function stacked(layout) {
  const axes = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name)).map((name) => layout[name]);
  const starts = [...new Set(axes.map((axis) => axis.domain?.[0] ?? 0))].sort((a, b) => a - b);
  if (starts.length < 2) return;
  const inner = layout.height - layout.margin.t - layout.margin.b;
  const whole = inner * starts.length + PANEL_GAP * (starts.length - 1);
  const places = axes.map((axis) => ({ axis, domain: axis.domain, panel: starts.indexOf(axis.domain?.[0] ?? 0) }));
  const lifted = (y, panel) => 1 - (panel * (inner + PANEL_GAP) + (1 - y) * inner) / whole;
  for (const { axis, panel } of places) {
    const other = layout[`yaxis${(axis.anchor ?? "y").slice(1)}`];
    other.domain = (other.domain ?? [0, 1]).map((y) => lifted(y, panel));
    other.showticklabels = true;
    axis.showticklabels = true;
  }
  for (const note of layout.annotations ?? []) {
    if (note.xref !== "paper" || note.yref !== "paper") continue;
    const at = places.find(({ domain }) => domain[0] <= note.x && note.x <= domain[1]);
    if (at) Object.assign(note, { x: 0, xanchor: "left", y: lifted(note.y, at.panel) });
  }
  for (const [name, scale] of Object.entries(layout)) {
    if (!/^coloraxis\d*$/.test(name) || !scale.colorbar) continue;
    const panel = Math.max(0, places.findLastIndex(({ domain }) => domain[0] < (scale.colorbar.x ?? 0)));
    Object.assign(scale.colorbar, { x: 1.02, y: lifted(0.5, places[panel].panel), len: inner / whole, lenmode: "fraction" });
  }
  for (const { axis } of places) axis.domain = [0, 1];
  layout.height += whole - inner;
}

const MOST_NARROW = 560; // pixels
const LONG_LABEL = 12; // letters
const LETTER = 8; // pixels, and some room
const NARROWEST_CELL = 34; // with a number in it

function wrapped(text, letters) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines[lines.length - 1];
    if (line && line.length + word.length >= letters) lines.push(word);
    else lines[lines.length - 1] = line ? `${line} ${word}` : word;
  }
  return lines.join("<br>");
}

function columnsOf({ z }) {
  return z.bdata === undefined ? (z[0]?.length ?? 0) : Number(z.shape.split(",")[1]);
}

function fitted({ data, layout }, room) {
  if (!(layout.width <= room)) layout.width = Math.max(room, 280);
  if (room >= MOST_NARROW) return;
  stacked(layout);
  layout.margin.l = Math.min(layout.margin.l, 56);
  layout.margin.r = Math.min(layout.margin.r, layout.width * 0.2);
  const inner = layout.width - layout.margin.l - layout.margin.r;
  for (const note of layout.annotations ?? []) {
    if (note.xref === "paper") note.text = wrapped(note.text ?? "", layout.width / LETTER);
    // A long label at a point would widen the axis by its own length.
    const isLong = note.xref !== "paper" && (note.text ?? "").length > LONG_LABEL;
    if (isLong) Object.assign(note, { xref: "paper", x: 0, xanchor: "left", xshift: 0, yshift: 14 });
  }
  for (const trace of data) {
    if (trace.type === "heatmap" && trace.texttemplate && inner / columnsOf(trace) < NARROWEST_CELL) delete trace.texttemplate;
  }
}

const PAPER = 1000; // pixels before the style sheet's zoom
const dark = matchMedia("(prefers-color-scheme: dark)");

function draw(night, room) {
  for (const place of document.querySelectorAll(".plot")) {
    const spec = dataOf(place.dataset.of);
    fitted(spec, room ?? place.clientWidth);
    Object.assign(spec.layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
    const { data, layout } = night ? atNight(spec) : spec;
    Plotly.react(place, data, layout, { displaylogo: false, modeBarButtons: [["toImage"]] });
  }
}

async function unpacked(id) {
  const packed = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function sayInPlots(text) {
  for (const place of document.querySelectorAll(".plot")) place.textContent = text;
}

async function drawAll() {
  if (typeof DecompressionStream === "undefined") {
    return sayInPlots("This figure needs a browser of 2023 or later (DecompressionStream); its numbers are in the table.");
  }
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  draw(dark.matches);
  dark.addEventListener("change", () => draw(dark.matches));
  addEventListener("beforeprint", () => draw(false, PAPER));
  addEventListener("afterprint", () => draw(dark.matches));
  let drawnFor = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === drawnFor) return;
    drawnFor = innerWidth;
    draw(dark.matches);
  });
}

if (document.getElementById("plotly")) {
  drawAll().catch((error) => sayInPlots(`This figure cannot be drawn: ${error.message}`));
}

// A table that is higher or wider than its box says so.
function hintAtScrolling() {
  for (const hint of document.querySelectorAll(".more")) hint.remove();
  for (const box of document.querySelectorAll(".box")) {
    const rows = [...box.querySelectorAll("tbody tr")];
    const seen = rows.filter((row) => row.offsetTop + row.offsetHeight <= box.clientHeight).length;
    const parts = [];
    if (seen < rows.length) parts.push(`${seen} of ${rows.length} rows are in view`);
    if (box.scrollWidth > box.clientWidth + 1) parts.push("more columns to the right");
    if (parts.length) box.insertAdjacentHTML("afterend", `<p class="note more">${parts.join("; ")}: scroll.</p>`);
  }
}

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  hintAtScrolling();
});
hintAtScrolling();

// Tables: a click on a heading sorts by it, a second one the other way; empty cells stay last.
function keyOf(row, column) {
  const cell = row.cells[column];
  if (cell.textContent === "") return null;
  return cell.classList.contains("number") ? Number(cell.dataset.order ?? cell.textContent) : cell.textContent;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

function sortBy(button) {
  const heading = button.closest("th");
  const body = heading.closest("table").tBodies[0];
  const falls = heading.classList.contains("number");
  const first = falls ? "descending" : "ascending";
  const other = falls ? "ascending" : "descending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  for (const each of heading.parentElement.cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [keyOf(row, heading.cellIndex), row]);
  rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sortBy(button);
});

// What is folded away is printed.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not([open])")) {
    folded.open = true;
    folded.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const folded of document.querySelectorAll("details[data-printed]")) {
    folded.open = false;
    delete folded.dataset.printed;
  }
});
