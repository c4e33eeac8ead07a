// One example as a card. Whatever comes from the data is shown with textContent only.
const PREVIEW = 700; // characters of a text that are shown at first

const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const pressable = (className, text, action) => {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", action);
  return button;
};

/** Return a number as the tables write it: 0.866 is "86.6" where the metric is a share. */
const written = (metric, value, sign = false) => {
  const digits = metric.factor === 100 ? 1 : Number.isInteger(value) ? 0 : metric.digits;
  const text = (value * metric.factor).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  if (!/[1-9]/.test(text)) return text.replace("-", "");
  return text.startsWith("-") ? text.replace("-", "−") : (sign ? "+" : "") + text;
};
const isWrong = (metric, value) => value !== null && value === (metric.better < 0 ? 1 : 0);

const WORD_END = new RegExp(`(?!${SPACELESS})[\\p{L}\\p{N}]$`, "u");
const WORD_START = new RegExp(`^(?!${SPACELESS})[\\p{L}\\p{N}]`, "u");
const TAGS = { missing: "del", added: "ins" };
/** Put pieces into a block, at most `room` characters; return whether that was all. */
const fill = (block, pieces, room) => {
  let last = "";
  const parted = (text) => (WORD_END.test(last) && WORD_START.test(text) ? " " : ""); // never two words as one
  for (const [kind, piece] of pieces) {
    const text = piece.length > room ? piece.slice(0, room).trimEnd() + "…" : piece;
    const inner = kind === "missing" ? text.trim().replace(/\s+/g, " ") : text.trimEnd();
    const space = kind === "missing" ? text.slice(text.trimEnd().length) && " " : text.slice(inner.length);
    if (inner) block.append(parted(inner), kind === "same" ? inner : make(TAGS[kind], "", inner));
    block.append(space);
    last = inner + space;
    room -= piece.length;
    if (room < 0) return false;
  }
  return true;
};
/** Give an element the language of a text of the data, as far as its letters say it. */
const speak = (element, text) => {
  if (/[ぁ-ゖァ-ヺｦ-ﾝ]/.test(text)) element.lang = "ja";
  else if (/[가-힣]/.test(text)) element.lang = "ko";
  else if (document.documentElement.lang !== "en" && !/[々一-鿿]/.test(text)) element.lang = "";
};
const textBlock = (pieces) => {
  const block = make("p", "text");
  block.dir = "auto";
  speak(block, pieces.map(([, piece]) => piece).join(""));
  if (fill(block, pieces, PREVIEW)) return [block];
  const more = pressable("more", tr("Show all"), () => {
    block.replaceChildren();
    fill(block, pieces, Infinity);
    more.remove();
    block.tabIndex = -1;
    block.focus();
  });
  return [block, more];
};
const part = (className, heading, score, pieces) => {
  const box = make("div", "part " + className);
  const line = make("p", "label", heading);
  if (score) line.append(" ", make("span", "score", score));
  box.append(line, ...textBlock(pieces));
  return box;
};

/** Return the pieces of an answer against the nearest of the texts that it is compared with, and what to say of them. */
const marked = (text, others) => {
  if (others.includes(text)) return { pieces: [["same", text]], note: "" };
  let best = null, least = Infinity;
  for (const other of others) {
    const pieces = piecesOf(other, text);
    const changed = (pieces || []).reduce((sum, [kind, piece]) => sum + (kind === "same" ? 0 : piece.length), 0);
    if (pieces && changed < least) [best, least] = [pieces, changed];
  }
  if (best) return { pieces: best, note: "" };
  return { pieces: [["same", text]], note: others.length ? tr("not marked: little in common") : "" };
};

const chip = (tone, text) => make("li", "chip " + tone, text);
/** Return an answer's yes-or-no metrics and its faults as a list of chips; null where there are none. */
const chipsOf = (data, row, answer) => {
  const chips = [];
  data.metrics.forEach((metric, i) => {
    const value = answer.values[i];
    if (!metric.binary || value === null) return;
    chips.push(isWrong(metric, value) ? chip("wrong", "✗ " + metric.name) : chip("right", "✓ " + metric.name));
  });
  if (answer.text && row.targets.includes(answer.text)) chips.push(chip("right", tr("equal to the reference")));
  if (answer.cut) chips.push(chip("wrong", tr("cut at the length limit")));
  if (!answer.text.trim()) chips.push(chip("wrong", tr("empty")));
  else if (answer.text.trim() === row.input.trim()) chips.push(chip("wrong", tr("equal to the input")));
  if (!chips.length) return null;
  const list = make("ul", "chips");
  list.append(...chips);
  return list;
};

