/* Small multiples with one cursor, one zoom, one smoothing for all; mouse and keys alike.
 *
 * draw() takes what is there: { groups, runs, series, marks }. Finer points of a zoomed part come from the kernel on demand:
 * {kind: "range", first, last, page}; until they come, or without a kernel, the thin ones are shown.
 */

import { chart } from "./chart.js";
import { allSteps, extent, spliced } from "./chart_math.js";
import { element, quantity, sendTo, show, write } from "./view.js";

const FINER_AFTER = 150;
const ZOOM_STEP = 2;

/** `settings`: { page, say }. Returns { node, draw, recolor, end, keys }. */
export function chartGrid(model, { page, say }) {
  const grid = element("div", { class: "sb-charts", role: "group", tabindex: 0, "aria-label": "Charts. Left and right arrows read values, plus and minus zoom, zero resets.", hidden: true });
  const marks = element("ul", { class: "sb-monitor-marks", "aria-label": "Commands that took effect", hidden: true });
  const tools = makeTools((changed) => {
    options = { ...options, ...changed };
    redraw();
  }, () => zoomTo(null));
  const node = element("div", { class: "sb-monitor-charts" }, tools.node, grid, marks);
  const sync = `sb-${page}`;
  const shown = new Map();
  let options = { smoothing: 0, log: false };
  let data = { groups: [], runs: [], series: new Map(), marks: [] };
  let zoom = null;
  let fine = null;
  let timer = null;
  let tall = null;
  let pinned = null;

  const hooks = (title) => ({
    zoom: (first, last) => zoomTo([Math.floor(first), Math.ceil(last)]),
    unzoom: () => zoomTo(null),
    enlarge: () => {
      tall = tall === title ? null : title;
      redraw();
      shown.get(title)?.node.querySelector("button").focus();
    },
  });
  const place = (plan, later) => {
    const one = { ...chart(plan, sync, hooks(plan.title)), holds: JSON.stringify(plan) };
    shown.set(plan.title, one);
    grid.insertBefore(one.node, later.find(Boolean) ?? null);
  };
  const redraw = () => {
    const whole = data.series;
    const series = fine === null ? whole : new Map([...whole].map(([key, pair]) => [key, fine.points[key] ? spliced(pair, fine.points[key], fine.first, fine.last) : pair]));
    const plans = data.groups.map((group) => ({ ...planOf(group, data.runs, whole), smooth: options.smoothing > 0, log: options.log, tall: tall === group.title })).filter((plan) => plan.lines.length > 0);
    const titles = new Set(plans.map(({ title }) => title));
    for (const [title, one] of [...shown]) if (!titles.has(title)) discard(title, one);
    plans.forEach((plan, index) => {
      const old = shown.get(plan.title);
      if (old?.holds === JSON.stringify(plan)) return;
      if (old) discard(plan.title, old);
      place(plan, plans.slice(index + 1).map(({ title }) => shown.get(title)?.node));
    });
    const columns = plans.flatMap(({ lines }) => lines.map(({ key }) => series.get(key)));
    const all = extent(columns) ?? [0, 1];
    show(node, plans.length > 0);
    show(grid, plans.length > 0);
    for (const { title } of plans) shown.get(title).draw({ series, marks: data.marks, window: zoom ?? all, smoothing: options.smoothing });
    if (pinned !== null) pin(pinned);
    marks.replaceChildren(...data.marks.map((mark) => element("li", {}, `step ${mark.step}: ${mark.label}`)));
    show(marks, data.marks.length > 0);
    tools.draw(zoom, options);
  };
  const discard = (title, one) => {
    one.end();
    one.node.remove();
    shown.delete(title);
  };
  const visible = () => data.groups.flatMap((group) => planOf(group, data.runs, data.series).lines.map((line) => ({ ...line, group })));
  const zoomTo = (wanted) => {
    const all = extent(visible().map(({ key }) => data.series.get(key)));
    zoom = wanted === null || all === null || wanted[1] - wanted[0] >= all[1] - all[0] ? null : [Math.max(all[0], wanted[0]), Math.min(all[1], Math.max(wanted[0] + 1, wanted[1]))];
    if (zoom === null) fine = null;
    clearTimeout(timer);
    if (zoom !== null) timer = setTimeout(() => sendTo(model, { kind: "range", run: data.runs[0]?.key, first: zoom[0], last: zoom[1], page }), FINER_AFTER);
    redraw();
    say(zoom === null ? "All steps" : `Steps ${zoom[0]} to ${zoom[1]}`);
  };
  const receive = (message) => {
    if (message.kind !== "range" || message.page !== page || zoom === null || message.first !== zoom[0] || message.last !== zoom[1]) return;
    fine = message;
    redraw();
  };
  const pin = (step) => {
    if (step === null && pinned === null) return;
    pinned = step;
    for (const one of shown.values()) one.point(step);
  };
  const move = (event, by) => {
    const lines = visible();
    const steps = allSteps(lines.map(({ key }) => data.series.get(key))).filter((step) => zoom === null || (step >= zoom[0] && step <= zoom[1]));
    if (event.target !== grid || !steps.length) return false;
    const from = pinned === null ? (by > 0 ? -1 : steps.length) : steps.indexOf(pinned);
    pin(steps[Math.min(steps.length - 1, Math.max(0, from + by * (event.shiftKey ? 10 : 1)))]);
    say(`Step ${pinned}: ${valuesAt(lines, data.series, pinned)}`);
    return true;
  };
  const zoomBy = (event, factor) => {
    const all = extent(visible().map(({ key }) => data.series.get(key)));
    if (!node.contains(event.target) || all === null) return false;
    const [first, last] = zoom ?? all;
    const middle = pinned ?? (first + last) / 2;
    const half = Math.max(1, ((last - first) * factor) / 2);
    zoomTo([Math.floor(middle - half), Math.ceil(middle + half)]);
    return true;
  };
  grid.addEventListener("pointermove", () => (pinned = null));
  grid.addEventListener("focusout", () => pin(null));
  model.on("msg:custom", receive);
  return {
    node,
    draw(latest) {
      data = latest;
      redraw();
    },
    recolor: () => shown.forEach((one) => one.recolor()),
    keys: {
      ArrowLeft: (event) => move(event, -1),
      ArrowRight: (event) => move(event, 1),
      "+": (event) => zoomBy(event, 1 / ZOOM_STEP),
      "=": (event) => zoomBy(event, 1 / ZOOM_STEP),
      "-": (event) => zoomBy(event, ZOOM_STEP),
      0: () => zoomTo(null),
      l: () => tools.toggleLog(),
    },
    end() {
      clearTimeout(timer);
      model.off("msg:custom", receive);
      shown.forEach((one) => one.end());
    },
  };
}

