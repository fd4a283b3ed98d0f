/* Several runs in one monitor: who is who, who is shown, which one is steered, what differs, and adding another. */

import { toneOf } from "./run_header.js";
import { compact, duration, element, sendTo, show, table, write } from "./view.js";

/** `told` is called when the choice changes; `beside` stands at the end of the row. Returns { node, runs(), chosen(), draw(status, details, series), end }. */
export function makeLegend(model, beside, told) {
  const list = element("ul", { class: "sb-monitor-runs", "aria-label": "Runs" });
  const add = element("button", { type: "button", class: "sb-button" }, "Compare with…");
  const choices = element("select", { "aria-label": "Run to compare with", hidden: true });
  const differences = element("div", { class: "sb-monitor-differences", role: "region", tabindex: 0, "aria-label": "What differs", hidden: true });
  const node = element("section", { class: "sb-monitor-legend", "aria-label": "Runs in this view" }, element("div", { class: "sb-monitor-legend-row" }, list, add, choices, beside), differences);
  const hidden = new Set();
  const rows = new Map();
  let statuses = [];
  let names = {};
  let focus = "0";

  const row = (key) => {
    const swatch = element("i", { class: "sb-line", "aria-hidden": "true" });
    swatch.style.color = `var(--sb-run-${Number(key) + 1})`;
    const choose = element("button", { type: "button", class: "sb-monitor-run" }, swatch, element("b", {}), element("span", { class: "sb-muted" }));
    const eye = element("button", { type: "button", class: "sb-monitor-eye" });
    choose.addEventListener("click", () => {
      focus = key;
      hidden.delete(key);
      told();
    });
    eye.addEventListener("click", () => {
      if (!hidden.delete(key)) hidden.add(key);
      told();
    });
    const made = { node: element("li", {}, choose, eye), choose, eye };
    list.append(made.node);
    rows.set(key, made);
    return made;
  };
  const drawRows = () => {
    for (const status of statuses) {
      const { choose, eye, node: item } = rows.get(status.key) ?? row(status.key);
      const name = names[status.key] ?? status.id;
      write(choose.children[1], name);
      write(choose.children[2], `${status.state}, step ${status.step}`);
      choose.dataset.tone = toneOf(status.state);
      choose.title = `${status.id}: show and steer this run`;
      choose.setAttribute("aria-pressed", String(status.key === focus));
      write(eye, hidden.has(status.key) ? "Show" : "Hide");
      eye.setAttribute("aria-label", `${hidden.has(status.key) ? "Show" : "Hide"} ${name}`);
      item.toggleAttribute("data-hidden", hidden.has(status.key));
    }
    show(list, statuses.length > 1);
  };
  const receive = (message) => {
    if (message.kind !== "choices" || !asking) return;
    asking = false;
    const options = message.runs.map(({ id, text }) => element("option", { value: id }, text));
    choices.replaceChildren(element("option", { value: "" }, options.length ? "Choose a run" : "There is no other run here"), ...options);
    show(choices, true);
    choices.focus();
  };
  let asking = false;
  add.addEventListener("click", () => {
    asking = true;
    sendTo(model, { kind: "choices" });
  });
  choices.addEventListener("change", () => {
    if (choices.value) sendTo(model, { kind: "add", id: choices.value });
    show(choices, false);
    add.focus();
  });
  model.on("msg:custom", receive);

  let drawn = "";
  return {
    node,
    /** [{ key, name, color, hidden }] of all runs. */
    runs: () => statuses.map(({ key }) => ({ key, name: names[key] ?? key, color: `--sb-run-${Number(key) + 1}`, hidden: hidden.has(key) })),
    /** Key of the run that is shown and steered. */
    chosen: () => focus,
    draw(status, details, series) {
      statuses = status.runs;
      names = Object.fromEntries(Object.entries(details.runs).map(([key, { name }]) => [key, name]));
      drawRows();
      show(differences, statuses.length > 1);
      if (statuses.length < 2) return;
      const found = [...details.differences.map(({ field, values }) => [field, ...values]), ...outcomes(statuses, series)];
      if (JSON.stringify(found) === drawn) return;
      drawn = JSON.stringify(found);
      const caption = details.differences.length ? "What differs in the recipes, and what came of it" : "The recipes are alike; what came of them";
      differences.replaceChildren(table(caption, ["", ...statuses.map(({ key, id }) => names[key] ?? id)], found));
    },
    end: () => model.off("msg:custom", receive),
  };
}

/** Rows of results under the differing fields. */
function outcomes(statuses, series) {
  const lowest = (name) => statuses.map(({ key }) => (series.get(`${key}:${name}`)?.[1] ?? []).reduce((least, value) => (Number.isFinite(value) && !(value >= least) ? value : least), undefined));
  const rows = [["lowest held-out loss", lowest("eval_loss")], ["lowest loss", lowest("loss")]].filter(([, values]) => values.some((value) => value !== undefined));
  return [
    ...rows.map(([title, values]) => [title, ...values.map((value) => compact(value, 4))]),
    ["time", ...statuses.map(({ elapsed }) => duration(elapsed))],
  ];
}
