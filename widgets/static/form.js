/* A form for a value: its fields with help, what is wrong at once, undo, the code and the JSON.
 *
 * Traits: `schema` (controls and classes), `draft` ({ root, seen }), `verdict` (problems, texts, counts). The kernel owns the
 * draft. An edit is drawn here at once and sent as {kind: "edit", page, n, path, node}; until the kernel has seen it, it is
 * applied again on every draft that comes, so that two pages can edit at once.
 */

import { announcer, button, element, followKernel, followKeys, followTheme, keyHelp, show, write } from "./view.js";
import { blankDraft, keyOf } from "./form_draft.js";
import { makeDraft } from "./form_edits.js";
import { drawRoot } from "./form_fields.js";
import { formRows, readPanel, tablePanel, textPanels } from "./form_panels.js";

const MANY = 12;

let forms = 0;

function render({ model, el }) {
  const speaker = announcer();
  const form = makeForm(model, speaker);
  el.replaceChildren(form.root);
  form.start();
  const ends = [
    followTheme(form.root, () => {}),
    followKernel(model, form.setGone),
    followKeys(form.root, {
      "Control+z": form.undo,
      "Control+Shift+z": form.redo,
      "Control+y": form.redo,
      "?": form.toggleKeys,
      "/": form.search,
    }),
    form.end,
  ];
  return () => ends.forEach((end) => end());
}

