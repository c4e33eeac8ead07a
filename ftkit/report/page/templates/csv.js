// Tables as text for a spreadsheet.
const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;
const FORMULA = /^[\s"']*[=+\-@＝＋－＠]|^[\t\r\n]/; // what a spreadsheet may compute when it opens the file

/** Return text that a spreadsheet shows and never computes: an apostrophe comes before what looks like a formula. */
const harmless = (text) => (FORMULA.test(text) && !NUMBER.test(text) ? "'" + text : text);

/** Return rows as a CSV file (RFC 4180, with the mark by which spreadsheets know UTF-8); null is an empty cell. */
const csvOf = (rows) => {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    return typeof value === "number" ? String(value) : '"' + harmless(String(value)).replaceAll('"', '""') + '"';
  };
  return "\ufeff" + rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
};

/** Return a table of the page as lines with tabs. */
const tabbed = (table) => [...table.rows]
  .map((row) => [...row.cells].map((cell) => harmless(cell.innerText.replace(/\s+/g, " ").trim())).join("\t"))
  .join("\n");

const download = (name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
