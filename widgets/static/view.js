/* What every widget shares: elements, number formats, theme, keyboard, announcements, tables, deltas.
 *
 * Text from a run reaches the page only through `textContent`. Nothing here requests anything.
 * `view.py` joins the modules of a widget into one; keep imports of the form `import { a, b } from "./file.js";`.
 */

const GAP = "–";
const MOST_POINTS = 8000;
const SILENCE = 10_000;

/** An element with attributes and children; a child that is not a node becomes text. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

/** Change an element's text only if it differs, so that a reader or a selection is not disturbed. */
export function write(node, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Show or hide an element. */
export function show(node, visible) {
  node.hidden = !visible;
}

const PREFIXES = ["", "k", "M", "G", "T", "P"];
const BYTE_PREFIXES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** A number in `digits` significant digits: 1234567 -> "1.23 M", 0.0001 -> "1e−4". Same rules as `view.compact`.
 *
 * Series hold null where the run wrote NaN or an infinity, and nothing where it wrote nothing.
 */
export function compact(value, digits = 3) {
  if (value === undefined) return GAP;
  if (value === null || Number.isNaN(value)) return "not finite";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.01 || size >= 1e18) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`.replace(/-/g, "−");
  }
  return scaled(value, digits, 1000, PREFIXES);
}

/** A number with its unit: quantity(1234567, "bytes") -> "1.18 MiB", quantity(0.034, "s") -> "34 ms". */
export function quantity(value, unit = "", digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return compact(value);
  if (unit === "bytes") return scaled(Math.abs(value) >= 1023.5 ? value : Math.floor(value + 0.5), digits, 1024, BYTE_PREFIXES);
  if (unit === "s" && value >= 60) return duration(value);
  if (unit === "s" && value > 0 && value < 0.9995) return `${compact(value * 1000, digits)} ms`;
  return unit ? `${compact(value, digits)} ${unit}` : compact(value, digits);
}

function scaled(value, digits, base, prefixes) {
  let power = 0;
  while (power < prefixes.length - 1 && Math.abs(Number(value.toPrecision(Math.max(digits, base === 1024 ? 4 : 3)))) >= base) {
    value /= base;
    power += 1;
  }
  const wholeDigits = String(Math.floor(Math.abs(value) + 0.5)).length;
  const text = Number.isInteger(value) ? String(value) : value.toPrecision(Math.max(digits, wholeDigits));
  return `${text} ${prefixes[power]}`.trimEnd().replace("-", "−");
}

/** Seconds in the two largest units: 3725 -> "1 h 2 min". Same rules as `view.duration`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return GAP;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Keep `root.dataset.theme` at "light" or "dark": JupyterLab's theme, else the system's. Returns a function that ends it. */
export function followTheme(root, changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const light = document.body.dataset.jpThemeLight;
    const theme = (light === undefined ? system.matches : light === "false") ? "dark" : "light";
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed();
  };
  const observer = new MutationObserver(apply);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  system.addEventListener("change", apply);
  apply();
  return () => {
    observer.disconnect();
    system.removeEventListener("change", apply);
  };
}

/** Keys for actions while the focus is inside `root`: { p: pause, "Control+z": undo }. Returns a function that ends it.
 *
 * In a text field single keys are text; chords work everywhere inside, Command as Control. JupyterLab's own shortcuts take
 * plain keys too; they and the chords used here are held off inside `root`, the other chords and Escape stay with it.
 */
export function followKeys(root, actions) {
  const isChord = (event) => event.ctrlKey || event.metaKey || event.altKey;
  const find = (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!isChord(event)) return isTyping(event.target) ? null : actions[key];
    const parts = [(event.ctrlKey || event.metaKey) && "Control", event.altKey && "Alt", event.shiftKey && "Shift", key];
    return actions[parts.filter(Boolean).join("+")];
  };
  const guard = (event) => {
    const holds = isChord(event) ? Boolean(find(event)) : event.key !== "Escape";
    root.toggleAttribute("data-lm-suppress-shortcuts", holds);
  };
  const press = (event) => {
    const action = event.key !== "Escape" && find(event);
    if (action && action(event) !== false) event.preventDefault();
  };
  window.addEventListener("keydown", guard, true);
  root.addEventListener("keydown", press);
  return () => {
    window.removeEventListener("keydown", guard, true);
    root.removeEventListener("keydown", press);
  };
}

/** Whether a key pressed at `node` is text or a choice there. */
function isTyping(node) {
  return node instanceof Element && node.matches("textarea, select, [contenteditable], input:not([type=checkbox], [type=radio], [type=range])");
}

/** What the keys do, behind a button: { node, opener, toggle }; give `toggle` to the key "?". `keys` is [[key, what it does], ...]. */
export function keyHelp(keys) {
  const rows = keys.flatMap(([key, text]) => [element("dt", {}, ...key.split(" ").map((one) => element("kbd", {}, one))), element("dd", {}, text)]);
  const node = element("dl", { class: "sb-keys", hidden: true }, ...rows);
  const toggle = () => {
    show(node, node.hidden);
    opener.node.setAttribute("aria-expanded", String(!node.hidden));
  };
  const opener = button("Keys", "?", toggle);
  opener.set({ enabled: true, title: "What the keys do." });
  opener.node.setAttribute("aria-expanded", "false");
  return { node, opener, toggle };
}

/** A region read out by screen readers: { node, say }. The same text twice in a row is said once. */
export function announcer() {
  const node = element("p", { class: "sb-unseen", "aria-live": "polite", role: "status" });
  return { node, say: (text) => write(node, text) };
}

/** A button that stays focusable while it cannot be used: { node, set({ label, enabled, title }), press }. `key` may be null. */
export function button(label, key, act) {
  const shortcut = key && (key.length === 1 ? key.toUpperCase() : key);
  const node = element("button", { type: "button", class: "sb-button", "aria-keyshortcuts": shortcut, title: shortcut && `Key: ${shortcut}` }, label);
  const enabled = () => node.getAttribute("aria-disabled") !== "true";
  const press = () => enabled() && act();
  node.addEventListener("click", press);
  const set = ({ label: text = label, enabled: usable, title = "" }) => {
    write(node, text);
    node.setAttribute("aria-disabled", String(!usable));
    node.title = [title, shortcut && `Key: ${shortcut}`].filter(Boolean).join(" ");
  };
  return { node, set, press };
}

/** A table: `columns` are headings, `rows` lists of texts whose first is the row's heading. */
export function table(caption, columns, rows) {
  const head = element("tr", {}, ...columns.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((text) => element("td", {}, text))),
  );
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

/** Follow series that the kernel sends in pieces; `changed` is called after each. Returns { series, ask, end }.
 *
 * `series` maps a name to [steps, values]. The trait `series` holds a thin copy {seq, points} for the first picture;
 * messages {kind: "series", since, seq, points} continue it. A piece that does not continue what is here is answered
 * by a question for the whole ({kind: "since", seq: 0}), and so is a series that has grown long: the whole is down-sampled.
 */
export function followSeries(model, changed) {
  const series = new Map();
  let here = 0;
  const replace = ({ seq, points }) => {
    series.clear();
    for (const [name, [steps, values]] of Object.entries(points)) series.set(name, [[...steps], [...values]]);
    here = seq;
    changed();
  };
  const receive = (message) => {
    if (message.kind !== "series") return;
    if (message.since === 0) return replace(message);
    if (message.since !== here) return message.seq > here && ask();
    for (const [name, [steps, values]] of Object.entries(message.points)) {
      if (!series.has(name)) series.set(name, [[], []]);
      const kept = series.get(name);
      kept[0].push(...steps);
      kept[1].push(...values);
    }
    here = message.seq;
    if ([...series.values()].some(([steps]) => steps.length > MOST_POINTS)) ask();
    changed();
  };
  const ask = () => sendTo(model, { kind: "since", seq: 0 });
  const stored = () => model.get("series").seq > here && replace(model.get("series"));
  model.on("msg:custom", receive);
  model.on("change:series", stored);
  stored();
  ask();
  return {
    series,
    end: () => {
      model.off("msg:custom", receive);
      model.off("change:series", stored);
    },
  };
}

/** Tell when the kernel falls silent and when it speaks again; `isDue()` says whether news is due. Returns a function that ends it.
 *
 * A kernel may be there and send nothing: what is shown must then not pass for the present.
 */
export function followNews(model, event, isDue, tell) {
  let timer = null;
  const lost = () => isDue() && tell(true);
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(lost, SILENCE);
    tell(false);
  };
  model.on(event, heard);
  heard();
  return () => {
    clearTimeout(timer);
    model.off(event, heard);
  };
}

/** Send a message to the kernel; whether there was one to send it to. */
export function sendTo(model, message) {
  try {
    model.send(message);
    return true;
  } catch {
    return false; // the connection is closed: followKernel tells
  }
}

/** Tell when the view's kernel goes, and when it is there after all: `tell(gone)`. Returns a function that ends it.
 *
 * The model says only that its connection changed; so the kernel is asked, and answers {kind: "here"} to {kind: "hello"}.
 */
export function followKernel(model, tell) {
  const changed = () => {
    tell(true);
    sendTo(model, { kind: "hello" });
  };
  const heard = (message) => message.kind === "here" && tell(false);
  model.on("comm_live_update", changed);
  model.on("msg:custom", heard);
  return () => {
    model.off("comm_live_update", changed);
    model.off("msg:custom", heard);
  };
}

/** Put text on the clipboard; where the page may not, select it in `node`. Returns whether it was copied. */
export async function copyText(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return false;
  }
}

/** Call `draw` at most once a frame, however often the returned function is called. */
export function onceAFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}
