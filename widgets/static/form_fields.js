/* Controls of a form, drawn from the schema and the draft.
 *
 * `page` is what form.js gives: { classes, draft(), edit(path, node, options), watch(f), holders, open, suggestions, id() }.
 * A control is { inline, block }: what stands beside the field's name, and what needs the whole width below it.
 */

import { element, show, write } from "./view.js";
import { blankDraft, draftAt, keyOf, leafText, sameDraft, stepped, wrongDraft } from "./form_draft.js";

const FEW = 12;

/** The controls of the whole: the fields of a value, or first the choice of its class. */
export function drawRoot(page, control) {
  if (control.kind === "value") return drawFields(page, control, []);
  return [drawField(page, { name: "kind", help: "", required: false, default: undefined, control }, [])];
}

/** The fields of a value; of many, those after the first twelve behind a disclosure. */
function drawFields(page, control, path) {
  const rows = page.classes[control.class].fields.map((field) => drawField(page, field, [...path, field.name]));
  if (rows.length <= FEW + 2) return rows;
  const title = element("summary", {});
  const rest = disclosure(page, keyOf(path, "rest"), false, title, ...rows.slice(FEW));
  page.watch(() => {
    const changed = rest.querySelectorAll(".sb-field[data-changed]").length;
    write(title, `${rows.length - FEW} more fields${changed ? `, ${changed} changed` : ""}`);
  });
  return [...rows.slice(0, FEW), rest];
}

/** <details> that stays as a person left it when the form is drawn again; `open` is how it begins. */
function disclosure(page, key, open, title, ...children) {
  const node = element("details", { class: "sb-rest", open: page.open.get(key) ?? open, "data-open": key, "data-begins": String(open) }, title, ...children);
  title.addEventListener("click", () => page.open.set(key, !node.open));
  return node;
}

/** One field: name, mark and reset where it differs from its default, control, help, what is wrong. */
function drawField(page, field, path) {
  const [id, help, error, label] = [page.id(), page.id(), page.id(), page.id()];
  const holder = holderOf(error);
  const control = drawControl(page, field.control, path, { id, label: field.name, describedBy: `${help} ${error}`, holder, required: field.required });
  const named = control.inline && (control.inline.id === id || control.inline.querySelector(`#${id}`));
  const name = element(named ? "label" : "span", { class: "sb-field-name", id: label, ...(named ? { for: id } : {}) }, field.name);
  const changed = element("span", { class: "sb-unseen" }, "changed");
  const reset = element("button", { type: "button", class: "sb-small", "aria-label": `Reset ${field.name} to its default`, "data-key": keyOf(path, "reset") }, "Reset");
  reset.addEventListener("click", () => page.edit(path, structuredClone(field.default), { redraw: true, focus: keyOf(path) }));
  const node = element(
    "div",
    { class: "sb-field", "data-at": keyOf(path), "data-words": `${path.join(" ")} ${field.help}`.toLowerCase(), ...(named ? {} : { role: "group", "aria-labelledby": label }) },
    element("div", { class: "sb-field-head" }, name, field.required ? element("span", { class: "sb-muted" }, "required") : "", changed, reset),
    element(
      "div",
      { class: "sb-field-side" },
      element("div", { class: "sb-field-inline" }, control.inline ?? ""),
      element("p", { class: "sb-help", id: help }, field.help),
      holder.node,
    ),
    control.block ? element("div", { class: "sb-field-block" }, control.block) : "",
  );
  page.watch(() => {
    const now = draftAt(page.draft(), path);
    const differs = field.default !== undefined && now !== field.default && !sameDraft(field.control, now, field.default, page.classes);
    node.toggleAttribute("data-changed", differs);
    show(changed, differs);
    show(reset, differs);
  });
  return node;
}

