// The text of an entry: a text field over a layer that marks each word by how sure the recogniser was of it.

import { html, useEffect, useLayoutEffect, useMemo, useRef } from "./view.js";
import { placed } from "./text.js";
import { doubt } from "./player.js";

export function Editor({ store, player, keys, act }) {
  const entry = store.entry, text = store.text;
  const field = useRef(null), layer = useRef(null);
  const words = useMemo(
    () => (entry.words ? placed(entry.words, entry.original, text, entry.language) : []),
    [entry.words, entry.original, text, entry.language],
  );
  const held = useRef(words);
  held.current = words;

  // Until its waveform is drawn, the words of an entry have no place to stand.
  useEffect(() => { if (player && store.drawn === entry.id) player.mark(words); }, [player, words, store.drawn]);

  // The word that is heard now is marked without drawing everything again.
  useEffect(() => {
    if (!player) return;
    let last = null;
    const mark = () => {
      const time = player.time;
      const at = player.playing || time > 0 ? held.current.findIndex((word) => word.start <= time && time < word.end) : -1;
      const now = at < 0 ? null : layer.current?.querySelector(`[data-word="${at}"]`);
      if (now === last) return;
      last?.classList.remove("now");
      now?.classList.add("now");
      last = now;
    };
    player.addEventListener("time", mark);
    return () => player.removeEventListener("time", mark);
  }, [player, words]);

  // An undo or another text keeps the cursor at the end of what changed.
  useLayoutEffect(() => {
    const element = field.current;
    if (element && element.value !== text) element.value = text;
  }, [text, entry.id]);

  useEffect(() => { store.field = field.current; });

  const play = (word) => word && player?.playSpan(word.start, word.end);

  function clicked() {
    const { selectionStart, selectionEnd } = field.current;
    if (selectionStart !== selectionEnd) return;
    play(words.find((word) => word.from <= selectionStart && selectionStart < word.to));
  }

  /** Tab goes to the next doubtful word and plays it; after the last one it leaves the text. */
  function onKeyDown(event) {
    if (event.key !== "Tab" || event.ctrlKey || event.altKey || event.metaKey) return;
    const doubtful = words.filter((word) => doubt(word.probability) === "low");
    const { selectionStart, selectionEnd } = field.current;
    const next = event.shiftKey
      ? doubtful.filter((word) => word.to <= selectionStart).pop()
      : doubtful.find((word) => word.from >= selectionEnd && (selectionEnd > selectionStart || word.from > selectionStart || selectionStart === 0));
    if (!next) return;
    event.preventDefault();
    field.current.setSelectionRange(next.from, next.to);
    play(next);
  }

  const pieces = [];
  let place = 0;
  words.forEach((word, n) => {
    if (word.from > place) pieces.push(text.slice(place, word.from));
    pieces.push(html`<span class=${doubt(word.probability)} data-word=${n}>${text.slice(word.from, word.to)}</span>`);
    place = word.to;
  });
  pieces.push(text.slice(place) + "\n");
  const low = words.filter((word) => doubt(word.probability) === "low");

  return html`<div class="editor">
    <div class="layer" ref=${layer} aria-hidden="true" dir="auto" lang=${entry.language || null}>${pieces}</div>
    <textarea ref=${field} id="text" dir="auto" lang=${entry.language || null} spellcheck="true" autocomplete="off" readonly=${store.arriving !== null}
      aria-label="Text" aria-describedby="doubtful" aria-invalid=${store.fault ? "true" : null}
      onInput=${(event) => store.type(event.target.value)} onClick=${clicked} onKeyDown=${onKeyDown}></textarea>
    <p id="doubtful" class="hidden">${low.length ? `Doubtful words: ${low.map((word) => text.slice(word.from, word.to)).join(", ")}. Tab goes from one to the next and plays it.` : "No doubtful words."}</p>
  </div>`;
}
