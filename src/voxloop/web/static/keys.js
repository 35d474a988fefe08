// What keys do: by default, as a person changed it, and in words.

const STORED = "voxloop.keys";

/** Every action: what it does, and its keys. Single keys work outside texts alone. */
export const ACTIONS = {
  play: { label: "Play or pause", keys: ["Space", "Escape", "Shift+Space"] },
  back: { label: "Back 1 second", keys: ["Ctrl+b", "b"] },
  slower: { label: "Slower", keys: ["Alt+[", "["] },
  faster: { label: "Faster", keys: ["Alt+]", "]"] },
  loop: { label: "Loop on or off", keys: ["Alt+l", "l"] },
  restart: { label: "Play from the start", keys: ["Alt+Home", "Home"] },
  save: { label: "Save", keys: ["Ctrl+s"] },
  saveNext: { label: "Save and go to the next", keys: ["Ctrl+Enter", "a"] },
  mark: { label: "Mark as reviewed", keys: ["Ctrl+r"] },
  reject: { label: "Reject with a reason", keys: ["Alt+x", "x"] },
  skip: { label: "Skip: put off for later", keys: ["Alt+s", "s"] },
  remove: { label: "Delete; can be undone", keys: ["Ctrl+d"] },
  undoDecision: { label: "Undo the last decision", keys: ["Alt+u", "u"] },
  next: { label: "Next", keys: ["ArrowRight", "PageDown", "Alt+ArrowDown"] },
  previous: { label: "Previous", keys: ["ArrowLeft", "PageUp", "Alt+ArrowUp"] },
  nextUnreviewed: { label: "Next that is not reviewed", keys: ["Alt+n", "n"] },
  undo: { label: "Undo typing", keys: ["Ctrl+z"] },
  redo: { label: "Redo typing", keys: ["Ctrl+Shift+z", "Ctrl+y"] },
  edit: { label: "Edit the text", keys: ["Enter", "e"] },
  restore: { label: "Back to the machine's text", keys: ["Alt+o"] },
  suggestion: { label: "Use another machine's text", keys: ["Alt+1"] },
  jump: { label: "Go to an id", keys: ["Alt+g", "g"] },
  find: { label: "Search texts", keys: ["Alt+f", "/"] },
  select: { label: "Select for a bulk action", keys: ["v"] },
  help: { label: "Show the keys", keys: ["?", "F1"] },
};

/** A pressed key as it is written in a binding; empty for a modifier alone. */
export function pressed(event) {
  let key = event.key;
  if (["Control", "Shift", "Alt", "Meta", "AltGraph", "Dead", "Unidentified", "Process"].includes(key)) return "";
  // With Alt, some systems type another character: the key's own place counts.
  if (event.altKey && /^Key[A-Z]$/.test(event.code)) key = event.code.slice(3);
  else if (event.altKey && /^Digit\d$/.test(event.code)) key = event.code.slice(5);
  else if (event.altKey && event.code === "BracketLeft") key = "[";
  else if (event.altKey && event.code === "BracketRight") key = "]";
  if (key === " ") key = "Space";
  const command = event.ctrlKey || event.metaKey;
  const single = key.length === 1;
  if (single) key = key.toLowerCase();
  // Shift is a part of `?` and of capitals already.
  const shift = event.shiftKey && (!single || command || event.altKey);
  return (command ? "Ctrl+" : "") + (event.altKey ? "Alt+" : "") + (shift ? "Shift+" : "") + key;
}

/** Whether a binding is one printable key without Ctrl or Alt. */
export const isSingle = (binding) => binding.length === 1 || binding === "Space" || binding === "Enter";

export class Keys {
  constructor() {
    this.load();
  }

  load() {
    let stored = {};
    try { stored = JSON.parse(localStorage.getItem(STORED) || "{}"); } catch { /* as by default */ }
    this.single = stored.single !== false;
    this.changed = stored.changed || {};
    this.index();
  }

  index() {
    this.byKey = new Map();
    for (const [name, action] of Object.entries(ACTIONS)) {
      for (const key of this.changed[name] || action.keys) if (!this.byKey.has(key)) this.byKey.set(key, name);
    }
  }

  of(name) {
    return this.changed[name] || ACTIONS[name].keys;
  }

  /** Give an action one key; another action that had it loses it. */
  set(name, key) {
    for (const other of Object.keys(ACTIONS)) {
      if (other !== name && this.of(other).includes(key)) this.changed[other] = this.of(other).filter((one) => one !== key);
    }
    this.changed[name] = [key];
    this.store();
  }

  reset() {
    this.changed = {};
    this.single = true;
    this.store();
  }

  store() {
    this.index();
    localStorage.setItem(STORED, JSON.stringify({ single: this.single, changed: this.changed }));
  }

  /** The action of a key press, or undefined. `typing`: the focus is in a text. */
  action(event, typing) {
    const key = pressed(event);
    const name = key && this.byKey.get(key);
    if (!name) return undefined;
    const plain = !key.startsWith("Ctrl+") && !key.startsWith("Alt+");
    if (typing && plain && !["Escape", "Shift+Space", "PageUp", "PageDown", "F1"].includes(key)) return undefined;
    if (!typing && !this.single && key.length === 1) return undefined;
    return name;
  }
}

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", Enter: "↵", PageDown: "PgDn", PageUp: "PgUp" };

/** A binding as a person reads it. */
export const shown = (binding) => binding.split(/\+(?=.)/).map((part) => NAMES[part] || (part.length === 1 ? part.toUpperCase() : part)).join("+");

/** The binding to show on a button: the shortest. */
export const hint = (bindings) => shown([...bindings].sort((a, b) => a.length - b.length)[0] || "");
