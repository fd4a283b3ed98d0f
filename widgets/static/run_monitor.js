/* The live view of one run folder: state, progress, charts, samples, failures, commands.
 *
 * Traits: `status` (small, changes often), `details` (text, changes seldom), `series` (see followSeries in view.js).
 * Commands go to the kernel as {kind: "command", name}; its answer is {kind: "answer", name, text}.
 */

import { announcer, button, duration, element, followKeys, followNews, followSeries, followTheme, onceAFrame, quantity, show, table, write } from "./view.js";
import { chart } from "./chart.js";

const TONES = {
  running: "active", starting: "active", pausing: "waiting", paused: "waiting", stopping: "waiting",
  finished: "good", stopped: "good", failed: "bad", lost: "bad",
};
const TABLE_ROWS = 12;
const PATIENCE = 2500;

function render({ model, el }) {
  const speaker = announcer();
  const commands = makeCommands(model, speaker);
  const top = makeTop(commands);
  const failure = makeFailure();
  const charts = makeCharts(model, speaker);
  const samples = element("section", { "aria-label": "Latest samples" });
  const values = element("details", {}, element("summary", {}, "Values as a table"));
  const keys = element("p", { class: "sb-monitor-keys" }, "Keys: P pause or resume, C checkpoint, S stop and keep, T table; arrows on the charts read values.");
  const root = element(
    "section",
    { class: "sb-view sb-monitor" },
    top.header, top.progress, commands.notice, failure.node, charts.marks, charts.node, samples, values, keys, speaker.node,
  );
  el.replaceChildren(root);

  const drawTable = () => values.open && drawValues(values, charts.groups(), data.series);
  const drawSeries = onceAFrame(() => {
    charts.draw(data.series);
    drawTable();
  });
  const data = followSeries(model, drawSeries);
  let said = "";
  const drawStatus = (silent) => {
    const status = model.get("status");
    root.setAttribute("aria-label", `Run ${status.id}`);
    root.toggleAttribute("data-stale", silent);
    top.draw(status);
    commands.draw(silent);
    if (status.summary !== said) speaker.say((said = status.summary));
  };
  const drawDetails = () => {
    const details = model.get("details");
    failure.draw(details);
    drawSamples(samples, details.samples);
    drawSeries();
  };
  values.addEventListener("toggle", drawTable);
  model.on("change:details", drawDetails);
  drawDetails();
  const ends = [
    followNews(model, "change:status", () => !model.get("status").final, drawStatus),
    () => model.off("change:details", drawDetails),
    data.end,
    commands.end,
    charts.end,
    followTheme(root, charts.recolor),
    followKeys(root, {
      p: commands.pause.press,
      c: commands.checkpoint.press,
      s: commands.stop.press,
      t: () => {
        values.open = !values.open;
      },
      ArrowLeft: (event) => charts.move(event, -1),
      ArrowRight: (event) => charts.move(event, 1),
    }),
  ];
  return () => ends.forEach((end) => end());
}

