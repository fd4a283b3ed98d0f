/* Small line charts over training steps, with a shared cursor, marks and a readout in text. Drawn by uPlot. */

import "./vendor/uplot/uPlot.iife.min.js";
import { compact, element, quantity, write } from "./view.js";

const HEIGHT = 140;
const FONT = "11px system-ui, sans-serif";

/** One chart of a few series over steps: { node, draw(series, marks), recolor, point(step), end }.
 *
 * `group` is { title, unit, series: [{ name, label, sparse }] }; charts of one `sync` key share the cursor. A sparse
 * series is drawn dashed with dots.
 */
export function chart(group, sync) {
  const readouts = group.series.map((one, index) => readout(one, index));
  const step = element("span", { class: "sb-chart-step" });
  const canvas = element("div", { class: "sb-chart-canvas", role: "img" });
  const node = element(
    "figure",
    { class: "sb-chart" },
    element("figcaption", {}, element("b", {}, group.title), step, element("span", { class: "sb-readouts" }, ...readouts.map((one) => one.node))),
    canvas,
  );
  const color = (name) => getComputedStyle(node).getPropertyValue(name).trim();
  let marks = [];
  let table = [[]];
  let plot = null;

  const read = (index) => {
    const at = index === null || index === undefined ? null : index;
    write(step, at === null ? "" : `step ${table[0][at]}`);
    readouts.forEach((one, i) => one.set(at === null ? latest(table[i + 1]) : nearest(table[i + 1], at), group.unit));
  };

  const options = () => ({
    width: Math.max(120, canvas.clientWidth),
    height: HEIGHT,
    padding: [8, 10, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: sync }, y: false, points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: group.unit ? fromZero : spread } },
    axes: [
      axis(color, { size: 24, space: 56, incrs: WHOLE, values: (_, ticks) => ticks.map((tick) => compact(tick, 4)) }),
      axis(color, { size: 52, space: 26, incrs: group.unit === "bytes" ? BINARY : DECIMAL, values: (_, ticks) => tickLabels(ticks, group.unit) }),
    ],
    series: [{}, ...group.series.map((one, index) => line(one, () => color(`--sb-series-${index + 1}`)))],
    hooks: {
      drawAxes: [(drawn) => drawMarks(drawn, marks, color("--sb-mark"))],
      setCursor: [({ cursor }) => read(cursor.idx)],
    },
  });

  const watcher = new ResizeObserver(() => plot && canvas.clientWidth && plot.setSize({ width: canvas.clientWidth, height: HEIGHT }));
  watcher.observe(canvas);
  return {
    node,
    /** Take series (name -> [steps, values]) and marks ([{ step }]) and redraw. */
    draw(series, newMarks) {
      marks = newMarks;
      table = align(group.series.map(({ name }) => series.get(name) ?? [[], []]));
      if (!plot) plot = new uPlot(options(), table, canvas);
      else plot.setData(table, !isZoomed(plot));
      read(plot.cursor.idx);
      canvas.setAttribute("aria-label", describe(group, table));
    },
    /** Redraw with the present colours. */
    recolor: () => plot?.redraw(false, true),
    /** Move the cursor to a step, null to take it away. */
    point(wanted) {
      if (plot) plot.setCursor({ left: wanted === null ? -10 : plot.valToPos(wanted, "x"), top: 10 });
    },
    end() {
      watcher.disconnect();
      plot?.destroy();
    },
  };
}

const powers = (base, low, high, leads) =>
  Array.from({ length: high - low }, (_, index) => base ** (low + index)).flatMap((power) => leads.map((lead) => lead * power));
const WHOLE = powers(10, 0, 12, [1, 2, 5]);
const DECIMAL = powers(10, -15, 18, [1, 2, 5]);
const BINARY = powers(2, 0, 60, [1]);

function readout(one, index) {
  const value = element("b", {});
  const swatch = element("i", { class: `sb-swatch sb-swatch-${index + 1}`, "aria-hidden": "true" });
  const node = element("span", { class: "sb-readout" }, swatch, one.label ? `${one.label} ` : "", value);
  return { node, set: (number, unit) => write(value, quantity(number, unit)) };
}

function axis(color, extra) {
  const grid = { stroke: () => color("--sb-grid"), width: 1 };
  return { stroke: () => color("--sb-muted"), font: FONT, gap: 4, ticks: { show: false }, grid, ...extra };
}

function line(one, stroke) {
  const points = one.sparse ? { show: true, size: 5, fill: stroke } : { show: (plot) => plot.data[0].length === 1, size: 5 };
  return { stroke, width: 1.5, dash: one.sparse ? [5, 3] : undefined, points };
}

/** A range around the values with a little room; a constant gets a band of its own size. */
function spread(_, low, high) {
  if (low === null || low === undefined) return [0, 1];
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.5 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** A quantity with a unit is seen from zero. */
function fromZero(_, low, high) {
  return [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1];
}

/** Labels with as many digits as the ticks need, the same for all. */
function tickLabels(ticks, unit) {
  const isExact = (digits) => ticks.every((tick) => Math.abs(Number(tick.toPrecision(digits)) - tick) <= Math.abs(tick) * 1e-9);
  const digits = [1, 2, 3, 4, 5].find(isExact) ?? 6;
  return ticks.map((tick) => (unit === "bytes" ? quantity(tick, unit) : compact(tick, digits)));
}

function drawMarks(plot, marks, stroke) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const mark of marks) {
    const x = plot.valToPos(mark.step, "x", true);
    if (!(x >= bbox.left && x <= bbox.left + bbox.width)) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function isZoomed(plot) {
  const steps = plot.data[0];
  const { min, max } = plot.scales.x;
  return steps.length > 0 && (min > steps[0] || max < steps[steps.length - 1]);
}

/** [steps, values of each series at those steps, undefined where it has none]: new lists, since the series grow in place. */
function align(columns) {
  if (columns.length === 1) return columns[0].map((list) => list.slice());
  const steps = [...new Set(columns.flatMap(([at]) => at))].sort((a, b) => a - b);
  const rows = columns.map(([at, values]) => {
    const known = new Map(at.map((step, index) => [step, values[index]]));
    return steps.map((step) => known.get(step));
  });
  return [steps, ...rows];
}

function latest(values) {
  return values.findLast((value) => value !== undefined);
}

/** The value at an index, or the last one before it. */
function nearest(values, index) {
  return latest(values.slice(0, index + 1));
}

function describe(group, [steps, ...columns]) {
  if (!steps.length) return `${group.title}: no values yet`;
  const parts = group.series.map((one, index) => {
    const values = columns[index].filter((value) => Number.isFinite(value));
    if (!values.length) return null;
    const [low, high] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    const text = (value) => quantity(value, group.unit);
    return `${one.label || group.title} ${text(values[0])} to ${text(values.at(-1))}, lowest ${text(low)}, highest ${text(high)}`;
  });
  return `${group.title}, steps ${steps[0]} to ${steps.at(-1)}: ${parts.filter(Boolean).join("; ")}`;
}
