"use strict";
(() => {
  const PAGE = 20;
  const PREVIEW = 700;
  const byId = (id) => document.getElementById(id);

  // ---- theme
  const root = document.documentElement;
  const button = byId("theme");
  const stored = () => {
    try { return localStorage.getItem("ftkit-theme"); } catch { return null; }
  };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (["dark", "light"].includes(stored())) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("ftkit-theme", root.dataset.theme); } catch { /* a sandboxed frame has no storage */ }
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // ---- examples
  const controls = byId("controls");
  if (!controls) return;
  const data = JSON.parse(byId("data").textContent);
  const rows = data.rows;
  const haystack = rows.map((row) => [
    row.id, row.input, ...row.targets,
    ...row.answers.map((a) => (a ? [a.text, a.error, a.answer, a.reason].filter(Boolean).join("\n") : "")),
  ].join("\n").toLowerCase());
  const last = data.systems.length - 1;

  const filters = {
    all: () => true,
    better: (row) => row.delta > 0,
    worse: (row) => row.delta !== null && row.delta < 0,
    same: (row) => row.delta === 0,
    failed: (row) => row.answers.some((a) => !a || a.error !== undefined || a.value === null),
  };
  const byNumber = (value, sign) => (a, b) => {
    const x = value(rows[a]), y = value(rows[b]);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  };
  const score = (row) => (row.answers[last] ? row.answers[last].value : null);
  const collator = new Intl.Collator(undefined, { numeric: true });
  const orders = {
    "delta-down": byNumber((row) => row.delta, -1),
    "delta-up": byNumber((row) => row.delta, 1),
    "score-up": byNumber(score, 1),
    order: (a, b) => a - b,
    id: (a, b) => collator.compare(rows[a].id, rows[b].id) || a - b,
  };
  const sorted = new Map();
  const inOrder = (name) => {
    if (!sorted.has(name)) sorted.set(name, rows.map((_, i) => i).sort(orders[name]));
    return sorted.get(name);
  };

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const textBlock = (text) => {
    const block = make("p", "text", text.length > PREVIEW ? text.slice(0, PREVIEW).trimEnd() + "…" : text);
    block.dir = "auto";
    if (text.length <= PREVIEW) return [block];
    const more = make("button", "more", "Show all");
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      block.textContent = text;
      more.remove();
    });
    return [block, more];
  };
  const part = (className, heading, text, scoreText) => {
    const box = make("div", "part " + className);
    const line = make("p", "label", heading);
    if (scoreText) line.append(" ", make("span", "score", scoreText));
    box.append(line, ...textBlock(text));
    return box;
  };
  const answerPart = (answer, name) => {
    if (!answer) return part("answer none", name, "no answer");
    if (answer.error !== undefined) return part("answer failed", name, "failed: " + answer.error);
    const box = part("answer" + (answer.text ? "" : " none"), name, answer.text || "(empty)", answer.score || "unscored");
    if (answer.answer !== undefined) box.append(make("p", "under", "read as: " + answer.answer));
    if (answer.reason !== undefined) box.append(make("p", "under", answer.reason));
    return box;
  };
  const tone = (delta) => (delta > 0 ? "up" : delta < 0 ? "down" : "open");
  const card = (row) => {
    const article = make("article", "card");
    const head = make("header");
    head.append(make("h3", "", row.id));
    if (row.delta !== null) head.append(make("span", "pill " + tone(row.delta), row.shown + " " + data.delta_unit));
    const input = part("input", "Input", row.input);
    const outputs = make("div", "outputs");
    row.targets.forEach((target, i) => outputs.append(
      part("reference", row.targets.length > 1 ? "Reference " + (i + 1) : "Reference", target)));
    const answers = make("div", "answers");
    row.answers.forEach((answer, i) => answers.append(answerPart(answer, data.systems[i])));
    outputs.append(answers);
    const body = make("div", "columns");
    body.append(input, outputs);
    article.append(head, body);
    return article;
  };

  let matches = [];
  let page = 0;
  const draw = () => {
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    byId("cards").replaceChildren(...matches.slice(page * PAGE, (page + 1) * PAGE).map((i) => card(rows[i])));
    byId("page").textContent = "Page " + (page + 1).toLocaleString("en") + " of " + pages.toLocaleString("en");
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pager").hidden = pages === 1;
  };
  const update = () => {
    const words = byId("search").value.trim().toLowerCase();
    const keep = filters[byId("filter").value];
    matches = inOrder(byId("sort").value).filter((i) => keep(rows[i]) && haystack[i].includes(words));
    const all = rows.length.toLocaleString("en") + (rows.length === 1 ? " example" : " examples");
    byId("count").textContent = matches.length === rows.length ? all : matches.length.toLocaleString("en") + " of " + all;
    page = 0;
    draw();
  };
  const turn = (by) => {
    page += by;
    draw();
    byId("examples").scrollIntoView();
  };
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", update);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  controls.hidden = false;
  update();
})();
