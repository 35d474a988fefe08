// The links between the pages, in every page's header. Styled by `.pages` in style.css.

import { html } from "./view.js";

const PAGES = { review: "Review", record: "Record", listen: "Listen", training: "Training", models: "Models" };

/** `current`: the name of the page that shows the links. The addresses are relative: the server may have a prefix. */
export function Nav({ current }) {
  return html`<nav class="pages" aria-label="Pages">${Object.entries(PAGES).map(([name, label]) =>
    html`<a href=${name} aria-current=${name === current ? "page" : null}>${label}</a>`)}</nav>`;
}
