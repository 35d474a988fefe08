// Consent: what a speaker is asked to agree to, and what they agreed to. Nothing is recorded or kept before.

import { html, useState } from "./view.js";
import { ask, query } from "./api.js";

const MEANINGS = {
  train: "Models in this workspace are trained on it",
  share: "Models trained on it are given to others",
  publish: "The recordings themselves are published",
};

/** What a speaker permits: {permits, version}. */
export const standingOf = (speaker) => ask(`consent?${query({ speaker })}`);

/** Whether a speaker has agreed to the text as it is now, to training at least. */
export const agreed = (standing, text) => !!standing && text.version > 0 && standing.version === text.version && standing.permits.includes("train");

/** The text and its purposes, to agree to. `done` is given what the speaker permits then. */
export function ConsentForm({ speaker, text, standing, done, fail }) {
  const [left, setLeft] = useState(new Set(["share", "publish"])); // purposes that are not agreed to
  const [sending, setSending] = useState(false);
  const flip = (purpose) => { const next = new Set(left); next.has(purpose) ? next.delete(purpose) : next.add(purpose); setLeft(next); };
  const give = async (event) => {
    event.preventDefault();
    setSending(true);
    try {
      const purposes = text.purposes.filter((one) => !left.has(one));
      await done(await ask("consent", { method: "POST", body: { speaker, version: text.version, purposes } }));
    } catch (error) {
      fail(error);
    }
    setSending(false);
  };
  const withdrawn = standing && !standing.permits.includes("train");
  return html`<form class="panel consent" aria-labelledby="consent-title" onSubmit=${give}>
    <h2 id="consent-title">Consent of ${speaker}${text.version ? html` <span class="faint">version ${text.version}</span>` : null}</h2>
    ${withdrawn ? html`<p class="caution">${speaker} has withdrawn consent. Nothing is recorded unless they agree again.</p>`
      : standing?.version ? html`<p class="caution">${speaker} agreed to version ${standing.version}. The text has changed since.</p>` : null}
    <blockquote>${text.text}</blockquote>
    <fieldset><legend>Purposes</legend>${text.purposes.map((one) => html`<label class="inline"><input type="checkbox" checked=${!left.has(one)} disabled=${one === "train"} onChange=${() => flip(one)} /> ${MEANINGS[one]}</label>`)}</fieldset>
    <div class="row"><button class="primary" disabled=${sending}>I agree</button><span class="faint">Nothing is recorded before.</span></div>
  </form>`;
}

/** One line on what was agreed to, with the way back. */
export function Agreed({ speaker, standing, withdrawn, fail }) {
  const withdraw = async () => {
    try { withdrawn(await ask(`consent?${query({ speaker })}`, { method: "DELETE" })); } catch (error) { fail(error); }
  };
  return html`<p class="agreed faint"><span>${speaker} agreed to version ${standing.version} (${standing.permits.join(", ")}).</span> <button class="quiet" onClick=${withdraw}>Withdraw</button></p>`;
}
