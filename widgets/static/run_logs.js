/* Ranks and logs: asked of the kernel only while they are looked at, and kept up to date by it for so long. */

import { element, quantity, sendTo, show, write } from "./view.js";

const SEARCH_AFTER = 300;

/** The last lines that a rank printed, or those that hold some words. `chosen()` is the run's status. */
export function makeLogs(model, page, chosen) {
  const rank = element("select", { "aria-label": "Whose log" });
  const words = element("input", { type: "search", placeholder: "Search", "aria-label": "Search the log", spellcheck: "false" });
  const note = element("span", { class: "sb-muted", "aria-live": "polite" });
  const text = element("pre", { class: "sb-text-block sb-log", tabindex: 0, role: "region", "aria-label": "Log" });
  const node = element("section", { class: "sb-panel" }, element("div", { class: "sb-panel-bar" }, rank, words, note), text);
  let timer = null;
  let open = false;
  let asked = "";
  const wanted = () => ({ kind: "logs", run: chosen().key, rank: rank.value === "supervisor" ? "supervisor" : Number(rank.value), words: words.value, page: `${page}-logs` });
  const ask = () => {
    clearTimeout(timer);
    if (!open) return;
    asked = JSON.stringify(wanted());
    sendTo(model, wanted());
  };
  const receive = (message) => {
    if (message.kind !== "logs" || message.page !== `${page}-logs` || message.words !== words.value || message.run !== chosen().key) return;
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
    write(text, message.text);
    const what = message.words ? `${message.lines} lines hold it` : message.lines ? `the last ${message.lines} lines` : "nothing was printed";
    write(note, [what, message.cut].filter(Boolean).join("; "));
    if (atEnd) text.scrollTop = text.scrollHeight;
  };
  rank.addEventListener("change", ask);
  words.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, SEARCH_AFTER);
  });
  model.on("msg:custom", receive);
  const fill = () => {
    const names = [...Array.from({ length: chosen().processes ?? 1 }, (_, index) => [String(index), `Rank ${index}`]), ["supervisor", "Supervisor"]];
    if (rank.childElementCount === names.length) return;
    const before = rank.value;
    rank.replaceChildren(...names.map(([value, label]) => element("option", { value }, label)));
    rank.value = names.some(([value]) => value === before) ? before : "0";
  };
  return {
    id: "logs", title: "Logs", node,
    draw() {
      fill();
      if (open && asked !== JSON.stringify(wanted())) ask();
      return true;
    },
    open() {
      open = true;
      fill();
      ask();
    },
    close() {
      if (open) sendTo(model, { kind: "leave", page: `${page}-logs` });
      open = false;
    },
    end() {
      clearTimeout(timer);
      model.off("msg:custom", receive);
    },
  };
}

/** A row a rank: step time, its middle over the last steps, memory; the slowest is named, and bars show how they differ. */
export function makeRanks(model, page, chosen) {
  const region = element("div", { class: "sb-monitor-table", role: "region", tabindex: 0, "aria-label": "Ranks" });
  const node = element("section", { class: "sb-panel" }, region);
  let open = false;
  let asked = "";
  const ask = () => {
    if (!open) return;
    asked = chosen().key;
    sendTo(model, { kind: "ranks", run: asked, page: `${page}-ranks` });
  };
  const bar = (value, most) => {
    const fill = element("i", {});
    fill.style.width = `${most > 0 ? Math.round((100 * value) / most) : 0}%`;
    return element("span", { class: "sb-bar", "aria-hidden": "true" }, fill);
  };
  const receive = (message) => {
    if (message.kind !== "ranks" || message.page !== `${page}-ranks` || message.run !== chosen().key) return;
    const most = (name) => Math.max(...message.ranks.map((one) => one[name] ?? 0));
    const [slow, full] = [most("middle"), most("memory")];
    const rows = message.ranks.map((one) =>
      element(
        "tr",
        one.slowest ? { class: "sb-slowest" } : {},
        element("th", { scope: "row" }, `rank ${one.rank}${one.slowest ? ", slowest" : ""}`),
        element("td", {}, quantity(one.last ?? undefined, "s")),
        element("td", {}, quantity(one.middle ?? undefined, "s"), bar(one.middle ?? 0, slow)),
        element("td", {}, quantity(one.memory ?? undefined, "bytes"), bar(one.memory ?? 0, full)),
      ),
    );
    const head = ["Rank", "Last step", "Middle of the last 50", "Memory"].map((name) => element("th", { scope: "col" }, name));
    const slowest = message.ranks.find((one) => one.slowest);
    const caption = slowest ? `Rank ${slowest.rank} is the slowest of ${rows.length}` : `${rows.length} ranks, none much slower than the others`;
    const place = region.scrollTop;
    region.replaceChildren(element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
    region.scrollTop = place;
  };
  model.on("msg:custom", receive);
  return {
    id: "ranks", title: "Ranks", node,
    draw() {
      if (open && asked !== chosen().key) ask();
      return (chosen().processes ?? 1) > 1;
    },
    open() {
      open = true;
      ask();
    },
    close() {
      if (open) sendTo(model, { kind: "leave", page: `${page}-ranks` });
      open = false;
    },
    end: () => model.off("msg:custom", receive),
  };
}

/** Why the run failed or was lost: the report's words, traceback and the last lines of every rank. */
export function makeFailure() {
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
