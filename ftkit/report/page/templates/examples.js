// The examples: which are shown, in which order, and an address for every state of the view.
const PAGE = 20;
const PICKS = 3; // best, middle and worst rows of the first view
const PRINTED = 10;
const byId = (id) => document.getElementById(id);

const startExamples = (data) => {
  const { rows, systems, metrics } = data;
  const [metric] = metrics;
  const usual = () => ({ a: data.pair[0], b: data.pair[1], sort: "", change: "", is: "", q: "", mark: "reference", page: 0, example: "" });
  let state = usual();

  // ---- what is known of each row of the chosen pair, and the filters that ask for it
  const factsOf = (row) => {
    const a = state.a < 0 ? null : row.answers[state.a], b = row.answers[state.b];
    const x = a ? a.values[0] : null, score = b ? b.values[0] : null;
    const delta = x === null || score === null ? null : score - x;
    const change = state.a < 0 ? score : delta;
    const text = b && b.error === undefined ? b.text.trim() : null;
    const found = { delta, score, gain: change === null ? null : change * (metric.better || 1), wrong: false, lost: false };
    metrics.forEach((m, i) => {
      if (!m.binary || !b || !isWrong(m, b.values[i])) return;
      found.wrong = true;
      if (a && a.values[i] !== null && !isWrong(m, a.values[i])) found.lost = true;
    });
    found.high = data.high !== null && score !== null && (score - data.high) * metric.better > 0;
    found.failed = text === null || score === null;
    found.cut = text !== null && Boolean(b.cut);
    found.empty = text === "";
    found.copied = Boolean(text) && text === row.input.trim();
    return found;
  };
  let facts = [];
  const isRight = (i, m) => !(rows[i].answers[state.b] && isWrong(metrics[m], rows[i].answers[state.b].values[m]));
  const better = metric.better ? [tr("Better"), tr("Worse")] : [tr("Higher"), tr("Lower")];
  const changes = {
    better: [better[0], (i) => facts[i].delta !== null && facts[i].gain > 0],
    worse: [better[1], (i) => facts[i].delta !== null && facts[i].gain < 0],
    same: [tr("Unchanged"), (i) => facts[i].delta === 0],
  };
  const high = data.high === null ? "" : `${metric.name} ${metric.better < 0 ? "<" : ">"} ${Math.round(data.high * metric.factor)}`;
  const kinds = {
    wrong: [tr("Any metric wrong"), (i) => facts[i].wrong],
    "high-wrong": [tr("{high}, yet a metric wrong", { high }), (i) => facts[i].high && facts[i].wrong],
    lost: [tr("Right before, wrong now"), (i) => facts[i].lost],
    ...Object.fromEntries(metrics.flatMap((m, index) => (m.binary
      ? [["wrong-" + m.name, [tr("{metric} wrong", { metric: m.name }), (i) => !isRight(i, index)]]] : []))),
    cut: [tr("Cut at the length limit"), (i) => facts[i].cut],
    empty: [tr("Empty"), (i) => facts[i].empty],
    input: [tr("Equal to the input"), (i) => facts[i].copied],
    failed: [tr("Failed or unscored"), (i) => facts[i].failed],
  };

  // ---- orders
  const byNumber = (value, sign) => (i, j) => {
    const x = value(i), y = value(j);
    if (x === null || y === null) return (x === null) - (y === null) || i - j;
    return sign * (x - y) || i - j;
  };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const orders = {
    "delta-down": byNumber((i) => facts[i].gain, -1),
    "delta-up": byNumber((i) => facts[i].gain, 1),
    "score-up": byNumber((i) => facts[i].score, 1),
    "score-down": byNumber((i) => facts[i].score, -1),
    length: (i, j) => rows[i].input.length - rows[j].input.length || i - j,
    order: (i, j) => i - j,
    id: (i, j) => collator.compare(rows[i].id, rows[j].id) || i - j,
  };
  const sorted = new Map(); // of the chosen pair
  const inOrder = (name) => {
    const order = name === "start" ? "delta-down" : name;
    if (!sorted.has(order)) sorted.set(order, rows.map((_, i) => i).sort(orders[order]));
    return sorted.get(order);
  };
  const sortName = () => state.sort || (state.change || state.is || state.q ? "delta-down" : "start");
  let haystack = null; // made when the search field is entered
  const searched = () => {
    haystack ||= rows.map((row) => [
      row.id, row.input, ...row.targets,
      ...row.answers.flatMap((a) => (a ? [a.text, a.error, a.answer, a.reason].filter(Boolean) : [])),
    ].join("\n").toLowerCase());
    return haystack;
  };

  // ---- the address
  const KEYS = ["example", "a", "b", "sort", "change", "is", "q", "mark", "page"];
  const addressOf = (shown) => {
    const plain = usual();
    const text = { ...shown, a: systems[shown.a], b: systems[shown.b], page: shown.page + 1 };
    const parts = KEYS.filter((key) => shown[key] !== plain[key]).map((key) => key + "=" + encodeURIComponent(text[key]));
    return "#" + (parts.join("&") || "examples");
  };
  const remember = () => {
    try { history.replaceState(null, "", addressOf(state)); } catch { /* a frame without an address */ }
  };
  const decoded = (text) => {
    try { return decodeURIComponent(text); } catch { return text; }
  };
  const readAddress = () => {
    const found = usual();
    for (const piece of location.hash.slice(1).split("&")) {
      const [key, ...rest] = piece.split("=");
      const value = decoded(rest.join("="));
      if (key === "a" || key === "b") {
        if (systems.includes(value)) found[key] = systems.indexOf(value);
      } else if (key === "page") found.page = Math.max(1, Number.parseInt(value, 10) || 1) - 1;
      else if (KEYS.includes(key)) found[key] = value;
    }
    if (found.a === found.b) [found.a, found.b] = data.pair;
    const known = { sort: { ...orders, start: 1 }, change: changes, is: kinds, mark: { reference: 1, other: 1, off: 1 } };
    for (const [key, values] of Object.entries(known)) if (!Object.hasOwn(values, found[key])) found[key] = usual()[key];
    return found;
  };

  // ---- what is drawn
  let matches = []; // rows that the filters leave, in order
  let groups = new Map(); // position in `view`: the words above that card
  let view = []; // rows that pages are cut from: `matches`, or the picked ones
  const pick = (middle) => {
    const scored = matches.filter((i) => facts[i].gain !== null);
    groups = new Map();
    if (sortName() !== "start" || scored.length <= 2 * PICKS + middle) return matches;
    const from = Math.floor((scored.length - middle) / 2);
    const what = state.a < 0 ? [tr("Highest scores"), tr("In the middle"), tr("Lowest scores")] : metric.better
      ? [tr("Largest gains"), tr("In the middle"), tr("Smallest gains and losses")] : [tr("Largest increases"), tr("In the middle"), tr("Largest decreases")];
    groups = new Map([[0, what[0]], [PICKS, what[1]], [PICKS + middle, what[2]]]);
    return [...scored.slice(0, PICKS), ...scored.slice(from, from + middle), ...scored.slice(-PICKS)];
  };
  const number = (n) => n.toLocaleString("en");
  const drawCards = (positions, open) => {
    const shown = { a: state.a, b: state.b, mark: state.mark, open, link: (row) => addressOf({ ...state, page: 0, example: row.id }) };
    byId("cards").replaceChildren(...positions.flatMap((at) => {
      const card = cardOf(data, rows[view[at]], { ...shown, delta: facts[view[at]].delta });
      return groups.has(at) ? [make("p", "group", groups.get(at)), card] : [card];
    }));
  };
  const inputsOpen = () => byId("inputs").checked;
  const draw = () => {
    const pages = Math.max(1, Math.ceil(view.length / PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const first = state.page * PAGE;
    drawCards(view.slice(first, first + PAGE).map((_, i) => first + i), inputsOpen());
    byId("page").textContent = tr("Page {n} of {all}", { n: number(state.page + 1), all: number(pages) });
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
    byId("pager").hidden = pages === 1;
    byId("whole").hidden = groups.size === 0;
  };
  const showControls = () => {
    for (const [id, value] of [["sort", sortName()], ["mark", state.mark], ["a", String(state.a)], ["b", String(state.b)]]) {
      if (byId(id)) byId(id).value = value;
    }
    if (byId("search").value !== state.q) byId("search").value = state.q;
    document.querySelectorAll("#filters button").forEach((button) => {
      button.setAttribute("aria-pressed", String(state[button.dataset.group] === button.dataset.value));
      button.hidden = button.dataset.count === "0" && button.dataset.group === "is" && state.is !== button.dataset.value;
    });
  };
  const total = () => (rows.length === 1 ? tr("1 example") : tr("{n} examples", { n: number(rows.length) }));
  const left = () => (matches.length === rows.length ? total() : tr("{n} of {all}", { n: number(matches.length), all: total() }));
  const below = (n) => tr(", {n} of them below", { n });
  const update = () => {
    const words = state.q.trim().toLowerCase();
    const texts = words ? searched() : null;
    const tests = [changes[state.change], kinds[state.is]].filter(Boolean).map(([, test]) => test);
    matches = inOrder(sortName()).filter((i) => tests.every((test) => test(i)) && (!texts || texts[i].includes(words)));
    view = pick(PICKS);
    byId("count").textContent = left() + (groups.size ? below(view.length) : "");
    byId("whole").textContent = tr("Show all {n}", { n: number(matches.length) });
    byId("csv").textContent = matches.length === 1 ? tr("Download CSV (1 row)") : tr("Download CSV ({n} rows)", { n: number(matches.length) });
    showControls();
    draw();
  };
  const count = () => { // of the chosen pair, over all rows
    sorted.clear();
    facts = rows.map(factsOf);
    document.querySelectorAll("#filters button").forEach((button) => {
      const [words, test] = (button.dataset.group === "change" ? changes : kinds)[button.dataset.value];
      const found = rows.reduce((sum, _, i) => sum + (test(i) ? 1 : 0), 0);
      button.dataset.count = String(found);
      button.replaceChildren(words + " ", make("span", "count", number(found)));
    });
    for (const key of ["a", "b"]) if (byId("name-" + key)) byId("name-" + key).textContent = systems[state[key]];
  };
  const set = (changed) => {
    state = { ...state, page: 0, example: "", ...changed };
    if ("a" in changed || "b" in changed) count();
    update();
    remember();
  };

  // ---- moving about
  const cards = () => [...byId("cards").querySelectorAll(":scope > .card")];
  const focusCard = (card) => {
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
  };
  const jump = (id) => {
    const index = rows.findIndex((row) => row.id === id);
    if (index < 0) {
      byId("count").textContent = tr("No example has the id {id}.", { id }) + " " + byId("count").textContent;
      return;
    }
    if (!view.includes(index)) {
      state = { ...state, sort: sortName() === "start" ? "delta-down" : state.sort };
      update();
    }
    if (!view.includes(index)) {
      state = { ...state, change: "", is: "", q: "", sort: state.sort || "delta-down" };
      update();
    }
    const at = view.indexOf(index);
    state = { ...state, example: id, page: Math.floor(at / PAGE) };
    draw();
    focusCard(cards()[at % PAGE]);
  };
  const follow = () => {
    if (!location.hash.includes("=")) return;
    state = readAddress();
    const { example } = state;
    count();
    update();
    if (example) jump(example);
    else byId("examples").scrollIntoView();
  };
  const turn = (by, focus) => {
    set({ page: state.page + by });
    if (focus) focusCard(cards().at(by > 0 ? 0 : -1));
    else byId("cards").scrollIntoView();
  };
  const step = (by) => {
    const all = cards(), here = all.indexOf(document.activeElement.closest(".card"));
    const to = here < 0 && by < 0 ? 0 : here + by;
    if (to >= all.length && !byId("next").disabled && !byId("pager").hidden) turn(1, true);
    else if (to < 0 && !byId("previous").disabled && !byId("pager").hidden) turn(-1, true);
    else if (all[to]) focusCard(all[to]);
    const index = view[state.page * PAGE + cards().indexOf(document.activeElement)];
    if (index !== undefined) {
      state.example = rows[index].id;
      remember();
    }
  };
  const keys = {
    j: () => step(1),
    k: () => step(-1),
    "/": () => byId("search").focus(),
    i: () => { byId("inputs").click(); },
    "?": () => byId("keys").showModal(),
  };
  const keysOn = byId("keys-on");
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (!Object.hasOwn(keys, event.key) || (!keysOn.checked && event.key !== "?")) return;
    event.preventDefault();
    keys[event.key]();
  });

  // ---- the rows as a file
  const csvRows = () => {
    const most = Math.max(1, ...rows.map((row) => row.targets.length));
    const references = Array.from({ length: most }, (_, i) => (most === 1 ? "reference" : "reference " + (i + 1)));
    const columns = systems.flatMap((name) => [name, ...metrics.map((m) => name + ": " + m.name), name + ": read as", name + ": reason", name + ": error", name + ": cut"]);
    const pair = state.a < 0 ? [] : [systems[state.a] + " → " + systems[state.b] + ": " + metric.name];
    const line = (row, i) => [
      row.id, row.input, ...references.map((_, i) => row.targets[i] ?? null),
      ...row.answers.flatMap((a) => (a ? [a.text, ...a.values, a.answer, a.reason, a.error, a.cut ? "yes" : null] : [null, ...metrics.map(() => null), null, null, null, null])),
      ...(pair.length ? [facts[i].delta] : []),
    ];
    return [["id", "input", ...references, ...columns, ...pair], ...matches.map((i) => line(rows[i], i))];
  };

  // ---- controls
  for (const [group, filters] of [["change", changes], ["is", kinds]]) {
    const box = document.querySelector(`#filters [data-filters="${group}"]`);
    if (!box) continue;
    box.append(...Object.keys(filters).filter((value) => value !== "high-wrong" || data.high !== null).map((value) => {
      const button = pressable("filter", "", () => set({ [group]: state[group] === value ? "" : value }));
      Object.assign(button.dataset, { group, value });
      return button;
    }));
  }
  const controls = byId("controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", (event) => {
    const { id, value } = event.target;
    if (id === "search") set({ q: value });
    else if (id === "sort") set({ sort: value });
    else if (id === "mark") set({ mark: value, page: state.page });
    else if (id === "a" || id === "b") {
      const other = id === "a" ? "b" : "a";
      const changed = { [id]: Number(value) };
      if (state[other] === changed[id]) changed[other] = state[id]; // the same twice: they change places
      set(changed);
    }
  });
  byId("search").addEventListener("focus", searched);
  byId("inputs").addEventListener("change", draw);
  byId("whole").addEventListener("click", () => set({ sort: "delta-down" }));
  byId("csv").addEventListener("click", () => download("examples.csv", csvOf(csvRows())));
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("keys-close").addEventListener("click", () => byId("keys").close());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => {
    view = pick(PRINTED - 2 * PICKS);
    const first = groups.size ? 0 : state.page * PAGE;
    const shown = view.slice(first, first + PRINTED).map((_, i) => first + i);
    byId("count").textContent = left() + (shown.length < matches.length ? below(shown.length) : "");
    drawCards(shown, true);
  });
  addEventListener("afterprint", update);
  controls.hidden = byId("tools").hidden = false;
  count();
  update();
  follow();
};
if (byId("controls")) startExamples(JSON.parse(byId("data").textContent));
