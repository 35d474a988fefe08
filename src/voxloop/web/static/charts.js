// Charts as SVG; each has its numbers in a table as well, for keyboards and screen readers.

import { html, useEffect, useRef, useState } from "./view.js";

const HEIGHT = 190, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 26;
const MOST_DRAWN = 400; // points of a line: a screen shows no more
const MOST_ROWS = 60; // of the table

/** About `count` round numbers from `low` to `high`. */
export function ticks(low, high, count = 4) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

/** Every n-th point, the first and the last always. */
const thinned = (points, most) => {
  const stride = Math.ceil(points.length / most);
  return stride < 2 ? points : points.filter((_, n) => n % stride === 0 || n === points.length - 1);
};

/**
 * Lines over the same axes. `series`: [{name, points: [{x, y, low?, high?}], dots?, dashed?}]; `y` and `x` write a number, `tick` one at the axis of y.
 * The axis of y begins at 0.
 */
export function LineChart({ title, series, xName, x = (value) => value.toLocaleString(), y = (value) => String(value), tick = y }) {
  const box = useRef(null);
  const [width, setWidth] = useState(480);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.max(220, Math.round(entry.contentRect.width))));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const drawn = series.map((one, n) => ({ ...one, color: one.color ?? n, points: one.points.filter((at) => Number.isFinite(at.y)) })).filter((one) => one.points.length);
  const all = drawn.flatMap((one) => one.points);
  const right = Math.max(...all.map((at) => at.x), 1), left = Math.min(...all.map((at) => at.x), right);
  const most = Math.max(...all.map((at) => Math.max(at.y, at.high ?? 0)), 1e-9);
  const rows = ticks(0, most), top = Math.max(most, rows.at(-1) ?? most) * 1.04;
  const across = (value) => LEFT + ((width - LEFT - RIGHT) * (value - left)) / (right - left || 1);
  const down = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(value, top) / top);
  const path = (points) => thinned(points, MOST_DRAWN).map((at, n) => `${n ? "L" : "M"}${across(at.x).toFixed(1)} ${down(at.y).toFixed(1)}`).join("");
  const told = drawn.map((one) => `${one.name} from ${y(one.points[0].y)} to ${y(one.points.at(-1).y)}`).join("; ");
  return html`<figure class="chart" ref=${box}><figcaption><h3>${title}</h3>
      <span class="legend-lines">${drawn.map((one) => html`<span key=${one.name}><svg width="18" height="10" aria-hidden="true"><line x1="0" x2="18" y1="5" y2="5" class=${`line c${one.color} ${one.dashed ? "dashed" : ""}`} /></svg> ${one.name} <strong>${y(one.points.at(-1).y)}</strong></span>`)}</span></figcaption>
    ${all.length ? html`<svg width=${width} height=${HEIGHT} viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" aria-label=${`${title} by ${xName}: ${told}`}>
      ${rows.map((at) => html`<g key=${`r${at}`}><line class="grid" x1=${LEFT} x2=${width - RIGHT} y1=${down(at)} y2=${down(at)} /><text class="tick" x=${LEFT - 6} y=${down(at) + 4} text-anchor="end">${tick(at)}</text></g>`)}
      ${ticks(left, right, width < 340 ? 3 : 5).map((at) => html`<text key=${`c${at}`} class="tick" x=${across(at)} y=${HEIGHT - 8} text-anchor=${across(at) > width - 40 ? "end" : "middle"}>${x(at)}</text>`)}
      ${drawn.map((one) => html`<g key=${one.name}>
        ${one.points.filter((at) => at.high != null).map((at) => html`<line class=${`whisker c${one.color}`} x1=${across(at.x)} x2=${across(at.x)} y1=${down(at.low)} y2=${down(at.high)} />`)}
        <path class=${`line c${one.color} ${one.dashed ? "dashed" : ""}`} d=${path(one.points)} />
        ${(one.dots || one.points.length < 3) && thinned(one.points, 80).map((at) => html`<circle class=${`dot c${one.color}`} cx=${across(at.x)} cy=${down(at.y)} r="3" />`)}</g>`)}
    </svg>` : html`<p class="faint none">No numbers yet.</p>`}
    ${all.length ? html`<details><summary>Numbers</summary><div class="scroll" tabindex="0" role="region" aria-label=${`${title}: numbers`}><table class="plain"><thead><tr><th scope="col">${xName}</th>${drawn.map((one) => html`<th scope="col">${one.name}</th>`)}</tr></thead>
      <tbody>${numbers(drawn).map(([at, values]) => html`<tr key=${at}><th scope="row">${x(at)}</th>${values.map((value) => html`<td>${value == null ? "" : y(value)}</td>`)}</tr>`)}</tbody></table></div></details>` : null}
  </figure>`;
}

/** Rows of the table: x with the values of every series there. */
function numbers(drawn) {
  const found = new Map();
  drawn.forEach((one, n) => thinned(one.points, MOST_ROWS).forEach((at) => {
    if (!found.has(at.x)) found.set(at.x, drawn.map(() => null));
    found.get(at.x)[n] = at.y;
  }));
  return [...found].sort(([a], [b]) => a - b);
}

/** A bar from 0 with its interval; `top` is the full width. The value stands beside it as text. */
export function Bar({ value, low, high, top, color = 0, label }) {
  const share = (one) => `${Math.max(0, Math.min(100, (100 * one) / (top || 1)))}%`;
  return html`<svg class="bar" width="100%" height="18" role="img" aria-label=${label}>
    <rect class="track" width="100%" height="10" y="4" rx="3" /><rect class=${`fill c${color}`} width=${share(value)} height="10" y="4" rx="3" />
    ${low != null && html`<line class="whisker" x1=${share(low)} x2=${share(high)} y1="9" y2="9" />`}</svg>`;
}
