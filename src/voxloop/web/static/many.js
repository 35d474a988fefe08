// One decision about many entries: the selected ones, or all that match, part by part; and undoing all of it.

import { ask, query } from "./api.js";

const UNDONE_AT_ONCE = 500;
const DID = { accept: "accepted", reject: "rejected", delete: "deleted" };

/** Select every entry that matches the filters. Those that are not read yet are counted by the server. */
export async function selectAll(store) {
  store.select(store.entries.map((one) => one.id));
  if (!store.after) return;
  try {
    store.matching = await ask(`bulk/preview?${query(store.where())}`, { method: "POST" });
  } catch (error) {
    store.fail(error);
  }
  store.changed();
}

export function decideSelected(store, action, reason = "") {
  const entries = store.entries.filter((one) => store.selected.has(one.id)).map(({ id, etag }) => ({ id, etag }));
  return change(store, "bulk", { action, entries, reason }, DID[action]);
}

/** Make one change of many entries, as `api/bulk` or `api/replace` take it. */
export async function change(store, path, body, said) {
  try {
    await store.sent();
    const done = await ask(path, { method: "POST", body });
    await settled(store, path, done.entries, said);
  } catch (error) {
    store.fail(error);
  }
}

/** Decide on all that match. `told` is called with the number of entries done, and returns false to stop. */
export async function decideMatching(store, action, reason, told) {
  const where = query({ ...store.where(), until: store.matching.until });
  const made = [];
  let after = null;
  try {
    await store.sent();
    do {
      const part = await ask(`bulk/matching?${where}`, { method: "POST", body: { action, reason, after } });
      made.push(...part.entries);
      after = part.next;
    } while (told(made.length) && after);
  } catch (error) {
    store.fail(error); // what is done can be undone as well
  }
  await settled(store, "bulk", made, DID[action]);
}

async function settled(store, kind, entries, said) {
  const decisions = entries.filter((one) => one.decision && !one.error).map(({ id, decision }) => ({ id, decision }));
  if (decisions.length) { store.made.push({ many: decisions, kind }); store.done += decisions.length; }
  const left = entries.length - decisions.length;
  for (const { id } of decisions) if (id !== store.id) store.details.delete(id);
  await store.list();
  if (store.id) await store.revalidate(store.id);
  if (store.id && !store.dirty) store.draft = store.stored(store.id);
  store.refreshStats();
  const undo = decisions.length ? { label: "Undo", run: () => store.undoDecision() } : null;
  store.say(`${decisions.length.toLocaleString()} ${said}${left ? `, ${left.toLocaleString()} left as they were` : ""}.`, undo);
}

export async function undoMany(store, decisions) {
  for (let at = 0; at < decisions.length; at += UNDONE_AT_ONCE) {
    await ask("bulk/undo", { method: "POST", body: { decisions: decisions.slice(at, at + UNDONE_AT_ONCE) } });
    if (decisions.length > UNDONE_AT_ONCE) store.say(`Undone: ${Math.min(at + UNDONE_AT_ONCE, decisions.length).toLocaleString()} of ${decisions.length.toLocaleString()}…`);
  }
}