/** Smoothing, scale, and the way back from a zoom. */
function makeTools(changed, unzoom) {
  const amount = element("span", { class: "sb-chart-amount sb-muted" }, "off");
  const slider = element("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0, "aria-label": "Smoothing" });
  const log = element("input", { type: "checkbox" });
  const zoomed = element("span", { class: "sb-muted" });
  const back = element("button", { type: "button", class: "sb-button", hidden: true }, "Show all steps");
  slider.addEventListener("input", () => changed({ smoothing: Number(slider.value) }));
  log.addEventListener("change", () => changed({ log: log.checked }));
  back.addEventListener("click", unzoom);
  return {
    node: element("div", { class: "sb-chart-tools", role: "group", "aria-label": "How the charts are drawn" }, element("label", {}, "Smoothing ", slider, amount), element("label", {}, log, "Log scale"), zoomed, back),
    toggleLog() {
      log.checked = !log.checked;
      changed({ log: log.checked });
    },
    draw(zoom, { smoothing }) {
      write(amount, smoothing ? smoothing.toFixed(2) : "off");
      slider.setAttribute("aria-valuetext", smoothing ? smoothing.toFixed(2) : "off");
      write(zoomed, zoom === null ? "drag across a chart to zoom" : `steps ${zoom[0]} to ${zoom[1]}`);
      show(back, zoom !== null);
    },
  };
}

/** Which lines a chart has: of one run by metric, of several by run; only of runs that are shown and have values. */
function planOf(group, runs, series) {
  const several = runs.length > 1;
  const lines = runs
    .filter(({ hidden }) => !hidden)
    .flatMap((run) =>
      group.series.map(({ name, label, sparse }, index) => ({
        key: `${run.key}:${name}`,
        label: several ? [run.name, group.series.length > 1 ? label : ""].filter(Boolean).join(" ") : label,
        color: several ? run.color : `--sb-series-${(index % 5) + 1}`,
        sparse,
        band: series.has(`${run.key}:${name}~low`) ? [`${run.key}:${name}~low`, `${run.key}:${name}~high`] : null,
      })),
    );
  return { title: group.title, unit: group.unit, lines: lines.filter(({ key }) => series.get(key)?.[0].length) };
}

function valuesAt(lines, series, step) {
  const texts = lines.map(({ key, label, group }) => {
    const [steps, values] = series.get(key);
    const index = steps.indexOf(step);
    return index < 0 ? null : `${label || group.title} ${quantity(values[index], group.unit)}`;
  });
  return texts.filter(Boolean).join(", ");
}
