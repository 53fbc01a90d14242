// The live figures and the controls beside the conversation.

import { request } from "./daemon.js";
import { byLooks, ORIGINS, shareOf, tokensOf } from "./conversation.js";
import { bytes, percent, seconds, speed, UNKNOWN } from "./words.js";

const $ = (id) => document.getElementById(id);

const MODES = {
  auto: "Measures device, link and cloud, chooses what is best, and goes on alone while the cloud is silent.",
  collaborative: "The device answers and asks the cloud for the words it is unsure of.",
  "cloud-only": "The cloud decides every word.",
  standalone: "This device alone; nothing leaves it.",
};
const DEFAULTS = { threshold: 0.8, target_agreement: 0.95 };

let status = null;
let turn = null; // whose figures are shown while it is answered
let began = 0; // when its first token came, performance.now()
let changes = 0; // on their way to the daemon
let dragging = false;

/** The last status of the daemon, or `null` before the first. */
export const lastStatus = () => status;

/** Show `next`. */
export function showStatus(next) {
  status = next;
  showLink();
  $("model").textContent = status.model;
  $("mode-now").textContent = status.controls.mode;
  $("rtt").textContent = seconds(status.rtt_seconds);
  $("up").textContent = bytes(status.uploaded_bytes);
  $("down").textContent = bytes(status.downloaded_bytes);
  $("plan").textContent = status.plan ?? UNKNOWN;
  if (!turn) showSpeed();
  if (!changes && !dragging) showControls();
}

/** The daemon does not answer, or not without a key: what is known of the link is old. */
export function showTrouble(error) {
  if (error.status === 401) link("locked", "needs a key", "an API key is asked for");
  else link("gone", "no daemon", "the daemon does not answer");
}

function showLink() {
  const alone = status.controls.mode === "auto" ? "going on alone" : "answers wait for it, or fail";
  const short = { none: "no cloud", up: "cloud", lost: "cloud lost", unknown: "cloud?" };
  const long = {
    none: "no cloud is configured",
    up: "up",
    lost: status.controls.mode === "standalone" ? "lost" : `lost: ${alone}`,
    unknown: "not known yet",
  };
  link(status.link, short[status.link], long[status.link]);
  if (status.link === "up" && status.rtt_seconds !== null) {
    $("link-rtt").textContent = seconds(status.rtt_seconds);
  }
}

function link(state, short, long) {
  $("link").dataset.link = state;
  $("link-short").textContent = short;
  $("link-rtt").textContent = "";
  $("link-now").textContent = long;
}

/** Figures of `answered` from its first token on; `null` shows the last answers again. */
export function follow(answered) {
  turn = answered;
  began = 0;
  showSpeed();
}

/** Speed and shares, of the answer that is being made or else of the last ones. */
export function showSpeed() {
  if (turn && tokensOf(turn)) {
    began ||= performance.now();
    const elapsed = (performance.now() - began) / 1000;
    $("figures-of").textContent = "this answer";
    $("speed").textContent = elapsed > 0.2 ? speed((tokensOf(turn) - 1) / elapsed) : UNKNOWN;
    showShares("words of this answer", shareOf(turn), turn.tokens);
  } else if (status && !turn) {
    $("figures-of").textContent = "last answers";
    $("speed").textContent = speed(status.tokens_per_second);
    showShares("words since start", status.device_share, status.origins);
  }
}

function showShares(label, share, origins) {
  $("share").textContent = percent(share);
  $("origins-of").textContent = label;
  const counts = byLooks(origins);
  const all = Object.values(counts).reduce((sum, n) => sum + n, 0);
  const text = ORIGINS.filter((origin) => counts[origin]).map(
    (origin) => `${origin.replace("exit", "exit ")} ${percent(counts[origin] / all)}`,
  );
  $("origins").textContent = text.join(" · ") || UNKNOWN;
  for (const [index, origin] of ORIGINS.entries()) {
    const part = $("bar").children[index];
    part.hidden = !counts[origin];
    part.style.flexGrow = counts[origin] ?? 0;
  }
}

function showControls() {
  const { mode, threshold, target_agreement: target, aim, private: hidden } = status.controls;
  for (const radio of $("controls").elements.mode) {
    radio.checked = radio.value === mode;
    radio.disabled = status.link === "none" && radio.value !== "standalone";
  }
  const alone = status.link === "none" ? " Start the daemon with --cloud for the other modes." : "";
  $("mode-about").textContent = MODES[mode] + alone;
  const basis = threshold !== null ? "threshold" : target !== null ? "target_agreement" : "default";
  $("basis").value = basis;
  $("basis").options[1].disabled = mode !== "collaborative";
  $("basis-field").hidden = mode !== "auto" && mode !== "collaborative";
  $("level-field").hidden = $("level-about").hidden = basis === "default" || $("basis-field").hidden;
  if (basis !== "default") $("level").value = threshold ?? target;
  showLevel();
  $("aim").value = aim;
  $("private").checked = hidden;
  $("aim-field").hidden = $("private-field").hidden = mode !== "auto";
}

function showLevel() {
  const value = Number($("level").value);
  const isThreshold = $("basis").value === "threshold";
  $("level-label").textContent = isThreshold ? "Threshold" : "Target agreement";
  $("level-value").textContent = isThreshold ? value.toFixed(2) : percent(value);
  $("level").setAttribute("aria-valuetext", $("level-value").textContent);
  $("level-about").textContent = isThreshold
    ? "A word is kept from this confidence on. Higher asks the cloud more."
    : "Share of words that shall be the full model's. Higher asks the cloud more.";
}

async function change(wanted) {
  changes += 1;
  $("control-trouble").textContent = "";
  try {
    await request("/tandem/controls", { body: wanted });
  } catch (error) {
    $("control-trouble").textContent = error.message;
  } finally {
    changes -= 1;
  }
  // what the daemon has is what counts; a change that it took is announced by the next status
  const answer = await request("/tandem/status").catch(() => null);
  if (answer) showStatus(await answer.json());
  else if (status) showControls();
}

/** Send what the user changes to the daemon. */
export function listen() {
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("level").addEventListener("input", () => {
    dragging = true;
    showLevel();
  });
  $("controls").addEventListener("change", ({ target }) => {
    dragging = false;
    if (target.name === "mode") change({ mode: target.value });
    if (target.name === "aim") change({ aim: target.value });
    if (target.name === "private") change({ private: target.checked });
    if (target.name === "basis") change(levels(target.value, DEFAULTS[target.value]));
    if (target.name === "level") change(levels($("basis").value, Number(target.value)));
  });
}

function levels(basis, value) {
  return basis === "default" ? { threshold: null, target_agreement: null } : { [basis]: value };
}