/** Name, badge, buttons; the bar; step, time left and such. */
function makeTop(commands) {
  const badge = element("span", { class: "sb-monitor-badge" });
  const name = element("span", { class: "sb-monitor-name" });
  const actions = element("div", { class: "sb-monitor-actions", role: "group", "aria-label": "Commands" }, ...commands.buttons);
  const fill = element("i", {});
  const bar = element("div", { class: "sb-monitor-bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const facts = element("p", { class: "sb-monitor-facts" });
  const draw = (status) => {
    write(badge, status.state);
    badge.dataset.tone = TONES[status.state] ?? "";
    write(name, status.id);
    show(bar, status.progress !== null);
    const percent = Math.round(100 * (status.progress ?? 0));
    bar.setAttribute("aria-valuenow", percent);
    fill.style.width = `${percent}%`;
    const wanted = [
      status.total ? `step ${status.step} of ${status.total}` : `step ${status.step}`,
      status.progress === null ? null : `${percent} %`,
      status.left === null ? null : `${duration(status.left)} left`,
      status.elapsed === null ? null : `${duration(status.elapsed)} elapsed`,
      status.attempt > 1 ? `attempt ${status.attempt}` : null,
      TONES[status.state] === "bad" ? null : status.message,
    ].filter(Boolean);
    while (facts.childElementCount > wanted.length) facts.lastChild.remove();
    wanted.forEach((text, index) => write(facts.children[index] ?? facts.appendChild(element("span")), text));
  };
  return {
    header: element("header", {}, badge, name, actions),
    progress: element("div", { class: "sb-monitor-progress" }, bar, facts),
    draw,
  };
}

/** The buttons, and what became of a press: sent, refused, or waiting for a busy kernel. */
function makeCommands(model, speaker) {
  const notice = element("p", { class: "sb-monitor-notice", hidden: true });
  let timer = null;
  const tell = (text) => {
    clearTimeout(timer);
    write(notice, text);
    show(notice, Boolean(text));
    if (text) speaker.say(text);
  };
  const send = (name) => {
    model.send({ kind: "command", name });
    clearTimeout(timer);
    timer = setTimeout(() => tell(`${name}: sent; it takes effect when the kernel is done with the running cell.`), PATIENCE);
  };
  const receive = (message) => message.kind === "answer" && tell(message.text);
  let silent = false;
  const can = (name) => !silent && model.get("status").allowed.includes(name);
  const pause = button("Pause", "p", () => send(can("resume") ? "resume" : "pause"));
  const checkpoint = button("Checkpoint now", "c", () => send("checkpoint"));
  const stop = button("Stop and keep", "s", () => send("stop"));
  const restart = button("Resume run", "r", () => send("restart"));
  model.on("msg:custom", receive);
  return {
    pause, checkpoint, stop, notice,
    buttons: [pause.node, checkpoint.node, stop.node, restart.node],
    /** Fit the buttons to the state; `now`: no kernel answers, so nothing can be asked, and what is shown is of the past. */
    draw(now) {
      if (silent !== now) tell(now ? `No news from the kernel since ${new Date().toLocaleTimeString()}: run the cell again to go on.` : "");
      silent = now;
      pause.set({ label: can("resume") ? "Resume" : "Pause", enabled: can("pause") || can("resume"), title: "Hold the run after the next step, or let it go on." });
      checkpoint.set({ enabled: can("checkpoint"), title: "Save a checkpoint after the next step." });
      stop.set({ enabled: can("stop"), title: "Save a checkpoint and end the run." });
      restart.set({ enabled: can("restart"), title: "Go on from the newest checkpoint." });
      show(restart.node, can("restart"));
      for (const one of [pause, checkpoint, stop]) show(one.node, !can("restart"));
    },
    end() {
      clearTimeout(timer);
      model.off("msg:custom", receive);
    },
  };
}

/** Small multiples with one cursor, which the mouse or the arrow keys move; for the keys the values are read out. */
function makeCharts(model, speaker) {
  const grid = element("div", { class: "sb-charts", role: "group", tabindex: 0, "aria-label": "Charts. Left and right arrows read values.", hidden: true });
  const marks = element("ul", { class: "sb-monitor-marks", "aria-label": "Commands that took effect", hidden: true });
  const sync = `sb-${Math.random()}`;
  const shown = new Map();
  let groups = [];
  let series = new Map();
  let pinned = null;
  const place = (group, wanted) => {
    const one = { ...chart(group, sync), holds: JSON.stringify(group) };
    const later = wanted.slice(wanted.indexOf(group) + 1).map(({ title }) => shown.get(title)?.node);
    shown.set(group.title, one);
    grid.insertBefore(one.node, later.find(Boolean) ?? null);
  };
  const pin = (step) => {
    if (step === null && pinned === null) return;
    pinned = step;
    for (const one of shown.values()) one.point(step);
  };
  const draw = (latest) => {
    const { groups: wanted, marks: made } = model.get("details");
    series = latest;
    groups = wanted.filter((group) => group.series.some(({ name }) => series.has(name)));
    for (const group of groups) {
      const old = shown.get(group.title);
      if (old?.holds === JSON.stringify(group)) continue;
      old?.end(); // a series that came later, such as the first training loss after a held-out one
      old?.node.remove();
      place(group, groups);
    }
    show(grid, groups.length > 0);
    for (const group of groups) shown.get(group.title).draw(series, made);
    if (pinned !== null) pin(pinned);
    marks.replaceChildren(...made.map((mark) => element("li", {}, `step ${mark.step}: ${mark.label}`)));
    show(marks, made.length > 0);
  };
  const move = (event, by) => {
    const steps = stepsOf(groups.flatMap((group) => group.series), series);
    if (!grid.contains(event.target) || !steps.length) return false;
    const from = pinned === null ? (by > 0 ? -1 : steps.length) : steps.indexOf(pinned);
    pin(steps[Math.min(steps.length - 1, Math.max(0, from + by))]);
    speaker.say(`Step ${pinned}: ${valuesAt(groups, series, pinned)}`);
    return true;
  };
  grid.addEventListener("pointermove", () => (pinned = null));
  grid.addEventListener("focusout", () => pin(null));
  return {
    node: grid, marks, draw, move,
    groups: () => groups,
    recolor: () => shown.forEach((one) => one.recolor()),
    end: () => shown.forEach((one) => one.end()),
  };
}

/** Every step at which one of the series has a value. */
function stepsOf(members, series) {
  return [...new Set(members.flatMap(({ name }) => series.get(name)?.[0] ?? []))].sort((a, b) => a - b);
}

function valuesAt(groups, series, step) {
  const texts = groups.flatMap((group) =>
    group.series.map(({ name, label }) => {
      const [steps, values] = series.get(name) ?? [[], []];
      const index = steps.indexOf(step);
      return index < 0 ? null : `${label || group.title} ${quantity(values[index], group.unit)}`;
    }),
  );
  return texts.filter(Boolean).join(", ");
}

/** Why the run failed or was lost: the report's words, traceback and the last lines of every rank. */
function makeFailure() {
  const node = element("section", { class: "sb-monitor-failure", "aria-label": "Failure", hidden: true });
  let shown = "";
  const draw = ({ failure }) => {
    show(node, failure !== null);
    if (failure === null || JSON.stringify(failure) === shown) return;
    shown = JSON.stringify(failure);
    const block = (title, text, open) =>
      element("details", { open }, element("summary", {}, title), element("pre", { class: "sb-text-block", tabindex: 0, role: "region", "aria-label": title }, text));
    node.replaceChildren(
      element("h3", {}, failure.headline),
      ...(failure.remedy ? [element("p", {}, failure.remedy)] : []),
      ...(failure.traceback ? [block("Traceback", failure.traceback, true)] : []),
      ...failure.tails.map(([rank, text]) => block(`Last lines of rank ${rank}`, text, !failure.traceback)),
    );
    requestAnimationFrame(() => node.querySelectorAll("pre").forEach((pre) => (pre.scrollTop = pre.scrollHeight)));
  };
  return { node, draw };
}

function drawSamples(node, samples) {
  show(node, samples.length > 0);
  const key = JSON.stringify(samples);
  if (!samples.length || node.dataset.key === key) return;
  node.dataset.key = key;
  const blocks = samples.map(({ prompt, text }) =>
    element("p", { class: "sb-text-block", tabindex: 0, role: "region", "aria-label": "Sample" }, element("span", { class: "sb-muted" }, prompt), text),
  );
  node.replaceChildren(element("h3", {}, `Samples at step ${samples[0].step}`), ...blocks);
}

function drawValues(node, groups, series) {
  const columns = groups.flatMap((group) => group.series.filter(({ name }) => series.has(name)).map((one) => ({ ...one, group })));
  const steps = stepsOf(columns, series);
  const rows = evenly(steps, TABLE_ROWS).map((step) => [
    String(step),
    ...columns.map(({ name, group }) => {
      const [at, values] = series.get(name);
      const index = at.indexOf(step);
      return index < 0 ? "" : quantity(values[index], group.unit);
    }),
  ]);
  const heading = ({ group, label }) => (label && group.series.length > 1 ? label : group.title);
  const twin = table(`${rows.length} of ${steps.length} steps`, ["Step", ...columns.map(heading)], rows);
  const region = element("div", { class: "sb-monitor-table", role: "region", tabindex: 0, "aria-label": "Values as a table" }, twin);
  node.querySelector(".sb-monitor-table")?.remove();
  node.append(region);
}

function evenly(items, most) {
  if (items.length <= most) return items;
  return Array.from({ length: most }, (_, index) => items[Math.round((index * (items.length - 1)) / (most - 1))]);
}

export default { render };
