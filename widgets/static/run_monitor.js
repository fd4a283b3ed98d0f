/* The live view of run folders: state, progress, charts, samples, logs, ranks, checkpoints, failures, commands.
 *
 * Traits: `status` ({ runs }: small, changes often), `details` (text, changes seldom), `series` (see followSeries in
 * view.js; a series is named "<key of the run>:<metric>"). Messages to the kernel are { kind: "command" | "samples" |
 * "logs" | "ranks" | "leave" | "range" | "choices" | "add" | "since" }, answers have the same kinds, or "answer".
 */

import { chartGrid } from "./chart_grid.js";
import { makeCommands, makeTop } from "./run_header.js";
import { makeLegend } from "./run_legend.js";
import { makeFailure, makeLogs, makeRanks } from "./run_logs.js";
import { makeCheckpoints, makeCommandList, makeSamples, makeTabs, makeValues } from "./run_panels.js";
import { announcer, element, followKeys, followNews, followSeries, followTheme, onceAFrame } from "./view.js";

const KEYS = "Keys: P pause or resume, C checkpoint, S stop and keep, T table, L log scale; on the charts arrows read values, + and − zoom, 0 shows all.";

function render({ model, el }) {
  const page = crypto.getRandomValues(new Uint32Array(2)).join("");
  const speaker = announcer();
  const chosen = () => statuses().find(({ key }) => key === legend.chosen()) ?? statuses()[0];
  const statuses = () => model.get("status").runs;
  const details = () => model.get("details").runs[chosen().key] ?? Object.values(model.get("details").runs)[0];
  const commands = makeCommands(model, speaker, chosen);
  const legend = makeLegend(model, commands.settings, () => drawAll());
  const top = makeTop(commands);
  const failure = makeFailure();
  const charts = chartGrid(model, { page, say: speaker.say });
  const values = makeValues(page, () => ({ groups: model.get("details").groups, series: data.series, key: chosen().key }));
  const panels = [makeSamples(model, () => chosen().key), makeCheckpoints(commands), makeRanks(model, page, chosen), makeLogs(model, page, chosen), makeCommandList(commands.tell), values];
  const tabs = makeTabs(page, panels);
  const keys = element("p", { class: "sb-monitor-keys" }, KEYS);
  const root = element(
    "section",
    { class: "sb-view sb-monitor" },
    top.header, top.progress, commands.notice, legend.node, failure.node, charts.node, tabs.node, keys, speaker.node,
  );
  el.replaceChildren(root);

  const drawSeries = onceAFrame(() => {
    charts.draw({ groups: model.get("details").groups, runs: legend.runs(), series: data.series, marks: details().marks });
    legend.draw(model.get("status"), model.get("details"), data.series);
    values.draw();
  });
  let said = "";
  let silent = false;
  const drawStatus = (now) => {
    silent = now;
    const status = chosen();
    root.setAttribute("aria-label", `Run ${status.id}`);
    root.toggleAttribute("data-stale", silent);
    top.draw(status);
    commands.draw(silent);
    legend.draw(model.get("status"), model.get("details"), data.series);
    if (status.summary !== said) speaker.say((said = status.summary));
    drawPanels();
  };
  const drawPanels = () => {
    const found = details();
    tabs.draw(panels.filter((panel) => panel === values || panel.draw(found, chosen())).map(({ id }) => id));
  };
  const drawDetails = () => {
    failure.draw(details());
    drawPanels();
    drawSeries();
  };
  const drawAll = () => {
    drawStatus(silent);
    drawDetails();
  };
  const data = followSeries(model, drawSeries);
  model.on("change:details", drawDetails);
  drawDetails();
  tabs.start();
  const ends = [
    followNews(model, "change:status", () => statuses().some(({ final }) => !final), drawStatus),
    () => model.off("change:details", drawDetails),
    data.end,
    commands.end,
    charts.end,
    legend.end,
    ...panels.map(({ end }) => end).filter(Boolean),
    followTheme(root, charts.recolor),
    followKeys(root, { p: commands.pause.press, c: commands.checkpoint.press, s: commands.stop.press, r: commands.restart.press, t: () => tabs.select(tabs.opened() === "values" ? "samples" : "values"), ...charts.keys }),
  ];
  return () => {
    panels.forEach(({ close }) => close?.());
    ends.forEach((end) => end());
  };
}

export default { render };
