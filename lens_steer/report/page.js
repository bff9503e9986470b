"use strict";

function dataOf(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

for (const place of document.querySelectorAll(".plot")) {
  const { data, layout } = dataOf(place.dataset.of);
  Plotly.newPlot(place, data, layout, { displaylogo: false, modeBarButtons: [["toImage"]] });
}

for (const place of document.querySelectorAll(".coloured")) {
  CircuitsVis.render(place.id, CircuitsVis.ColoredTokens, dataOf(place.dataset.of));
}

// Tables: a click on a heading sorts by it, a second one the other way; empty cells stay last.
function keyOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
  return cell.textContent === "" ? null : cell.textContent;
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
