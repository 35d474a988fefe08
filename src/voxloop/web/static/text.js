// Texts: tokens of any script, differences, a merge of two edits, and where a recogniser's words stand in an edited text.

const segmenters = new Map();

/** The tokens of a text, spaces and punctuation included: joined, they are the text. */
export function tokens(text, language) {
  const key = language || "und";
  if (!segmenters.has(key)) {
    let made;
    try { made = new Intl.Segmenter(key, { granularity: "word" }); } catch { made = new Intl.Segmenter(undefined, { granularity: "word" }); }
    segmenters.set(key, made);
  }
  return Array.from(segmenters.get(key).segment(text), (one) => one.segment);
}

const MOST_CELLS = 4_000_000;

/** How `b` differs from `a`: pieces {kind: "same" | "gone" | "new", text}, in reading order. */
export function difference(a, b, language) {
  return joined(edits(tokens(a, language), tokens(b, language)));
}

function edits(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const x = a.slice(head, a.length - tail), y = b.slice(head, b.length - tail);
  const same = (text) => ({ kind: "same", text });
  return [...a.slice(0, head).map(same), ...middle(x, y), ...a.slice(a.length - tail).map(same)];
}

/** The longest common subsequence, as pieces. */
function middle(x, y) {
  const pieces = [];
  if (x.length * y.length > MOST_CELLS) {
    return [...x.map((text) => ({ kind: "gone", text })), ...y.map((text) => ({ kind: "new", text }))];
  }
  const width = y.length + 1;
  const best = new Uint16Array((x.length + 1) * width);
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      best[i * width + j] = x[i] === y[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  let i = 0, j = 0;
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { pieces.push({ kind: "same", text: x[i++] }); j++; }
    else if (j >= y.length || (i < x.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) pieces.push({ kind: "gone", text: x[i++] });
    else pieces.push({ kind: "new", text: y[j++] });
  }
  return pieces;
}

function joined(pieces) {
  const found = [];
  for (const piece of pieces) {
    const last = found[found.length - 1];
    if (last && last.kind === piece.kind) last.text += piece.text;
    else found.push({ ...piece });
  }
  return found;
}

/** Both edits of a base text in one; null where they change the same place differently. */
export function merged(base, mine, theirs, language) {
  const tokenised = tokens(base, language);
  const left = hunks(tokenised, tokens(mine, language)), right = hunks(tokenised, tokens(theirs, language));
  const all = [...left];
  for (const hunk of right) {
    const twin = left.find((one) => one.from === hunk.from && one.to === hunk.to && one.text === hunk.text);
    if (twin) continue;
    if (left.some((one) => (one.from < hunk.to && hunk.from < one.to) || one.from === hunk.from)) return null;
    all.push(hunk);
  }
  all.sort((a, b) => a.from - b.from || a.to - b.to);
  let made = "", place = 0;
  for (const hunk of all) {
    made += tokenised.slice(place, hunk.from).join("") + hunk.text;
    place = hunk.to;
  }
  return made + tokenised.slice(place).join("");
}

function hunks(base, other) {
  const found = [];
  let place = 0, open = null;
  for (const piece of edits(base, other)) {
    if (piece.kind === "same") { place++; open = null; continue; }
    if (!open) found.push((open = { from: place, to: place, text: "" }));
    if (piece.kind === "gone") open.to = ++place;
    else open.text += piece.text;
  }
  return found;
}

const bare = (text) => text.toLocaleLowerCase().replace(/[^\p{L}\p{N}\p{M}]+/gu, "");

/** Where each of a recogniser's words stands in its own text: {from, to, start, end, probability}. */
function located(words, text) {
  const found = [];
  let place = 0;
  for (const word of words) {
    const said = word.text.trim();
    if (!said) continue;
    let at = text.indexOf(said, place), length = said.length;
    if (at < 0) {
      // The cleaned text spells it with other capitals or punctuation.
      const wanted = bare(said), lower = text.toLocaleLowerCase();
      at = wanted ? lower.indexOf(wanted, place) : -1;
      length = wanted.length;
      if (at < 0 || lower.length !== text.length) continue;
    }
    found.push({ from: at, to: at + length, start: word.start, end: word.end, probability: word.probability });
    place = at + length;
  }
  return found;
}

/**
 * The words of an edited text with their times: those that still stand as recognised keep their probability; what was
 * typed gets the time between its neighbours and no probability.
 */
export function placed(words, original, text, language) {
  const known = located(words, original);
  if (text === original) return known;
  const target = new Map();
  let a = 0, b = 0;
  for (const piece of edits(tokens(original, language), tokens(text, language))) {
    if (piece.kind === "same") for (let n = 0; n < piece.text.length; n++) target.set(a + n, b + n);
    if (piece.kind !== "new") a += piece.text.length;
    if (piece.kind !== "gone") b += piece.text.length;
  }
  const found = [];
  for (const word of known) {
    const from = target.get(word.from), to = target.get(word.to - 1);
    if (from !== undefined && to !== undefined && to - from === word.to - 1 - word.from) found.push({ ...word, from, to: to + 1 });
  }
  const last = words.length ? words[words.length - 1].end : 0;
  const typed = [];
  let place = 0, time = words.length ? words[0].start : 0;
  for (const word of [...found, { from: text.length, to: text.length, start: last, end: last }]) {
    for (const part of text.slice(place, word.from).matchAll(/\S+/g)) {
      if (/[\p{L}\p{N}]/u.test(part[0])) {
        typed.push({ from: place + part.index, to: place + part.index + part[0].length, start: time, end: Math.max(word.start, time + 0.15), probability: null });
      }
    }
    place = word.to;
    time = word.end;
  }
  return [...found, ...typed].sort((x, y) => x.from - y.from);
}

/** Characters (as people count them) and words. */
export function counts(text, language) {
  const words = tokens(text, language).filter((one) => /[\p{L}\p{N}]/u.test(one)).length;
  return { characters: Array.from(text).length, words };
}
