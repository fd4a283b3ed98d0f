/* Talk to one model or to several side by side, and see how probable each token was.
 *
 * Traits: `talk` {mode, speakers: [{name, shown, state}], turns, busy, settings} (the conversation: `shown` has the step that a
 * run has come to), `live` {speaker: text so far} while they write.
 * The page sends {kind: "say" | "again" | "branch" | "alternatives" | "stop" | "clear" | "settings", ...};
 * the kernel answers {kind: "alternatives", turn, speaker, token, most} and {kind: "answer", text}.
 */

import { announcer, button, compact, element, followKernel, followKeys, followTheme, keyHelp, sendTo, show, write } from "./view.js";

const FIELDS = [
  { name: "temperature", label: "Temperature", help: "0 takes the most probable token", min: 0, max: 5, step: 0.1 },
  { name: "top_p", label: "Top-p", help: "smallest set of tokens with this probability together", min: 0.01, max: 1, step: 0.01 },
  { name: "max_tokens", label: "Longest answer", help: "tokens", min: 1, max: 4096, step: 1 },
  { name: "seed", label: "Seed", help: "the same seed gives the same answer", min: 0, max: 2147483647, step: 1 },
];

function render({ model, el }) {
  const speaker = announcer();
  const log = element("div", { class: "sb-chat-log", role: "log", "aria-label": "Conversation", tabindex: 0 });
  const notice = element("p", { class: "sb-chat-notice", role: "alert", hidden: true });
  const field = element("textarea", { rows: 2, class: "sb-chat-field", "aria-label": "Your message" });
  const settings = makeSettings(model);
  const tell = (text) => {
    write(notice, text);
    show(notice, Boolean(text));
  };
  const say = () => {
    const text = field.value;
    if (!text.trim() || model.get("talk").busy) return;
    sendTo(model, { kind: "say", text });
    field.value = "";
    tell("");
  };
  const send = button("Send", "enter", say);
  const stop = button("Stop", "s", () => sendTo(model, { kind: "stop" }));
  const again = button("Again", "g", () => sendTo(model, { kind: "again" }));
  const clear = button("Clear", "x", () => sendTo(model, { kind: "clear" }));
  const probable = button("Probabilities", "p", () => {
    root.toggleAttribute("data-probable");
    probable.node.setAttribute("aria-pressed", String(root.hasAttribute("data-probable")));
    draw();
  });
  probable.node.setAttribute("aria-pressed", "false");
  const legend = element(
    "p", { class: "sb-chat-legend sb-muted" },
    element("span", { class: "sb-token", "data-level": 4 }, "under 1 %"), element("span", { class: "sb-token", "data-level": 3 }, "under 10 %"),
    element("span", { class: "sb-token", "data-level": 2 }, "under 50 %"), element("span", { class: "sb-token", "data-level": 1 }, "under 90 %"),
    element("span", {}, "Choose a token to see what else was likely."),
  );
  const names = element("p", { class: "sb-chat-names" });
  const help = keyHelp([
    ["Enter", "send"], ["Shift+Enter", "start a line"], ["S", "stop the answer"], ["G", "answer again"], ["X", "clear"],
    ["P", "show probabilities"], ["← →", "move between tokens"],
  ]);
  const actions = element("div", { class: "sb-chat-actions", role: "group", "aria-label": "Commands" }, stop.node, again.node, clear.node, probable.node, help.opener.node);
  const root = element(
    "section", { class: "sb-view sb-chat", "aria-label": "Chat" },
    element("header", {}, names, actions), legend, log, notice,
    element("div", { class: "sb-chat-entry" }, field, send.node), settings.node, help.node, speaker.node,
  );
  el.replaceChildren(root);

  let spoken = null;
  const draw = () => {
    const talk = model.get("talk");
    const live = model.get("live");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    write(names, talk.speakers.map(({ shown, state }) => (state === "ready" ? shown : `${shown}: ${state}`)).join("  ·  "));
    drawTurns(log, model, talk, live, root.hasAttribute("data-probable"));
    send.set({ enabled: !talk.busy, title: talk.mode === "chat" ? "Say this." : "Continue this text." });
    stop.set({ enabled: talk.busy, title: "End the answer here." });
    again.set({ enabled: !talk.busy && talk.turns.length > 0, title: "Answer the last message once more, with the next seed." });
    clear.set({ enabled: !talk.busy && talk.turns.length > 0, title: "Begin anew." });
    probable.set({ enabled: true, title: "Colour each token by its probability." });
    field.placeholder = talk.mode === "chat" ? "Say something" : "Begin a text; it will be continued";
    settings.draw(talk);
    if (atEnd) log.scrollTop = log.scrollHeight;
    const last = talk.turns.at(-1);
    const key = last && !talk.busy ? JSON.stringify([talk.turns.length, last.answers.map((one) => one?.text)]) : null;
    if (key && spoken !== null && key !== spoken) speaker.say(last.answers.map((one, at) => `${talk.speakers[at]?.name}: ${one?.text ?? ""}`).join(". "));
    if (key || spoken === null) spoken = key ?? "";
  };
  const receive = (message) => {
    if (message.kind === "answer") tell(message.text);
    if (message.kind === "alternatives") drawAlternatives(log, model, message);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  model.on("change:talk", draw);
  model.on("change:live", draw);
  model.on("msg:custom", receive);
  draw();
  const ends = [
    () => model.off("change:talk", draw),
    () => model.off("change:live", draw),
    () => model.off("msg:custom", receive),
    followTheme(root, () => {}),
    followKernel(model, (gone) => {
      root.toggleAttribute("data-stale", gone);
      tell(gone ? "The kernel is gone: run the cell again to go on." : "");
    }),
    followKeys(root, {
      s: stop.press, g: again.press, x: clear.press, p: probable.press, "?": help.toggle,
      ArrowLeft: (event) => moveToken(event, -1),
      ArrowRight: (event) => moveToken(event, 1),
    }),
  ];
  return () => ends.forEach((end) => end());
}

const drawn = new WeakMap();

/** Every turn of the conversation; a turn that did not change keeps its elements, so that a selection in it stays. */
function drawTurns(log, model, talk, live, probable) {
  talk.turns.forEach((turn, index) => {
    const writing = talk.busy && index === talk.turns.length - 1;
    const key = JSON.stringify([turn, probable, writing && live, talk.speakers.length]);
    const old = log.children[index];
    if (old && drawn.get(old) === key) return;
    const columns = talk.speakers.map(({ name }, at) => drawAnswer(model, name, turn.answers[at], writing ? live[at] : null, { index, at, probable, many: talk.speakers.length > 1 }));
    const made = element(
      "article", { class: "sb-chat-turn" },
      ...(turn.text ? [element("p", { class: talk.mode === "chat" ? "sb-chat-user" : "sb-chat-prompt" }, turn.text)] : []),
      element("div", { class: "sb-chat-answers" }, ...columns),
    );
    drawn.set(made, key);
    old ? old.replaceWith(made) : log.append(made);
  });
  while (log.childElementCount > talk.turns.length) log.lastChild.remove();
}

function drawAnswer(model, name, answer, live, { index, at, probable, many }) {
  const text = element("p", { class: "sb-chat-text" });
  const tokens = answer?.tokens ?? [];
  if (probable && tokens.length) {
    tokens.forEach(([piece, probability], token) => {
      const one = element("button", { type: "button", class: "sb-token", tabindex: token ? -1 : 0, "data-level": level(probability) }, visible(piece));
      one.setAttribute("aria-label", `${piece.trim() || "white space"}, ${percent(probability)}`);
      one.title = percent(probability);
      one.addEventListener("click", () => sendTo(model, { kind: "alternatives", turn: index, speaker: at, token }));
      text.append(one);
    });
  } else write(text, answer?.text ?? live ?? "");
  const meta = answer ? `${answer.count} tokens, ${compact(answer.rate, 2)} tokens/s${answer.reason === "length" ? ", cut at the longest answer" : answer.reason === "cancelled" ? ", stopped" : ""}${answer.step === null ? "" : `, at step ${answer.step}`}` : live === null || live === undefined ? "waiting" : "writing";
  return element(
    "div", { class: "sb-chat-answer", "data-place": `${index}-${at}` },
    ...(many ? [element("b", {}, name)] : []), text, element("p", { class: "sb-muted sb-chat-meta" }, answer?.error ?? meta),
  );
}

/** What else was likely where a token stands; each of them can be taken instead. */
function drawAlternatives(log, model, { turn, speaker, token, most }) {
  const place = log.querySelector(`[data-place="${Number(turn)}-${Number(speaker)}"]`);
  if (!place) return;
  log.querySelector(".sb-chat-likely")?.remove();
  const choices = most.map(([piece, probability, id]) => {
    const one = element("button", { type: "button", class: "sb-button" }, `${visible(piece)} `, element("span", { class: "sb-muted" }, percent(probability)));
    one.title = "Go on from here with this token instead.";
    one.addEventListener("click", () => sendTo(model, { kind: "branch", turn, speaker, token, id }));
    return element("li", {}, one);
  });
  place.append(element("div", { class: "sb-chat-likely", role: "group", "aria-label": "Likely tokens here" }, element("p", { class: "sb-muted" }, "Likely here; choose one to go on with it:"), element("ul", {}, ...choices)));
  place.querySelectorAll(".sb-token").forEach((one, at) => one.toggleAttribute("data-chosen", at === token));
}

function moveToken(event, by) {
  if (!event.target.classList.contains("sb-token")) return false;
  const next = by > 0 ? event.target.nextElementSibling : event.target.previousElementSibling;
  if (!next) return false;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  return true;
}

/** Sampling and the system text, sent when they change. */
function makeSettings(model) {
  const inputs = FIELDS.map(({ name, label, help, min, max, step }) => {
    const input = element("input", { type: "number", min, max, step, name });
    input.addEventListener("change", () => input.checkValidity() && sendTo(model, { kind: "settings", [name]: Number(input.value) }));
    return { name, input, node: element("label", {}, element("span", {}, label), input, element("span", { class: "sb-muted" }, help)) };
  });
  const system = element("textarea", { rows: 2 });
  system.addEventListener("change", () => sendTo(model, { kind: "settings", system: system.value }));
  const mode = element("select", {}, element("option", { value: "chat" }, "conversation"), element("option", { value: "continue" }, "continue a text"));
  mode.addEventListener("change", () => sendTo(model, { kind: "settings", mode: mode.value }));
  const systemLabel = element("label", {}, element("span", {}, "System text"), system);
  const node = element(
    "details", { class: "sb-chat-settings" }, element("summary", {}, "Settings"),
    element("div", {}, element("label", {}, element("span", {}, "Mode"), mode), ...inputs.map((one) => one.node), systemLabel),
  );
  const put = (input, value) => {
    if (document.activeElement !== input && input.value !== String(value)) input.value = String(value);
  };
  const draw = ({ settings, mode: now, turns }) => {
    for (const { name, input } of inputs) put(input, settings[name]);
    put(system, settings.system);
    put(mode, now);
    mode.disabled = turns.length > 0;
    show(systemLabel, now === "chat");
  };
  return { node, draw };
}

function level(probability) {
  return probability < 0.01 ? 4 : probability < 0.1 ? 3 : probability < 0.5 ? 2 : probability < 0.9 ? 1 : 0;
}

function percent(probability) {
  return probability < 0.0005 ? "under 0.1 %" : `${compact(100 * probability, 3)} %`;
}

function visible(piece) {
  return piece.replace(/\n/g, "⏎\n") || "·";
}

export default { render };
