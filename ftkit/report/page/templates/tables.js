"use strict";
(() => {
  // ---- a row's name sorts the columns of its table
  const valueOf = (cell) => {
    const text = cell.dataset.sort;
    if (text === undefined) return null;
    const number = Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sortColumns = (table, row, sign) => {
    const values = [...row.querySelectorAll("td")].map(valueOf);
    const order = values.map((_, i) => i).sort((a, b) => {
      if (values[a] === null || values[b] === null) return compare(values[a], values[b]) || a - b;
      return sign * compare(values[a], values[b]) || a - b;
    });
    table.querySelectorAll("tr").forEach((line) => {
      const cells = [...line.children].slice(1);
      line.append(...order.map((i) => cells[i]));
    });
  };
  document.querySelectorAll("table[data-sortable]").forEach((table) => {
    const rows = [...table.querySelectorAll("tbody tr")];
    rows.forEach((row) => {
      const name = row.querySelector(".sort-name");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...name.childNodes);
      name.replaceWith(button);
      const head = row.querySelector("th");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        rows.forEach((other) => other.querySelector("th").removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortColumns(table, row, down ? -1 : 1);
      });
    });
  });

  // ---- print: every part is open
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => {
    closed.forEach((part) => { part.open = false; });
    closed = [];
  });
})();
