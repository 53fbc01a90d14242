// The page: asks, shows the answer as it comes, and keeps figures, controls and conversation going.

import { addPiece, answerOf, keep, kept, messagesOf, newTurn, reset, sumUp } from "./conversation.js";
import { DaemonError, events, GONE, hasKey, request, tryNow, useKey, watch } from "./daemon.js";
import { follow, lastStatus, listen, showSpeed, showStatus, showTrouble } from "./panel.js";
import { browser } from "./storage.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);

let turns = kept();
let leaving = false; // requests fail then, which is no news
let stopper = null; // of the answer that is being made
const transcript = new Transcript($("transcript"), retry);

// ---- answers -----------------------------------------------------------------------------------

async function answer(turn) {
  const ending = new AbortController();
  stopper = ending;
  busy(true);
  follow(turn);
  say("Answering.");
  try {
    await stream(turn, ending.signal);
    turn.state = "done";
  } catch (error) {
    turn.state = ending.signal.aborted ? "stopped" : "broken";
    turn.note = ending.signal.aborted ? "Stopped." : brokenOff(turn, error);
    if (error.status === 401) askKey();
  }
  if (stopper !== ending) return; // another conversation has begun
  stopper = null;
  transcript.update(turn);
  follow(null);
  busy(false);
  remember();
  say(`${turn.note} ${turn.state === "done" ? answerOf(turn) : ""}`);
}

async function stream(turn, signal) {
  const body = { messages: messagesOf(turns), stream: true };
  const response = await request("/v1/chat/completions", { body, signal });
  let ended = false;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new DaemonError(chunk.error.message);
    for (const piece of chunk.tandem?.pieces ?? []) addPiece(turn, piece);
    if (chunk.tandem?.summary) sumUp(turn, chunk.tandem.summary);
    const reason = chunk.choices?.[0]?.finish_reason;
    if (reason === "length") turn.note = "The answer ends here: it is as long as it may be.";
    ended ||= Boolean(reason);
    redraw(turn);
  }
  if (!ended) throw new DaemonError(GONE);
}

function brokenOff(turn, error) {
  if (!(error instanceof DaemonError)) console.error(error);
  const why = error instanceof DaemonError ? error.message : "The page did not understand the daemon: reload it.";
  const lost = lastStatus()?.link === "lost" && lastStatus().controls.mode !== "auto";
  const advice = lost ? " In auto mode the device goes on alone." : "";
  return `${answerOf(turn) ? "The answer broke off. " : ""}${why}${advice}`;
}

let drawing = 0;
function redraw(turn) {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    transcript.update(turn);
    showSpeed();
  });
}

function ask() {
  const question = $("question").value.trim();
  if (!question || stopper) return;
  $("question").value = "";
  fit();
  const turn = newTurn(question);
  turns.push(turn);
  transcript.add(turn);
  remember();
  answer(turn);
}

function retry(turn) {
  if (stopper) return;
  turns.splice(turns.indexOf(turn) + 1); // what was said after it went on from another answer
  reset(turn);
  transcript.show(turns);
  focusQuestion();
  answer(turn);
}

function stop() {
  stopper?.abort();
}

function begin() {
  stop();
  stopper = null;
  follow(null);
  busy(false);
  turns = [];
  remember();
  transcript.show(turns);
  focusQuestion();
  say("New conversation.");
}

function busy(is) {
  const focused = document.activeElement;
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (focused === $("send") || focused === $("stop")) focusQuestion();
}

function focusQuestion() {
  if (!matchMedia("(pointer: coarse)").matches) $("question").focus(); // a phone's keyboard would rise
}

function remember() {
  if (!leaving) keep(turns);
}

// ---- the daemon --------------------------------------------------------------------------------

function heard(status) {
  showStatus(status);
  if (status.draining) banner("The daemon is shutting down and takes no new questions.");
  else banner(null);
}

function notHeard(error) {
  if (!(error instanceof DaemonError)) console.error(error);
  showTrouble(error);
  if (error.status !== 401) {
    banner(error.message, "Try now", tryNow);
    return;
  }
  banner("This daemon asks for an API key.", "Enter the key", askKey);
  askKey();
}

function banner(text, action, run) {
  $("banner").hidden = text === null;
  if ($("banner-text").textContent !== (text ?? "")) $("banner-text").textContent = text ?? "";
  $("banner-action").hidden = !action;
  $("banner-action").textContent = action ?? "";
  $("banner-action").onclick = run ?? null;
}

function askKey() {
  $("key-trouble").textContent = hasKey() ? "The daemon refused the key that was entered." : "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function say(text) {
  $("said").textContent = text;
}

// ---- keys and buttons --------------------------------------------------------------------------

function fit() {
  const { style, offsetHeight, clientHeight } = $("question");
  style.height = "auto";
  style.height = `${$("question").scrollHeight + offsetHeight - clientHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", begin);
$("panel-toggle").addEventListener("click", () => {
  const open = document.body.classList.toggle("panel-open");
  $("panel-toggle").setAttribute("aria-expanded", String(open));
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  $("key").value = "";
  $("key-dialog").close();
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
addEventListener("pagehide", () => {
  remember();
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false)); // it can be taken back

function remembered(control, name, apply) {
  const value = browser.get(name);
  if (control.type === "checkbox") control.checked = value !== "no";
  else control.value = value ?? "";
  const changed = () => apply(control.type === "checkbox" ? control.checked : control.value);
  changed();
  control.addEventListener("change", () => {
    changed();
    const now = control.type === "checkbox" ? (control.checked ? null : "no") : control.value || null;
    browser.set(name, now);
  });
}

remembered($("theme"), "tandem.theme", (theme) => {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
});
remembered($("show-origins"), "tandem.origins", (shown) => {
  document.body.classList.toggle("no-origins", !shown);
});

listen();
transcript.show(turns);
fit();
focusQuestion();
watch(heard, notHeard);
