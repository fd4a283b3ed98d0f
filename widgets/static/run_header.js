/* The head of a monitor: which run, its state, progress and time left, and the commands that fit. */

import { button, duration, element, sendTo, show, write } from "./view.js";

const TONES = {
  running: "active", starting: "active", pausing: "waiting", paused: "waiting", stopping: "waiting",
  finished: "good", stopped: "good", failed: "bad", lost: "bad", gone: "bad",
};
const PATIENCE = 2500;
const SURE = 6000;
const NOTICE = 12_000;
const SETTINGS = [["lr", "Learning rate"], ["weight_decay", "Weight decay"], ["max_steps", "Steps"], ["log_every", "Log every"], ["checkpoint_every", "Checkpoint every"]];

/** The tone of a state: active, waiting, good, bad, or none. */
export function toneOf(state) {
  return TONES[state] ?? "";
}

/** Name, badge, `buttons`; the bar; step, time left and such. draw(status) shows one run. */
export function makeTop(buttons) {
  const badge = element("span", { class: "sb-monitor-badge" });
  const name = element("span", { class: "sb-monitor-name" });
  const actions = element("div", { class: "sb-monitor-actions", role: "group", "aria-label": "Commands" }, ...buttons);
  const fill = element("i", {});
  const bar = element("div", { class: "sb-monitor-bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const facts = element("p", { class: "sb-monitor-facts" });
  const draw = (status) => {
    write(badge, status.state);
    badge.dataset.tone = toneOf(status.state);
    write(name, status.id);
    show(bar, status.progress !== null);
    const percent = Math.round(100 * (status.progress ?? 0));
    bar.setAttribute("aria-valuenow", percent);
    fill.style.width = `${percent}%`;
    const wanted = [
      status.total ? `step ${status.step} of ${status.total}` : `step ${status.step}`,
      status.progress === null ? null : `${percent} %`,
      status.left === null ? null : `${duration(status.left)} left`,
      status.elapsed === null ? null : `${duration(status.elapsed)} elapsed`,
      status.attempt > 1 ? `attempt ${status.attempt}` : null,
      status.processes > 1 ? `${status.processes} processes` : null,
      status.slowest,
      status.state === "failed" ? null : status.message,
    ].filter(Boolean);
    while (facts.childElementCount > wanted.length) facts.lastChild.remove();
    wanted.forEach((text, index) => write(facts.children[index] ?? facts.appendChild(element("span")), text));
  };
  return {
    header: element("header", {}, badge, name, actions),
    progress: element("div", { class: "sb-monitor-progress" }, bar, facts),
    draw,
  };
}

/** A button whose second press within a few seconds acts; the first says what it will do. */
export function sureButton(label, warning, act) {
  const node = element("button", { type: "button", class: "sb-button" }, label);
  let timer = null;
  const calm = () => {
    clearTimeout(timer);
    timer = null;
    write(node, label);
    node.classList.remove("sb-button-sure");
  };
  const press = () => {
    if (node.getAttribute("aria-disabled") === "true") return;
    if (timer !== null) {
      calm();
      return act();
    }
    write(node, warning);
    node.classList.add("sb-button-sure");
    timer = setTimeout(calm, SURE);
  };
  node.addEventListener("click", press);
  return { node, press, calm };
}

/** The buttons, and what became of a press: sent, refused, or waiting for a busy kernel. `chosen()` is the run's status. */
export function makeCommands(model, speaker, chosen) {
  const notice = element("p", { class: "sb-monitor-notice", hidden: true });
  let timer = null;
  const tell = (text, lasting = true) => {
    clearTimeout(timer);
    write(notice, text);
    show(notice, Boolean(text));
    if (text) speaker.say(text);
    if (text && !lasting) timer = setTimeout(() => tell(""), NOTICE);
  };
  const send = (name, more = {}) => {
    if (!sendTo(model, { kind: "command", run: chosen().key, name, ...more })) return;
    clearTimeout(timer);
    timer = setTimeout(() => tell(`${name}: sent; it takes effect when the kernel is done with the running cell.`), PATIENCE);
  };
  const receive = (message) => message.kind === "answer" && tell(message.text);
  let silent = ""; // why no kernel answers
  const can = (name) => !silent && chosen().allowed.includes(name);
  const pause = button("Pause", "p", () => send(can("resume") ? "resume" : "pause"));
  const checkpoint = button("Checkpoint now", "c", () => send("checkpoint"));
  const stop = button("Stop and keep", "s", () => send("stop"));
  const restart = button("Resume run", "r", () => send("restart"));
  const kill = sureButton("Hard stop", "Press again: what is in no checkpoint is lost", () => send("kill"));
  const settings = makeSettings((setting, value) => send("set", { setting, value }), tell);
  model.on("msg:custom", receive);
  return {
    pause, checkpoint, stop, restart, notice, send, can, tell,
    settings: settings.node,
    buttons: [pause.node, checkpoint.node, stop.node, kill.node, restart.node],
    /** Fit the buttons to the state; `why` no kernel answers, if none does: nothing can be asked, what is shown is of the past. */
    draw(why) {
      if (silent !== why) tell(why);
      silent = why;
      pause.set({ label: can("resume") ? "Resume" : "Pause", enabled: can("pause") || can("resume"), title: "Hold the run after the next step, or let it go on." });
      checkpoint.set({ enabled: can("checkpoint"), title: "Save a checkpoint after the next step." });
      stop.set({ enabled: can("stop"), title: "Save a checkpoint and end the run." });
      restart.set({ enabled: can("restart"), title: "Go on from the newest checkpoint." });
      show(restart.node, can("restart"));
      show(kill.node, can("kill"));
      if (!can("kill")) kill.calm();
      const over = can("restart") || chosen().final;
      for (const one of [pause, checkpoint, stop]) show(one.node, !over);
      show(settings.node, can("set"));
    },
    end() {
      clearTimeout(timer);
      kill.calm();
      model.off("msg:custom", receive);
    },
  };
}

/** Change a setting of the running training: the learning rate first of all. */
function makeSettings(send, tell) {
  const which = element("select", { "aria-label": "Setting" }, ...SETTINGS.map(([name, label]) => element("option", { value: name }, label)));
  const value = element("input", { type: "text", inputmode: "decimal", size: 9, "aria-label": "New value", placeholder: "1e-4", spellcheck: "false" });
  const set = element("button", { type: "button", class: "sb-button" }, "Set");
  const act = () => {
    const number = Number(value.value.trim().replace("−", "-"));
    if (!value.value.trim() || !Number.isFinite(number)) return tell(`${which.value}: expected a number such as 1e-4, got "${value.value}"`);
    send(which.value, number);
    value.value = "";
  };
  set.addEventListener("click", act);
  value.addEventListener("keydown", (event) => event.key === "Enter" && act());
  return { node: element("div", { class: "sb-monitor-settings", role: "group", "aria-label": "Change a setting" }, which, value, set) };
}
