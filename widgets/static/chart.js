/* One small line chart over training steps: lines of one or several runs, bands over ranks, marks, a readout in text.
 *
 * Drawn by uPlot. What belongs to all charts of a view (zoom, smoothing, who is shown) is told to it by chart_grid.js.
 */

import "./vendor/uplot/uPlot.iife.min.js";
import { align, latest, logTicks, nearest, smoothed } from "./chart_math.js";
import { compact, element, quantity, write } from "./view.js";

const HEIGHT = 140;
const TALL = 320;
const FONT = "11px system-ui, sans-serif";
const EMPTY = [[], []];

/** { node, draw(data), recolor, point(step), end }.
 *
 * `plan` is { title, unit, lines: [{ key, label, color, sparse, band }], smooth, log, tall }: `key` names a series, `color`
 * is a CSS variable, a sparse line is dashed with dots, `band` names the series of its lower and upper edge; `smooth` says
 * whether lines are smoothed, by an amount that each draw is told.
 * `hooks` are { zoom(first, last), unzoom(), enlarge() }. Charts of one `sync` key share the cursor.
 */
export function chart(plan, sync, hooks) {
  const columns = columnsOf(plan);
  const readouts = plan.lines.map(readout);
  const step = element("span", { class: "sb-chart-step" });
  const canvas = element("div", { class: "sb-chart-canvas", role: "img" });
  const size = element("button", { type: "button", class: "sb-chart-size", "aria-label": `${plan.tall ? "Shrink" : "Enlarge"} ${plan.title}`, title: plan.tall ? "Shrink" : "Enlarge" }, plan.tall ? "⤡" : "⤢");
  size.addEventListener("click", hooks.enlarge);
  const node = element(
    "figure",
    { class: plan.tall ? "sb-chart sb-chart-tall" : "sb-chart" },
    element("figcaption", {}, element("b", {}, plan.title), step, size, element("span", { class: "sb-readouts" }, ...readouts.map((one) => one.node))),
    canvas,
  );
  const color = (name) => getComputedStyle(node).getPropertyValue(name).trim();
  const height = plan.tall ? TALL : HEIGHT;
  let marks = [];
  let table = [[]];
  let plot = null;

  const read = (index) => {
    const at = index === null || index === undefined ? null : index;
    write(step, at === null || table[0][at] === undefined ? "" : `step ${table[0][at]}`);
    const value = (column) => (column < 0 ? undefined : at === null ? latest(table[column + 1]) : nearest(table[column + 1], at));
    readouts.forEach((one, line) => {
      const found = (role) => value(columns.findIndex((column) => column.line === line && column.role === role));
      one.set(found("line"), found("raw"), [found("low"), found("high")], plan.unit);
    });
  };

  const options = () => ({
    width: Math.max(120, canvas.clientWidth),
    height,
    padding: [8, 10, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: sync, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
      y: false,
      points: { size: 6, show: (drawn, index) => (columns[index - 1]?.role === "line" ? cursorPoint(color(plan.lines[columns[index - 1].line].color)) : undefined) },
      drag: { x: true, y: false, setScale: false },
      bind: { dblclick: () => () => hooks.unzoom() },
    },
    scales: { x: { time: false }, y: plan.log ? { distr: 3, range: inDecades } : { range: plan.unit ? fromZero : spread } },
    axes: [
      axis(color, { size: 24, space: 56, incrs: WHOLE, values: (_, ticks) => ticks.map((tick) => compact(tick, 4)) }),
      axis(color, {
        size: 52,
        space: 26,
        ...(plan.log ? { splits: (_, __, low, high) => logTicks(low, high), filter: (_, ticks) => ticks } : { incrs: plan.unit === "bytes" ? BINARY : DECIMAL }),
        values: (_, ticks) => tickLabels(ticks, plan.unit),
      }),
    ],
    series: [{}, ...columns.map((column) => line(column, plan, () => color(plan.lines[column.line].color)))],
    bands: bandsOf(columns, plan, color),
    hooks: {
      drawAxes: [(drawn) => drawMarks(drawn, marks, color("--sb-mark"))],
      setCursor: [({ cursor }) => read(cursor.idx)],
      setSelect: [
        (drawn) => {
          const { left, width } = drawn.select;
          if (width > 4) hooks.zoom(drawn.posToVal(left, "x"), drawn.posToVal(left + width, "x"));
          drawn.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        },
      ],
    },
  });

  const watcher = new ResizeObserver(() => plot && canvas.clientWidth && plot.setSize({ width: canvas.clientWidth, height }));
  watcher.observe(canvas);
  return {
    node,
    /** Take { series (key -> [steps, values]), marks ([{ step }]), window ([first, last] step), smoothing } and redraw. */
    draw({ series, marks: newMarks, window: shown, smoothing }) {
      marks = newMarks;
      table = align(columns.map((column) => drawnSeries(series, column, smoothing)));
      if (plan.log) table = [table[0], ...table.slice(1).map((values) => values.map((value) => (value > 0 || value === undefined ? value : null)))];
      if (!plot) plot = new uPlot(options(), table, canvas);
      plot.batch(() => {
        plot.setData(table, false);
        plot.setScale("x", { min: shown[0], max: Math.max(shown[1], shown[0] + 1) });
      });
      read(plot.cursor.idx);
      canvas.setAttribute("aria-label", describe(plan, columns, table));
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

/** The columns of the chart's table: of each line its band, its raw values where they are smoothed, and what is read. */
function columnsOf({ lines, smooth }) {
  return lines.flatMap((one, line) => [
    ...(one.band ? [{ line, role: "low", key: one.band[0] }, { line, role: "high", key: one.band[1] }] : []),
    ...(smooth && !one.sparse ? [{ line, role: "raw", key: one.key }] : []),
    { line, role: "line", key: one.key, smooth: smooth && !one.sparse },
  ]);
}

function drawnSeries(series, { key, smooth }, smoothing) {
  const found = series.get(key) ?? EMPTY;
  return smooth ? [found[0], smoothed(found, smoothing)] : found;
}

const powers = (base, low, high, leads) =>
  Array.from({ length: high - low }, (_, index) => base ** (low + index)).flatMap((power) => leads.map((lead) => lead * power));
const WHOLE = powers(10, 0, 12, [1, 2, 5]);
const DECIMAL = powers(10, -15, 18, [1, 2, 5]);
const BINARY = powers(2, 0, 60, [1]);

function readout(one) {
  const value = element("b", {});
  const more = element("span", { class: "sb-readout-more" });
  const swatch = element("i", { class: one.sparse ? "sb-line sb-line-dashed" : "sb-line", "aria-hidden": "true" });
  swatch.style.color = `var(${one.color})`;
  const node = element("span", { class: "sb-readout" }, swatch, one.label ? `${one.label} ` : "", value, more);
  const set = (number, raw, [low, high], unit) => {
    write(value, quantity(number, unit));
    const range = Number.isFinite(low) && Number.isFinite(high) ? ` ranks ${quantity(low, unit)} to ${quantity(high, unit)}` : "";
    write(more, raw === undefined ? range : ` raw ${quantity(raw, unit)}${range}`);
  };
  return { node, set };
}

function axis(color, extra) {
  const grid = { stroke: () => color("--sb-grid"), width: 1 };
  return { stroke: () => color("--sb-muted"), font: FONT, gap: 4, ticks: { show: false }, grid, ...extra };
}

/** How uPlot draws one column. The palettes are written as #rrggbb, so that two more digits make a colour faint. */
function line({ line: index, role }, plan, stroke) {
  if (role === "low" || role === "high") return { stroke: () => `${stroke()}55`, width: 0.5, points: { show: false } };
  if (role === "raw") return { stroke: () => `${stroke()}4d`, width: 1, points: { show: false } };
  const { sparse } = plan.lines[index];
  const points = sparse ? { show: true, size: 5, fill: stroke } : { show: (plot) => plot.data[0].length === 1, size: 5 };
  return { stroke, width: 1.5, dash: sparse ? [5, 3] : undefined, points };
}

function bandsOf(columns, plan, color) {
  return columns.flatMap(({ line: index, role }, place) => {
    if (role !== "low") return [];
    return [{ series: [place + 2, place + 1], fill: () => `${color(plan.lines[index].color)}26` }];
  });
}

function cursorPoint(color) {
  const node = element("div", { class: "sb-chart-dot" });
  node.style.background = color;
  return node;
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

/** A logarithmic range with a little room. */
function inDecades(_, low, high) {
  if (!(low > 0)) return [0.1, 1];
  const room = high > low ? (high / low) ** 0.06 : 2;
  return [low / room, high * room];
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

function describe(plan, columns, [steps, ...values]) {
  if (!steps.length) return `${plan.title}: no values yet`;
  const parts = plan.lines.map((one, line) => {
    const column = values[columns.findIndex((each) => each.line === line && each.role === "line")].filter((value) => Number.isFinite(value));
    if (!column.length) return null;
    const [low, high] = column.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    const text = (value) => quantity(value, plan.unit);
    return `${one.label || plan.title} ${text(column[0])} to ${text(column.at(-1))}, lowest ${text(low)}, highest ${text(high)}`;
  });
  return `${plan.title}, steps ${steps[0]} to ${steps.at(-1)}: ${parts.filter(Boolean).join("; ")}`;
}