/** Range of a number in a few words, or "": 0 to 1, 1 or more, above 0. */
function rangeOf({ low, high, exclusive }) {
  const from = low === null ? "" : exclusive ? `above ${low}` : String(low);
  if (high === null) return low === null || exclusive ? from : `${from} or more`;
  return low === null ? `up to ${high}` : exclusive ? `${from}, up to ${high}` : `${from} to ${high}`;
}

/** Where what is wrong is told: { node, tell(text), fields }. */
function holderOf(id) {
  const node = element("p", { class: "sb-error", id, hidden: true });
  const fields = [];
  return {
    node,
    fields,
    tell(text, path) {
      write(node, text);
      show(node, Boolean(text));
      for (const field of fields) field.node.setAttribute("aria-invalid", String(Boolean(text) && (!path || keyOf(field.path) === keyOf(path))));
    },
  };
}

function drawControl(page, control, path, place) {
  page.holders.set(keyOf(path), place.holder);
  const node = draftAt(page.draft(), path);
  if (node?.kept) return drawKept(page, control, path, node, place);
  switch (control.kind) {
    case "union":
      return drawUnion(page, control, path, node, place);
    case "value":
      return drawValue(page, control, path);
    case "tuple":
    case "sites":
      return drawList(page, control, path, node ?? [], place);
    case "none":
      return { inline: null, block: null };
  }
  return { inline: drawLeaf(page, control, path, node, place), block: null };
}

/** The fields of a value inside another, folded while all hold their defaults and nobody asked for them. */
function drawValue(page, control, path) {
  const { title, fields } = page.classes[control.class];
  if (!fields.length) return { inline: null, block: title && title !== control.label ? element("p", { class: "sb-about" }, title) : null };
  const about = title && title !== control.label ? element("p", { class: "sb-about" }, title) : "";
  const body = element("div", { class: "sb-fields" }, about, ...drawFields(page, control, path));
  const summary = element("summary", {});
  const changedNow = () => fields.filter((field) => !sameDraft(field.control, draftAt(page.draft(), path)?.[field.name], field.default, page.classes));
  page.watch(() => {
    const changed = changedNow().map(({ name, control: inner }) => `${name}=${leafText(inner, draftAt(page.draft(), path)?.[name], page.classes)}`);
    write(summary, `${control.label}: ${changed.join(", ").slice(0, 90) || (fields.length === 1 ? "1 field, as by default" : `${fields.length} fields, all as by default`)}`);
  });
  return { inline: null, block: disclosure(page, keyOf(path, "fields"), changedNow().length > 0, summary, body) };
}

function drawLeaf(page, control, path, node, place) {
  const common = { id: place.id, "data-key": keyOf(path), "aria-describedby": place.describedBy, "aria-label": place.name, "aria-required": place.required };
  let field;
  if (control.kind === "bool") {
    field = element("input", { type: "checkbox", ...common });
    field.checked = node === true;
    field.addEventListener("change", () => page.edit(path, field.checked));
  } else if (control.kind === "literal") {
    field = element("select", common, ...control.choices.map((text, at) => element("option", { value: at }, text)));
    field.value = node === null ? "" : String(node);
    field.addEventListener("change", () => page.edit(path, Number(field.value)));
  } else {
    const range = control.kind === "str" ? "" : rangeOf(control);
    const hint = element("span", { class: "sb-muted", id: page.id() }, range);
    if (range) common["aria-describedby"] += ` ${hint.id}`;
    field = drawText(page, control, path, node, common, place);
    place.holder.fields.push({ node: field, path });
    return range ? element("span", { class: "sb-choice" }, field, hint) : field;
  }
  place.holder.fields.push({ node: field, path });
  return field;
}

