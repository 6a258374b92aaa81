// A press on a heading sorts its table: numbers by size, the largest first, what is none at the end.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) { other.setAttribute("aria-sort", "none"); }
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = row => row.cells[head.cellIndex].textContent.trim();
    const order = (one, other) => {
      const [a, b] = [parseFloat(text(one)), parseFloat(text(other))];
      if (Number.isNaN(a) !== Number.isNaN(b)) { return Number.isNaN(a) ? 1 : -1; }
      const rising = Number.isNaN(a) ? text(one).localeCompare(text(other)) : a - b;
      return down ? -rising : rising;
    };
    body.append(...[...body.rows].sort(order));
  });
}
