/* The live view of run folders: state, progress, charts, samples, logs, ranks, checkpoints, failures, commands.
 *
 * Traits: `status` ({ runs }: small, changes often), `details` (text, changes seldom), `series` (see followSeries in
 * view.js; a series is named "<key of the run>:<metric>"). Messages to the kernel are { kind: "command" | "samples" |
 * "logs" | "ranks" | "leave" | "range" | "choices" | "add" | "since" | "hello" }, answers have the same kinds, or "answer".
 */

import { chartGrid } from "./chart_grid.js";
import { makeCommands, makeTop } from "./run_header.js";
import { makeLegend } from "./run_legend.js";
import { makeFailure, makeLogs, makeRanks } from "./run_logs.js";
import { makeCheckpoints, makeCommandList, makeSamples, makeTabs, makeValues } from "./run_panels.js";
import { announcer, element, followKernel, followKeys, followNews, followSeries, followTheme, keyHelp, onceAFrame, sendTo } from "./view.js";

const KEYS = [
  ["P", "pause, or resume"], ["C", "checkpoint now"], ["S", "stop and keep"], ["R", "resume a run that is over"], ["T", "table of the values"],
  ["L", "log scale"], ["← →", "on the charts: read values; with Shift by ten"], ["+ −", "on the charts: zoom"], ["0", "show all steps"],
];
const GONE = "The kernel is gone: run the cell again to go on.";

function render({ model, el }) {
  const page = crypto.getRandomValues(new Uint32Array(2)).join("");
  const speaker = announcer();
  const chosen = () => statuses().find(({ key }) => key === legend.chosen()) ?? statuses()[0];
  const statuses = () => model.get("status").runs;
  const details = () => model.get("details").runs[chosen().key] ?? Object.values(model.get("details").runs)[0];
  const commands = makeCommands(model, speaker, chosen);
  const legend = makeLegend(model, commands.settings, () => drawAll());
  const help = keyHelp(KEYS);
  const top = makeTop([...commands.buttons, help.opener.node]);
  const failure = makeFailure();
  const charts = chartGrid(model, { page, say: speaker.say });
  const values = makeValues(page, () => ({ groups: model.get("details").groups, series: data.series, key: chosen().key }));
  const panels = [makeSamples(model, () => chosen().key), makeCheckpoints(commands), makeRanks(model, page, chosen), makeLogs(model, page, chosen), makeCommandList(commands.tell), values];
  const tabs = makeTabs(page, panels);
  const root = element(
    "section",
    { class: "sb-view sb-monitor" },
    top.header, top.progress, commands.notice, legend.node, failure.node, charts.node, tabs.node, help.node, speaker.node,
  );
  el.replaceChildren(root);

  const drawSeries = onceAFrame(() => {
    charts.draw({ groups: model.get("details").groups, runs: legend.runs(), series: data.series, marks: details().marks });
    legend.draw(model.get("status"), model.get("details"), data.series);
    values.draw();
  });
  let said = "";
  let silent = ""; // why no kernel answers
  const drawStatus = (why) => {
    silent = why;
    const status = chosen();
    root.setAttribute("aria-label", `Run ${status.id}`);
    root.toggleAttribute("data-stale", Boolean(silent));
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
  const greet = () => sendTo(model, { kind: "hello", page }); // a monitor that was left behind sleeps while no page shows it
  const asked = (message) => message.kind === "who" && greet();
  model.on("msg:custom", asked);
  greet();
  model.on("change:details", drawDetails);
  drawDetails();
  tabs.start();
  const ends = [
    followNews(model, "change:status", () => statuses().some(({ final }) => !final), (quiet) => {
      drawStatus(quiet ? silent || `No news from the kernel since ${new Date().toLocaleTimeString()}: run the cell again to go on.` : "");
    }),
    followKernel(model, (gone) => drawStatus(gone ? GONE : "")),
    () => model.off("change:details", drawDetails),
    () => model.off("msg:custom", asked),
    data.end,
    commands.end,
    charts.end,
    legend.end,
    ...panels.map(({ end }) => end).filter(Boolean),
    followTheme(root, charts.recolor),
    followKeys(root, { p: commands.pause.press, c: commands.checkpoint.press, s: commands.stop.press, r: commands.restart.press, t: () => tabs.select(tabs.opened() === "values" ? "samples" : "values"), "?": help.toggle, ...charts.keys }),
  ];
  return () => {
    ends.forEach((end) => end());
    panels.forEach(({ close }) => close?.());
    sendTo(model, { kind: "leave", page });
  };
}

export default { render };