function makeForm(model, speaker) {
  const pageId = Math.random().toString(36).slice(2);
  const draft = makeDraft(model, pageId);
  const name = element("h3", {});
  const about = element("p", { class: "sb-muted sb-form-about" });
  const badge = element("span", { class: "sb-badge" });
  const problems = element("ul", { class: "sb-problems", "aria-label": "What is wrong" });
  const fields = element("div", { class: "sb-fields" });
  const suggestions = element("datalist", { id: `sb-form-${++forms}-patterns` });
  const undo = button("Undo", "Control+Z", () => draft.undo());
  const redo = button("Redo", "Control+Shift+Z", () => draft.redo());
  const reset = button("Reset all", null, () => draft.edit([], blankRoot(), { redraw: true }));
  const help = keyHelp([
    ["Tab", "the next control"], ["↑ ↓", "step a number; with Shift by ten"], ["Shift+Enter", "a second line in a text"],
    ["Ctrl+Z", "undo"], ["Ctrl+Shift+Z", "redo"], ["/", "search the fields"], ["?", "these keys (both outside text fields)"],
  ]);
  const search = element("input", { type: "search", class: "sb-search", placeholder: "Search fields", "aria-label": "Search fields", hidden: true });
  const nothing = element("p", { class: "sb-muted", hidden: true }, "No field has this in its name or help.");
  const root = element("section", { class: "sb-view sb-form" });
  const texts = textPanels(model, pageId, speaker.say);
  const reader = readPanel(model, pageId, root, speaker.say);
  const rows = tablePanel(() => formRows(model.get("schema"), draft.root()));
  root.append(
    element("header", {}, badge, name, element("div", { class: "sb-form-actions", role: "group", "aria-label": "Form" }, search, undo.node, redo.node, reset.node, help.opener.node)),
    about, help.node, problems, nothing, fields, suggestions, ...texts.nodes, reader.node, rows.node, speaker.node,
  );

  let gone = false;
  let ids = 0;
  const watchers = [];
  const holders = new Map();
  const open = new Map();
  const page = {
    holders, open,
    classes: {},
    suggestions: suggestions.id,
    draft: () => draft.root(),
    edit: (path, node, options) => draft.edit(path, node, options),
    watch: (follow) => watchers.push(follow),
    counts: () => new Map(model.get("verdict").counts.map(([path, told]) => [keyOf(path), told])),
    id: () => `${suggestions.id}-${++ids}`,
  };
  const blankRoot = () => {
    const { root: control, classes } = model.get("schema");
    const { at } = draft.root();
    return control.kind === "union" ? { at, of: { [at]: blankDraft(control.options[at], classes) } } : blankDraft(control, classes);
  };

  /** Draw all controls anew, with the focus where it was or at the key `focus`. */
  const draw = ({ focus, caret } = {}) => {
    const schema = model.get("schema");
    const at = fields.contains(document.activeElement) ? document.activeElement : null;
    const wanted = focus ?? at?.dataset.key;
    const selection = at?.selectionStart === undefined ? null : [at.selectionStart, at.selectionEnd];
    page.classes = schema.classes;
    watchers.length = 0;
    holders.clear();
    write(name, schema.root.label || "Form");
    write(about, schema.root.class ? schema.classes[schema.root.class].title : "");
    fields.replaceChildren(...drawRoot(page, schema.root));
    show(search, fields.querySelectorAll(".sb-field").length > MANY);
    filter();
    refresh();
    judge();
    const next = wanted && ([...fields.querySelectorAll("[data-key]")].find((node) => node.dataset.key === wanted) ?? fields.querySelector(`[data-at='${CSS.escape(wanted)}'] [data-key]`));
    if (!next) return;
    next.focus({ preventScroll: !focus });
    const place = caret === undefined ? selection : [caret, caret];
    if (place && !focus?.endsWith("reset") && next.setSelectionRange && place[0] !== null && next.type !== "checkbox") next.setSelectionRange(...place);
  };

  /** Marks, counts, buttons and the table follow the draft. */
  const refresh = () => {
    for (const follow of watchers) follow();
    undo.set({ enabled: draft.canUndo(), title: "Take the last change back." });
    redo.set({ enabled: draft.canRedo(), title: "Do what was taken back." });
    reset.set({ enabled: true, title: "Every field to its default." });
    rows.draw();
    badgeNow();
  };

  const badgeNow = () => {
    const wrong = model.get("verdict").problems.length + model.get("verdict").more;
    const waits = draft.waits();
    const changed = fields.querySelectorAll(".sb-field[data-changed]").length;
    const [tone, text] = gone ? ["waiting", "no kernel: run the cell again"] : waits ? ["waiting", "the kernel is busy"]
      : wrong ? ["bad", wrong === 1 ? "1 problem" : `${wrong} problems`] : ["good", changed ? `valid, ${changed} changed` : "valid, all defaults"];
    badge.dataset.tone = tone;
    write(badge, text);
    root.toggleAttribute("data-stale", gone);
    root.setAttribute("aria-label", `Form: ${name.textContent}`);
  };

  /** Tell what the kernel found, once it has read all that stands here. */
  let said = "";
  const judge = () => {
    if (draft.isPending()) return;
    const verdict = model.get("verdict");
    for (const holder of new Set(holders.values())) holder.tell("");
    for (const [path, , reason] of verdict.problems) nearest(path)?.tell(reason, path);
    for (const rest of fields.querySelectorAll(".sb-rest")) rest.toggleAttribute("data-wrong", rest.querySelector(".sb-error:not([hidden])") !== null);
    problems.replaceChildren(...verdict.problems.map(([path, place, reason]) => element("li", {}, jump(path, place), ` ${reason}`)), ...(verdict.more ? [element("li", {}, `and ${verdict.more} more`)] : []));
    show(problems, verdict.problems.length > 0);
    suggestions.replaceChildren(...verdict.suggestions.map((value) => element("option", { value })));
    texts.draw(verdict);
    refresh();
    const [first] = verdict.problems;
    const news = first ? `${first[1]}: ${first[2]}` : "valid";
    if (said && news !== said) speaker.say(first ? news : "All fields are valid.");
    said = news;
  };
  const nearest = (path) => {
    for (let length = path.length; length >= 0; length -= 1) {
      const holder = holders.get(keyOf(path.slice(0, length)));
      if (holder) return holder;
    }
    return null;
  };
  const jump = (path, place) => {
    const node = element("button", { type: "button", class: "sb-link" }, place);
    node.addEventListener("click", () => {
      const target = nearest(path)?.fields[0]?.node;
      for (let up = target?.closest("details"); up; up = up.parentElement.closest("details")) {
        up.open = true;
        open.set(up.dataset.open, true);
      }
      search.value = "";
      filter();
      target?.focus();
    });
    return node;
  };

  /** Show the fields that have the words of the search in their path or help, and what holds them. */
  const filter = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...fields.querySelectorAll(".sb-field")];
    const fits = new Set(all.filter((node) => words.every((word) => node.dataset.words.includes(word))));
    for (const node of all) show(node, fits.has(node) || [...node.querySelectorAll(".sb-field")].some((inner) => fits.has(inner)));
    for (const rest of fields.querySelectorAll(".sb-rest")) {
      const found = words.length > 0 && [...rest.querySelectorAll(".sb-field")].some((inner) => fits.has(inner));
      show(rest, !words.length || found);
      rest.open = found || (open.get(rest.dataset.open) ?? rest.dataset.begins === "true");
    }
    show(nothing, all.length > 0 && fits.size === 0);
  };
  search.addEventListener("input", filter);

  draft.follow({ draw, refresh, judge });
  const adopt = () => {
    if (JSON.stringify(page.classes) !== JSON.stringify(model.get("schema").classes)) draw();
  };
  model.on("change:schema", adopt);
  fields.addEventListener("focusout", draft.flush);
  return {
    root,
    start: draw,
    undo: draft.undo,
    redo: draft.redo,
    toggleKeys: help.toggle,
    search: () => !search.hidden && search.focus(),
    setGone(now) {
      gone = now;
      badgeNow();
      if (now) speaker.say("The kernel is gone: run the cell again.");
    },
    end() {
      model.off("change:schema", adopt);
      draft.end();
      texts.end();
      reader.end();
    },
  };
}

export default { render };
