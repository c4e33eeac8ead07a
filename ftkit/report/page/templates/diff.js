// What differs between two texts: word by word, and character by character in scripts that put no spaces.
const SPACELESS = "[" + ["Han", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr"].map((s) => `\\p{scx=${s}}`).join("") + "]";
const LETTERS = `(?:(?!${SPACELESS})[\\p{L}\\p{N}\\p{M}_])+`;
const MARKS = "[\\p{M}\\u{1F3FB}-\\u{1F3FF}]*"; // accents, and the skin tones of emoji
const TOKEN = new RegExp(
  `(?:${SPACELESS}\\p{M}*|${LETTERS}(?:['’.,:-]${LETTERS})*|\\p{RI}{2}|\\S${MARKS}(?:\\u200d\\S${MARKS})*)\\s*|\\s+`, "gu");
const MOST_CHANGES = 600; // beyond, the rest of both texts counts as changed: this bounds the time to 600² steps
const LEAST_COMMON = 0.3; // with a smaller share in common, marks would only be in the way

const tokensOf = (text) => text.match(TOKEN) || [];

/** Return the runs [x, y, length] in which a[x...] equals b[y...]: a longest common subsequence (Myers 1986). */
const commonRuns = (a, b) => {
  const most = Math.min(a.length + b.length, MOST_CHANGES);
  const zero = most + 1;
  const furthest = new Int32Array(2 * most + 3); // by diagonal x - y: the largest x that was reached
  const rounds = [];
  const isDown = (d, k, row, middle) => k === -d || (k !== d && row[middle + k - 1] < row[middle + k + 1]);
  let end = null;
  for (let d = 0; d <= most && !end; d++) {
    rounds.push(furthest.slice(zero - d - 1, zero + d + 2));
    for (let k = -d; k <= d && !end; k += 2) {
      let x = isDown(d, k, furthest, zero) ? furthest[zero + k + 1] : furthest[zero + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest[zero + k] = x;
      if (x >= a.length && x - k >= b.length) end = { d, k };
    }
  }
  if (!end) { // too many changes: the path that came furthest
    let best = -1;
    for (let k = -most; k <= most; k += 2) {
      const x = furthest[zero + k], sum = 2 * x - k;
      if (x <= a.length && x - k <= b.length && sum > best) [best, end] = [sum, { d: most, k, x }];
    }
  }
  const runs = [];
  let x = end.x ?? a.length, k = end.k;
  for (let d = end.d; d >= 0; d--) {
    const row = rounds[d], down = isDown(d, k, row, d + 1);
    const from = d === 0 ? 0 : down ? row[d + 1 + k + 1] : row[d + 1 + k - 1] + 1;
    if (x > from) runs.push([from, from - k, x - from]);
    x = down ? from : from - 1;
    k += down ? 1 : -1;
  }
  return runs.reverse();
};

/** Return the changes between two lists of tokens: {a: [start, end], b: [start, end]}, each with the run `same` after it. */
const changesOf = (a, b) => {
  const numbers = new Map();
  const numbered = (tokens) => tokens.map((token) => {
    const key = token.trimEnd().normalize("NFC");
    if (!numbers.has(key)) numbers.set(key, numbers.size);
    return numbers.get(key);
  });
  const changes = [{ a: [0, 0], b: [0, 0], same: 0 }];
  const add = (x, y, length) => {
    const last = changes.at(-1);
    const startA = last.a[1] + last.same, startB = last.b[1] + last.same;
    if (x === startA && y === startB) last.same += length;
    else changes.push({ a: [startA, x], b: [startB, y], same: length });
  };
  commonRuns(numbered(a), numbered(b)).forEach((run) => add(...run));
  add(a.length, b.length, 0);
  return changes;
};

const sizeOf = (tokens, [start, end]) => tokens.slice(start, end).join("").trim().length;

/** Join changes that only a short common piece parts: a lone "to" between two changed phrases says nothing. */
const joined = (changes, a, b) => {
  const found = [];
  const size = (change) => Math.max(sizeOf(a, change.a), sizeOf(b, change.b));
  for (const next of changes) {
    const last = found.at(-1);
    const between = last ? 2 * sizeOf(b, [last.b[1], last.b[1] + last.same]) : Infinity;
    if (last && between <= size(last) && between <= size(next)) {
      found[found.length - 1] = { a: [last.a[0], next.a[1]], b: [last.b[0], next.b[1]], same: next.same };
    } else found.push(next);
  }
  return found;
};

/**
 * Return `text` as pieces [kind, piece]: "same", "added" (not in `reference`), and between them "missing" from it.
 * Return null where the two have too little in common to compare.
 */
const piecesOf = (reference, text) => {
  const a = tokensOf(reference), b = tokensOf(text);
  if (!a.length || !b.length) return null;
  const pieces = [];
  let common = 0;
  for (const change of joined(changesOf(a, b), a, b)) {
    const same = b.slice(change.b[1], change.b[1] + change.same).join("");
    common += same.trim().length;
    pieces.push(["missing", a.slice(...change.a).join("")], ["added", b.slice(...change.b).join("")], ["same", same]);
  }
  return common < LEAST_COMMON * Math.max(reference.length, text.length) ? null : pieces.filter(([, piece]) => piece);
};
