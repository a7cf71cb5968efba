"use strict";
// A click on a column's head sorts the table by that column: numbers by value, texts by letters.
// A second click reverses the order.
for (const table of document.querySelectorAll(".sortable table")) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "name";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent;
      // Missing values ("-") come last in both orders.
      const rank = (row) => (text(row) === "-" ? 2 : Number.isNaN(Number(text(row))) ? 1 : 0);
      const compare = (a, b) => (rank(a) ? text(a).localeCompare(text(b), "en") : Number(text(a)) - Number(text(b)));
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => rank(a) - rank(b) || (down ? -compare(a, b) : compare(a, b)));
      table.tBodies[0].append(...rows);
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
