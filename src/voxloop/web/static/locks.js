// One tab of this browser at a time.

const LEASE_MS = 3000;
const SETTLING_MS = 60; // two tabs that claim a lease at once see within this time which of them has it

/** Do `work` while no other tab does work of that name. Resolves to false, without doing it, where another does. */
export async function alone(name, work) {
  if (navigator.locks) {
    return navigator.locks.request(name, { ifAvailable: true }, async (lock) => {
      if (lock) await work();
      return !!lock;
    });
  }
  // Pages over plain HTTP are given no locks: a lease that the last to claim it has.
  const key = `${name}.lease`, mine = Math.random();
  const held = () => { try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; } };
  const claim = () => localStorage.setItem(key, JSON.stringify({ mine, until: Date.now() + LEASE_MS }));
  if (held().until > Date.now()) return false;
  claim();
  await new Promise((resolve) => setTimeout(resolve, SETTLING_MS));
  if (held().mine !== mine) return false;
  const renewing = setInterval(claim, LEASE_MS / 3);
  try {
    await work();
  } finally {
    clearInterval(renewing);
    localStorage.removeItem(key);
  }
  return true;
}
