/* The draft on a page: what the kernel has, with the edits on top that it has not seen yet; and the way back. */

import { sendTo } from "./view.js";
import { keyOf, putAt } from "./form_draft.js";

const PAUSE = 200;
const PATIENCE = 700;
const SAME_STEP = 1500;
const STEPS_BACK = 200;

/** Edits go to the kernel at once, typing after a short pause; `follow({ draw, refresh, judge })` names what follows the draft. */
export function makeDraft(model, pageId) {
  let root = model.get("draft").root;
  let pending = [];
  let last = { n: 0, key: null, time: 0 };
  let past = [];
  let future = [];
  let timer = null;
  let patience = null;
  let view = null;
  const waits = () => pending.some(({ sent }) => sent && Date.now() - sent > PATIENCE);
  const flush = () => {
    clearTimeout(timer);
    for (const one of pending.filter(({ sent }) => !sent)) {
      one.sent = Date.now();
      sendTo(model, { kind: "edit", page: pageId, n: one.n, path: one.path, node: one.node });
    }
    clearTimeout(patience);
    if (pending.length) patience = setTimeout(() => view.refresh(), PATIENCE + 50);
  };
  const note = (key) => {
    const together = key !== null && key === last.key && Date.now() - last.time < SAME_STEP;
    if (!together) past = [...past, root].slice(-STEPS_BACK);
    future = [];
    last = { ...last, key, time: Date.now() };
  };
  const apply = (path, node, { typing = false, redraw = false, focus, caret } = {}) => {
    root = putAt(root, path, node);
    const open = pending.at(-1);
    if (typing && open && !open.sent && keyOf(open.path) === keyOf(path)) open.node = node;
    else pending.push({ n: (last.n += 1), path, node, sent: 0 });
    clearTimeout(timer);
    if (typing && !redraw) timer = setTimeout(flush, PAUSE);
    else flush();
    if (redraw) view.draw({ focus, caret });
    else view.refresh();
  };
  const travel = (from, to) => {
    if (!from.length) return;
    to.push(root);
    last = { ...last, key: null };
    apply([], from.pop(), { redraw: true });
  };
  const receive = () => {
    const { root: theirs, seen } = model.get("draft");
    pending = pending.filter(({ n }) => n > (seen[pageId] ?? 0));
    const next = pending.reduce((draft, { path, node }) => putAt(draft, path, node), theirs);
    if (JSON.stringify(next) !== JSON.stringify(root)) {
      note(null);
      root = next;
      view.draw();
    }
    view.judge();
  };
  const judge = () => view.judge();
  model.on("change:draft", receive);
  model.on("change:verdict", judge);
  return {
    flush, waits,
    root: () => root,
    edit(path, node, options = {}) {
      note(options.typing ? keyOf(path) : null);
      apply(path, node, options);
    },
    undo: () => travel(past, future),
    redo: () => travel(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
    isPending: () => pending.length > 0,
    follow: (one) => (view = one),
    end() {
      flush();
      clearTimeout(patience);
      model.off("change:draft", receive);
      model.off("change:verdict", judge);
    },
  };
}
