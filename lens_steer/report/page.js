"use strict";

function dataOf(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

for (const place of document.querySelectorAll(".plot")) {
  const { data, layout } = dataOf(place.dataset.of);
  if (layout.width > place.clientWidth) layout.width = Math.max(place.clientWidth, 320);
  Plotly.newPlot(place, data, layout, { displaylogo: false, modeBarButtons: [["toImage"]] });
}

for (const place of document.querySelectorAll(".coloured")) {
  CircuitsVis.render(place.id, CircuitsVis.ColoredTokens, dataOf(place.dataset.of));
}

// A table that is higher or wider than its box says so.
for (const box of document.querySelectorAll(".box")) {
  const rows = [...box.querySelectorAll("tbody tr")];
  const seen = rows.filter((row) => row.offsetTop + row.offsetHeight <= box.clientHeight).length;
  const parts = [];
  if (seen < rows.length) parts.push(`${seen} of ${rows.length} rows are in view`);
  if (box.scrollWidth > box.clientWidth + 1) parts.push("more columns to the right");
  if (parts.length) box.insertAdjacentHTML("afterend", `<p class="note more">${parts.join("; ")}: scroll.</p>`);
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
