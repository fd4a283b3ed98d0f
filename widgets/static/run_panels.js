/* What stands under the charts, one tab at a time: samples, checkpoints, commands, values; ranks and logs are in run_logs.js. */

import { allSteps, evenly } from "./chart_math.js";
import { sureButton } from "./run_header.js";
import { element, quantity, sendTo, show, table, write } from "./view.js";

const TABLE_ROWS = 12;

/** Tabs over panels [{ id, title, node, open(), close() }]: { node, select(id), opened(), draw(ids that have something), start }. */
export function makeTabs(page, panels) {
  let opened = panels[0].id;
  let decided = false; // whether a person has chosen a tab
  const tabs = new Map(
    panels.map(({ id, title, node }) => {
      const tab = element("button", { type: "button", role: "tab", id: `sb-${page}-${id}-tab`, "aria-controls": `sb-${page}-${id}` }, title);
      for (const [name, value] of Object.entries({ role: "tabpanel", id: `sb-${page}-${id}`, "aria-labelledby": tab.id })) node.setAttribute(name, value);
      tab.addEventListener("click", () => select(id, true));
      return [id, tab];
    }),
  );
  const open = (id) => {
    const before = opened;
    opened = id;
    for (const panel of panels) {
      const chosen = panel.id === id;
      tabs.get(panel.id).setAttribute("aria-selected", String(chosen));
      tabs.get(panel.id).tabIndex = chosen ? 0 : -1;
      show(panel.node, chosen);
      if (!chosen && panel.id === before) panel.close?.();
      if (chosen) panel.open?.();
    }
  };
  const select = (id, focus = false) => {
    decided = true;
    open(id);
    if (focus) tabs.get(id).focus();
  };
  const strip = element("div", { class: "sb-tabs", role: "tablist", "aria-label": "More about the run" }, ...tabs.values());
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const there = panels.filter(({ id }) => !tabs.get(id).hidden).map(({ id }) => id);
    select(there[(there.indexOf(opened) + by + there.length) % there.length], true);
    event.preventDefault();
  });
  return {
    node: element("div", { class: "sb-monitor-more" }, strip, ...panels.map(({ node }) => node)),
    select,
    opened: () => opened,
    /** Show only the tabs that have something to show; the first of them until a person chooses. */
    draw(wanted) {
      for (const [id, tab] of tabs) show(tab, wanted.includes(id));
      if (opened !== wanted[0] && !(decided && wanted.includes(opened))) open(wanted[0]);
    },
    start: () => open(opened),
  };
}

/** Samples of one step; the slider goes through all steps that have some. */
export function makeSamples(model, chosen) {
  const slider = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step of the samples" });
  const title = element("h3", {});
  const texts = element("div", {});
  const node = element("section", { class: "sb-panel" }, element("div", { class: "sb-panel-bar" }, title, slider), texts);
  const known = new Map();
  let steps = [];
  let wanted = null; // a step that was chosen; null: the newest
  let run = "";
  const drawTexts = () => {
    const step = wanted ?? steps.at(-1);
    const index = Math.max(0, steps.indexOf(step));
    slider.max = Math.max(0, steps.length - 1);
    slider.value = index;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    show(slider, steps.length > 1);
    const found = known.get(`${run}:${step}`);
    write(title, steps.length ? `Samples at step ${step}${steps.length > 1 ? `, ${index + 1} of ${steps.length}` : ""}` : "No samples yet");
    const key = JSON.stringify([step, found ?? null]);
    if (texts.dataset.key === key) return;
    texts.dataset.key = key;
    if (!found) return texts.replaceChildren(element("p", { class: "sb-muted" }, steps.length ? "Asking the kernel for them." : ""));
    texts.replaceChildren(
      ...found.map(({ prompt, text }) => element("p", { class: "sb-text-block", tabindex: 0, role: "region", "aria-label": "Sample" }, element("span", { class: "sb-muted" }, prompt), text)),
    );
  };
  slider.addEventListener("input", () => {
    const step = steps[Number(slider.value)];
    wanted = Number(slider.value) === steps.length - 1 ? null : step;
    if (!known.has(`${run}:${step}`)) sendTo(model, { kind: "samples", run, step });
    drawTexts();
  });
  const receive = (message) => {
    if (message.kind !== "samples") return;
    known.set(`${message.run}:${message.step}`, message.samples);
    drawTexts();
  };
  model.on("msg:custom", receive);
  return {
    id: "samples", title: "Samples", node,
    draw(details) {
      if (run !== chosen()) wanted = null;
      run = chosen();
      steps = details.sample_steps;
      if (steps.length) known.set(`${run}:${steps.at(-1)}`, details.samples);
      if (wanted !== null && !steps.includes(wanted)) wanted = null;
      drawTexts();
      return steps.length > 0;
    },
    end: () => model.off("msg:custom", receive),
  };
}

