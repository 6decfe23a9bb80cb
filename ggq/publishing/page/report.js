"use strict";
(() => {
  const table = document.getElementById("all");
  const said = document.getElementById("sorted");
  const value = (row, column) => row.cells[column].dataset.sort;

  // What was not measured stays at the end, whichever way the others are turned.
  function compare(one, other, sign) {
    if (one === "" || other === "") return (one === "") - (other === "");
    const numbers = [Number(one), Number(other)];
    if (!numbers.some(Number.isNaN)) return sign * (numbers[0] - numbers[1]);
    return sign * one.localeCompare(other, "en", { numeric: true });
  }

  function sort(column) {
    const heads = [...table.tHead.rows[0].cells];
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, index) => [row, index]);
    const sign = ascending ? 1 : -1;
    rows.sort((a, b) => compare(value(a[0], column), value(b[0], column), sign) || a[1] - b[1]);
    body.append(...rows.map(([row]) => row));
    said.textContent = `Sorted by ${heads[column].textContent.trim()}, ${ascending ? "ascending" : "descending"}.`;
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sort(column));
  });

  const theme = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);
  show();

  // Paper cannot be unfolded.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((it) => { it.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((it) => { it.open = false; }));
})();