/** A number or a text. Shift+Enter begins a second line, the arrow keys step a number. */
function drawText(page, control, path, node, common, place) {
  const isNumber = control.kind !== "str";
  const isLong = !isNumber && /\n/.test(node ?? "");
  const shape = isLong ? { rows: Math.min(10, node.split("\n").length) } : { type: "text", inputmode: control.kind === "int" ? "numeric" : isNumber ? "decimal" : null };
  const field = element(isLong ? "textarea" : "input", { ...common, ...shape, class: isNumber ? "sb-number" : "sb-line", autocomplete: "off", spellcheck: "false", placeholder: place.required ? "required" : null });
  field.value = node ?? "";
  const take = (redraw = false) => {
    const text = field.value === "" && place.required && !isNumber ? null : field.value;
    place.holder.tell(wrongDraft(control, text), path);
    page.edit(path, text, { typing: true, redraw });
  };
  field.addEventListener("input", () => take());
  if (!isNumber) {
    const breakLine = (added) => {
      const [from, to] = [field.selectionStart, field.selectionEnd];
      const text = field.value.slice(0, from) + added + field.value.slice(to);
      page.edit(path, text, { redraw: true, focus: keyOf(path), caret: from + added.length });
    };
    field.addEventListener("keydown", (event) => {
      if (isLong || event.key !== "Enter" || !event.shiftKey) return;
      event.preventDefault();
      breakLine("\n");
    });
    field.addEventListener("paste", (event) => {
      const text = event.clipboardData?.getData("text/plain") ?? "";
      if (isLong || !text.includes("\n")) return;
      event.preventDefault();
      breakLine(text);
    });
  } else {
    field.addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      field.value = stepped(control, field.value, by * (event.shiftKey ? 10 : 1));
      take();
    });
  }
  return field;
}

/** What is too long for a page: its size and beginning, and a way to give another. */
function drawKept(page, control, path, node, place) {
  const key = keyOf(path);
  const replace = element("button", { type: "button", class: "sb-small", id: place.id, "data-key": key, "aria-describedby": place.describedBy }, `Replace (${node.about})`);
  replace.addEventListener("click", () => page.edit(path, control.kind === "str" ? "" : [], { redraw: true, focus: key }));
  place.holder.fields.push({ node: replace, path });
  return { inline: replace, block: element("pre", { class: "sb-text-block", tabindex: 0, role: "region", "aria-label": `Beginning of ${place.label}` }, `${node.head} …`) };
}

/** The choice of a union's member, literals one by one, then that member's own control. */
function drawUnion(page, control, path, node, place) {
  const entries = control.options.flatMap((option, at) =>
    option.kind === "literal" ? option.choices.map((text, choice) => ({ at, choice, text })) : [{ at, choice: null, text: option.label }],
  );
  const select = element("select", { id: place.id, class: "sb-kind", "data-key": keyOf(path), "aria-describedby": place.describedBy, "aria-label": place.name }, ...entries.map(({ text }, at) => element("option", { value: at }, text)));
  const inner = node?.of?.[node.at];
  const option = control.options[node?.at ?? 0];
  select.value = String(entries.findIndex(({ at, choice }) => at === node?.at && (choice === null || choice === inner)));
  select.addEventListener("change", () => {
    const { at, choice } = entries[Number(select.value)];
    const now = draftAt(page.draft(), path) ?? { of: {} };
    const chosen = choice ?? now.of[at] ?? blankDraft(control.options[at], page.classes);
    page.open.set(keyOf([...path, "of", String(at)], "fields"), true);
    page.edit(path, { at, of: { ...now.of, [at]: structuredClone(chosen) } }, { redraw: true, focus: keyOf(path) });
  });
  place.holder.fields.push({ node: select, path });
  if (option.kind === "literal" || option.kind === "none") {
    page.holders.set(keyOf([...path, "of", String(node?.at)]), place.holder);
    return { inline: select, block: null };
  }
  const name = option.kind === "value" ? null : `${place.label}: ${option.label}`;
  const own = drawControl(page, option, [...path, "of", String(node.at)], { ...place, id: page.id(), name });
  return { inline: element("span", { class: "sb-choice" }, select, own.inline ?? ""), block: own.block };
}