/** The checkpoints, each of which a run that is over can be resumed from. */
export function makeCheckpoints(commands) {
  const node = element("section", { class: "sb-panel" });
  let drawn = "";
  let buttons = [];
  return {
    id: "checkpoints", title: "Checkpoints", node,
    draw({ checkpoints }, status) {
      const usable = commands.can("restart");
      const key = JSON.stringify([checkpoints, usable, status.key]);
      if (key !== drawn) {
        drawn = key;
        buttons.forEach(({ calm }) => calm());
        buttons = [];
        const last = checkpoints.at(-1)?.step;
        const body = checkpoints.toReversed().map(({ step, bytes, loss, best }) => {
          const cells = [element("th", { scope: "row" }, `step ${step}`), element("td", {}, quantity(bytes, "bytes")), element("td", {}, loss === null ? "–" : quantity(loss), best ? element("span", { class: "sb-best" }, " best") : "")];
          if (!usable) return element("tr", {}, ...cells);
          const dropped = status.step > step ? `Press again: steps ${step + 1} to ${status.step} are dropped${step === last ? "" : ", newer checkpoints set aside"}` : "Press again to resume";
          const resume = sureButton("Resume from here", dropped, () => commands.send("restart", { step }));
          resume.node.setAttribute("aria-label", `Resume from step ${step}`);
          buttons.push(resume);
          return element("tr", {}, ...cells, element("td", {}, resume.node));
        });
        const head = ["Checkpoint", "Size", "Held-out loss", ...(usable ? ["Go on"] : [])].map((text) => element("th", { scope: "col" }, text));
        const note = usable ? "A resumed run does again what came after its checkpoint." : "Stop the run to resume it from one of these.";
        node.replaceChildren(
          element("table", {}, element("caption", {}, note), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body)),
        );
      }
      return checkpoints.length > 0;
    },
    end: () => buttons.forEach(({ calm }) => calm()),
  };
}

/** Every command of this attempt, from here and from elsewhere, and what became of it. */
export function makeCommandList(tell) {
  const node = element("section", { class: "sb-panel" });
  let drawn = "";
  let known = null;
  let run = "";
  const standing = ({ step, error }) => (error ? `refused: ${error}` : step === null ? "waiting" : `in force after step ${step}`);
  return {
    id: "commands", title: "Commands", node,
    draw({ commands }, status) {
      const key = JSON.stringify([status.key, commands]);
      if (key !== drawn) {
        drawn = key;
        const fresh = status.key === run && known !== null ? commands.filter((one) => !one.here && known.get(one.n) !== standing(one)) : [];
        run = status.key;
        known = new Map(commands.map((one) => [one.n, standing(one)]));
        if (fresh.length) tell(fresh.map((one) => `${one.what}, sent elsewhere: ${standing(one)}`).join("; "), false);
        const rows = commands.toReversed().map((one) => [one.what, one.time === null ? "–" : new Date(1000 * one.time).toLocaleTimeString(), one.here ? "here" : "elsewhere", standing(one)]);
        node.replaceChildren(table(`Commands to attempt ${status.attempt}, the newest first`, ["Command", "Sent at", "Sent from", "What became of it"], rows));
      }
      return commands.length > 0;
    },
  };
}

/** The values of one run's charts as a table. `data()` gives { groups, series, key }. */
export function makeValues(page, data) {
  const region = element("div", { class: "sb-monitor-table", role: "region", tabindex: 0, "aria-label": "Values as a table" });
  const node = element("section", { class: "sb-panel" }, region);
  return {
    id: "values", title: "Table", node,
    draw() {
      if (node.hidden) return;
      const { groups, series, key } = data();
      const columns = groups.flatMap((group) => group.series.filter(({ name }) => series.get(`${key}:${name}`)?.[0].length).map((one) => ({ ...one, group, pair: series.get(`${key}:${one.name}`) })));
      const steps = columns.length ? allSteps(columns.map(({ pair }) => pair)) : [];
      const rows = evenly(steps, TABLE_ROWS).map((step) => [
        String(step),
        ...columns.map(({ pair, group }) => {
          const index = pair[0].indexOf(step);
          return index < 0 ? "" : quantity(pair[1][index], group.unit);
        }),
      ]);
      const heading = ({ group, label }) => (label && group.series.length > 1 ? label : group.title);
      region.replaceChildren(table(`${rows.length} of ${steps.length} steps`, ["Step", ...columns.map(heading)], rows));
    },
    open() {
      this.draw();
    },
  };
}