const answerPart = (data, row, index, others, className) => {
  const answer = row.answers[index], name = data.systems[index];
  if (!answer) return part("none " + className, name, "", [["same", tr("no answer")]]);
  if (answer.error !== undefined) return part("failed " + className, name, "", [["same", tr("failed: {error}", { error: answer.error })]]);
  const [metric] = data.metrics, value = answer.values[0];
  const score = value === null ? tr("unscored") : written(metric, value);
  const { pieces, note } = answer.text.trim() ? marked(answer.text, others) : { pieces: [["same", tr("(empty)")]], note: "" };
  const box = part(className + (answer.text.trim() ? "" : " none"), name, score, pieces);
  const chips = chipsOf(data, row, answer);
  if (chips) box.querySelector(".label").after(chips);
  if (note && className.includes("chosen")) box.append(make("p", "under", note));
  if (answer.answer !== undefined) box.append(make("p", "under", tr("read as: {text}", { text: answer.answer })));
  if (answer.reason !== undefined) box.append(make("p", "under", answer.reason));
  const rest = data.metrics.flatMap((m, i) => {
    const known = i > 0 && !m.binary && answer.values[i] !== null;
    return known ? [m.name + " " + written(m, answer.values[i])] : [];
  });
  if (rest.length) box.append(make("p", "under values", rest.join(" · ")));
  return box;
};

const counted = (text) => {
  const n = text.length;
  return n === 1 ? tr("1 character") : tr("{n} characters", { n: n.toLocaleString("en") });
};
/** Return details whose content is made when they are opened. */
const folded = (className, title, content, open) => {
  const box = make("details", className);
  box.append(make("summary", "", title));
  const build = () => { if (box.children.length === 1) box.append(...content()); };
  box.addEventListener("toggle", build);
  if (open) {
    build();
    box.open = true;
  }
  return box;
};

/** Return the card of a row. `view`: {a, b (systems, or -1), mark, open (details), delta, link(row)}. */
const cardOf = (data, row, view) => {
  const card = make("article", "card");
  card.tabIndex = -1;
  const head = make("header"), title = make("h3"), link = make("a", "", row.id);
  link.href = view.link(row);
  title.append(link);
  card.setAttribute("aria-label", tr("Example {id}", { id: row.id }));
  head.append(title);
  const { delta } = view, [metric] = data.metrics;
  if (delta !== null) {
    const tone = delta * metric.better > 0 ? " up" : delta * metric.better < 0 ? " down" : "";
    head.append(make("span", "pill" + tone, written(metric, delta, true) + " " + metric.delta_unit));
  }
  const sides = make("div", "sides");
  const references = make("div", "references");
  row.targets.forEach((target, i) => references.append(
    part("reference", row.targets.length > 1 ? tr("Reference {n}", { n: i + 1 }) : tr("Reference"), "", [["same", target]])));
  if (row.targets.length) sides.append(references);
  const textOf = (index) => (row.answers[index] && row.answers[index].text ? [row.answers[index].text] : []);
  const others = (index) => {
    if (view.mark === "reference") return row.targets;
    return view.mark === "other" && index === view.b && view.a >= 0 ? textOf(view.a) : [];
  };
  const shown = [view.a, view.b].filter((index) => index >= 0);
  shown.forEach((index) => sides.append(
    answerPart(data, row, index, others(index), "answer" + (index === view.b ? " chosen" : ""))));
  card.append(head, sides);
  const folds = make("div", "folds");
  folds.append(folded("input", tr("Input ({length})", { length: counted(row.input) }), () => textBlock([["same", row.input]]), view.open));
  const rest = data.systems.map((_, i) => i).filter((i) => !shown.includes(i));
  if (rest.length) {
    folds.append(folded("rest", rest.length === 1 ? tr("One more system") : tr("{n} more systems", { n: rest.length }), () => {
      const answers = make("div", "sides");
      answers.append(...rest.map((i) => answerPart(data, row, i, view.mark === "reference" ? row.targets : [], "answer")));
      return [answers];
    }, false));
  }
  card.append(folds);
  return card;
};