/** Rows that can be added, removed and moved: the items of a tuple, or patterns with what they name. */
function drawList(page, control, path, items, place) {
  const isSites = control.kind === "sites";
  const word = isSites ? "pattern" : "item";
  const replace = (next, focus) => page.edit(path, next, { redraw: true, focus });
  const add = element("button", { type: "button", class: "sb-small", id: place.id, "data-key": keyOf(path), "aria-describedby": place.describedBy, "aria-label": `Add ${word} to ${place.label}` }, `Add ${word}`);
  add.addEventListener("click", () => {
    const now = draftAt(page.draft(), path) ?? [];
    const blank = blankDraft(control.item, page.classes);
    page.open.set(keyOf(isSites ? [...path, now.length, 1] : [...path, now.length], "fields"), true);
    replace([...now, isSites ? ["", blank] : blank], keyOf([...path, now.length, ...(isSites ? [0] : [])]));
  });
  place.holder.fields.push({ node: add, path });
  const rows = items.map((item, at) => drawRow(page, control, path, at, items.length, place, replace));
  const count = element("span", { class: "sb-muted" }, items.length === 1 ? `1 ${word}` : `${items.length} ${word}s`);
  return { inline: element("span", { class: "sb-choice" }, count, add), block: rows.length ? element("div", { class: "sb-rows" }, ...rows) : null };
}

function drawRow(page, control, path, at, length, place, replace) {
  const isSites = control.kind === "sites";
  const [error, id] = [page.id(), page.id()];
  const holder = holderOf(error);
  const name = `${place.label} ${at + 1}`;
  const here = [...path, at];
  page.holders.set(keyOf(here), holder);
  const inner = drawControl(page, control.item, isSites ? [...here, 1] : here, { id, label: name, name: isSites ? `${name}: value` : name, describedBy: error, holder });
  const button = (role, text, label, enabled, act) => {
    const node = element("button", { type: "button", class: "sb-small", "data-key": keyOf(here, role), "aria-label": `${label} ${name}`, "aria-disabled": String(!enabled), title: label }, text);
    node.addEventListener("click", () => enabled && act(draftAt(page.draft(), path)));
    return node;
  };
  const move = (by) => (now) => {
    const next = [...now];
    [next[at], next[at + by]] = [next[at + by], next[at]];
    replace(next, keyOf([...path, at + by], by < 0 ? "up" : "down"));
  };
  const remove = (now) => replace(now.filter((_, other) => other !== at), at < length - 1 ? keyOf(here, "remove") : keyOf(path));
  const tools = element(
    "span",
    { class: "sb-tools" },
    button("up", "↑", "Move up", at > 0, move(-1)),
    button("down", "↓", "Move down", at < length - 1, move(1)),
    button("remove", "✕", "Remove", true, remove),
  );
  const row = element("div", { class: "sb-row", role: "group", "aria-label": name }, isSites ? drawPattern(page, path, at, name, holder) : "", element("div", { class: "sb-row-inline" }, inner.inline ?? ""), tools, holder.node, inner.block ? element("div", { class: "sb-field-block" }, inner.block) : "");
  return row;
}

/** A pattern of module names, and how many modules it matches. */
function drawPattern(page, path, at, name, holder) {
  const [here, id] = [[...path, at, 0], page.id()];
  page.holders.set(keyOf(here), holder);
  const field = element("input", { type: "text", class: "sb-pattern", "data-key": keyOf(here), "aria-label": `${name}: pattern`, "aria-describedby": id, list: page.suggestions, autocomplete: "off", spellcheck: "false", placeholder: "*.q_proj" });
  field.value = draftAt(page.draft(), here) ?? "";
  field.addEventListener("input", () => page.edit(here, field.value, { typing: true }));
  holder.fields.push({ node: field, path: here });
  const count = element("span", { class: "sb-count", id });
  page.watch(() => {
    const told = page.counts().get(keyOf(path))?.[at];
    write(count, told ? told.text : "");
    count.dataset.tone = told?.tone ?? "";
    count.title = told?.examples ?? "";
  });
  return element("div", { class: "sb-pattern-side" }, field, count);
}
