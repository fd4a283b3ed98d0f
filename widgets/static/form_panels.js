/* What stands below a form's fields: the code and the JSON with a copy button, a text to read in, the values as a table. */

import { copyText, element, sendTo, show, table, write } from "./view.js";
import { draftRows } from "./form_draft.js";

const WHOLE_BELOW = 20_000;
const MOST_ROWS = 300;
const LARGEST = 8_000_000;

/** The code, brief or with every field; JSON; both to be copied. Returns { nodes, draw(verdict), end }. */
export function textPanels(model, pageId, say) {
  const every = element("input", { type: "checkbox" });
  const code = textPanel("Code", true, () => (every.checked ? "code" : "brief"), element("label", { class: "sb-choice" }, every, "every field"));
  const json = textPanel("JSON", false, () => "json");
  let verdict = {};
  const draw = (latest) => {
    verdict = latest;
    for (const panel of [code, json]) write(panel.pre, verdict[panel.name()] || "There is no text while a field is wrong.");
  };
  every.addEventListener("change", () => draw(verdict));
  const copied = async (text, panel) => say((await copyText(text, panel.pre)) ? `${panel.title} copied.` : `${panel.title} selected: press Ctrl+C.`);
  let asked = null;
  for (const panel of [code, json]) {
    panel.copy.addEventListener("click", () => {
      const text = verdict[panel.name()];
      if (!text) return say("There is no text while a field is wrong.");
      if (text.length < WHOLE_BELOW) return copied(text, panel);
      asked = panel;
      sendTo(model, { kind: "whole", page: pageId, name: panel.name() });
    });
  }
  const receive = (message) => message.kind === "whole" && message.page === pageId && asked && copied(message.text, asked);
  model.on("msg:custom", receive);
  return { nodes: [code.node, json.node], draw, end: () => model.off("msg:custom", receive) };
}

function textPanel(title, open, name, ...more) {
  const copy = element("button", { type: "button", class: "sb-small", "aria-label": `Copy ${title}`, "data-key": `copy ${title}` }, "Copy");
  const pre = element("pre", { class: "sb-text-block", tabindex: 0, role: "region", "aria-label": title });
  const node = element("details", { class: "sb-panel", open }, element("summary", {}, title), element("div", { class: "sb-panel-tools" }, copy, ...more), pre);
  return { title, name, copy, pre, node };
}

/** A text area that takes code or JSON, typed, pasted or dropped anywhere on `root`. Returns { node, end }. */
export function readPanel(model, pageId, root, say) {
  const area = element("textarea", { rows: 5, "aria-label": "Code or JSON to read", spellcheck: "false", placeholder: "FineTune(steps=40) or {\"type\": \"FineTune\", …}; nothing is evaluated" });
  const button = element("button", { type: "button", class: "sb-small" }, "Read into the form");
  const answer = element("p", { class: "sb-error", hidden: true, role: "alert" });
  const node = element("details", { class: "sb-panel" }, element("summary", {}, "Read code or JSON"), area, element("div", { class: "sb-panel-tools" }, button), answer);
  const tell = (text) => {
    write(answer, text);
    show(answer, Boolean(text));
  };
  const read = () => {
    tell("");
    sendTo(model, { kind: "read", page: pageId, text: area.value });
  };
  const receive = (message) => {
    if (message.kind !== "answer" || message.page !== pageId) return;
    tell(message.error);
    if (message.error) return;
    area.value = "";
    say("Read into the form.");
  };
  const drop = async (event) => {
    const file = event.dataTransfer?.files?.[0];
    const text = event.dataTransfer?.getData("text/plain");
    if ((!file && !text) || (!file && event.target.matches("input, textarea"))) return;
    event.preventDefault();
    event.stopPropagation();
    node.open = true;
    if (file && file.size > LARGEST) return tell(`${file.name}: too large to be a recipe`);
    area.value = file ? await file.text() : text;
    read();
  };
  const over = (event) => event.dataTransfer && event.preventDefault();
  button.addEventListener("click", read);
  model.on("msg:custom", receive);
  root.addEventListener("drop", drop);
  root.addEventListener("dragover", over);
  return {
    node,
    end() {
      model.off("msg:custom", receive);
      root.removeEventListener("drop", drop);
      root.removeEventListener("dragover", over);
    },
  };
}

/** Every field as a table, drawn while it is open. Returns { node, draw }. */
export function tablePanel(rowsNow) {
  const node = element("details", { class: "sb-panel" }, element("summary", {}, "Values as a table"));
  const draw = () => {
    node.querySelector(".sb-panel-table")?.remove();
    if (!node.open) return;
    const rows = rowsNow();
    const caption = rows.length > MOST_ROWS ? `${MOST_ROWS} of ${rows.length} fields` : `${rows.length} fields`;
    const twin = table(caption, ["Field", "Value", "Default"], rows.slice(0, MOST_ROWS));
    node.append(element("div", { class: "sb-panel-table", role: "region", tabindex: 0, "aria-label": "Values as a table" }, twin));
  };
  node.addEventListener("toggle", draw);
  return { node, draw };
}

/** Rows of the whole form: [field, value, default where it differs]. */
export function formRows(schema, draft) {
  return draftRows(schema.root, draft, undefined, "", schema.classes);
}
