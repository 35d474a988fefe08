// A dialog over the page: it takes the keys while it is open, and gives the focus back.

import { html, useLayoutEffect, useRef } from "./view.js";

export function Dialog({ title, close, children, wide }) {
  const box = useRef(null);
  // Before the next key press: what is typed at once is meant for the dialog.
  useLayoutEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${box} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${close} onClick=${(event) => event.target === box.current && close()}>
    <div class="dialog"><header class="row"><h2 id="dialog-title">${title}</h2><span class="grow"></span><button class="quiet" aria-label="Close" onClick=${close}>✕</button></header>${children}</div>
  </dialog>`;
}
