// Talks to the daemon that served this page: API key, JSON, server-sent events, errors in words.

import { tab } from "./storage.js";

const KEY = "tandem.key";
const SILENCE_MS = 60_000; // the daemon's keep-alive comes far more often
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8_000;

export const GONE =
  "The daemon does not answer. If it was stopped, start it with “tandem edge serve”; this page finds it again by itself.";

/** What went wrong, in words; `status` is HTTP's, 0 where the daemon could not be reached. */
export class DaemonError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const wake = new EventTarget();

/** Keep `key` for this tab and try again with it. */
export function useKey(key) {
  tab.set(KEY, key);
  tryNow();
}

export const hasKey = () => tab.get(KEY) !== null;

/** End the pause before the next attempt to reach the daemon. */
export function tryNow() {
  wake.dispatchEvent(new Event("wake"));
}

/** The response to GET `path`, or to POST where there is a `body`; anything but 2xx is thrown. */
export async function request(path, { body, signal } = {}) {
  const headers = { "X-Tandem-Source": "page" };
  const key = tab.get(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const init = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(init, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    throw lost(error);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** What a failed transfer means; an end that the page itself wished for stays what it is. */
const lost = (error) => (error.name === "AbortError" ? error : new DaemonError(GONE));

async function refusal(response) {
  const error = await response.json().then((record) => record?.error, () => null);
  return new DaemonError(inWords(response.status, error ?? {}), response.status);
}

function inWords(status, { message, code }) {
  if (status === 401) return "This daemon asks for an API key. Enter it, then try again.";
  if (code === "context_length_exceeded") {
    return "The conversation is longer than the model can hold. Begin a new one, or ask something shorter.";
  }
  const plain = message?.replace(/\.$/, "");
  if (status === 429) return `The daemon is busy: ${plain ?? "try again in a moment"}.`;
  if (plain) return `${plain[0].toUpperCase()}${plain.slice(1)}.`;
  return status >= 500
    ? "The daemon failed; its log says why. Try again."
    : `The daemon refused the request (${status}).`;
}

/** Server-sent events of `response` as `{event, data}`; `heard` is called for all that arrives. */
export async function* events(response, heard = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw lost(error);
      });
      if (done) return;
      heard();
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found.data !== null) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
  return { event, data: data.length ? data.join("\n") : null };
}

/** For ever: `onStatus` hears each status of the daemon, `onTrouble` why there is none. */
export async function watch(onStatus, onTrouble) {
  addEventListener("online", tryNow);
  document.addEventListener("visibilitychange", tryNow);
  for (let failures = 0; ; failures += 1) {
    if (document.hidden) await pause(); // a page that nobody sees holds no connection
    try {
      await follow((status) => {
        if (!status.draining) failures = 0; // a daemon that drains lets nobody stay
        onStatus(status);
      });
    } catch (error) {
      if (document.hidden) continue;
      if (error.name === "AbortError") error = new DaemonError(GONE); // it was silent for too long
      onTrouble(error);
      if (error.status === 401) {
        await pause();
        continue;
      }
    }
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures);
    await pause(longest * (0.5 + Math.random() / 2)); // not all pages at once
  }
}

async function follow(onStatus) {
  const leaving = new AbortController();
  const leave = () => leaving.abort();
  const leaveHidden = () => document.hidden && leave();
  document.addEventListener("visibilitychange", leaveHidden);
  let silence = setTimeout(leave, SILENCE_MS);
  try {
    const response = await request("/tandem/events", { signal: leaving.signal });
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(leave, SILENCE_MS);
    };
    let draining = false;
    for await (const { event, data } of events(response, heard)) {
      if (event !== "status") continue;
      const status = JSON.parse(data);
      draining = status.draining;
      onStatus(status);
    }
    if (!draining) throw new DaemonError(GONE);
  } finally {
    clearTimeout(silence);
    document.removeEventListener("visibilitychange", leaveHidden);
  }
}

/** Until `ms` have passed (without: for ever), or until something says to try now. */
function pause(ms) {
  return new Promise((resolve) => {
    const timer = ms === undefined ? undefined : setTimeout(end, ms);
    wake.addEventListener("wake", end);
    function end() {
      clearTimeout(timer);
      wake.removeEventListener("wake", end);
      resolve();
    }
  });
}
