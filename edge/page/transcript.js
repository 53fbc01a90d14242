// The conversation on the page. All text enters as text nodes, so no answer can become markup.

import { answerOf, ORIGINS, tokensOf } from "./conversation.js";
import { bytes, percent, seconds } from "./words.js";

const NAMES = { exit1: "exit 1", exit2: "exit 2", cloud: "cloud" };
const TITLES = {
  exit1: "exit 1: decided on this device, early",
  exit2: "exit 2: decided on this device, deeper",
  cloud: "decided by the cloud",
};
const NEAR_END = 80; // pixels: who reads further up is not pulled down

export class Transcript {
  /** `onRetry` is called with a turn whose answer shall be asked for again. */
  constructor(root, onRetry) {
    this.root = root;
    this.onRetry = onRetry;
    this.welcome = root.firstElementChild;
    this.views = new Map();
  }

  /** Show these turns and no others. */
  show(turns) {
    this.views.clear();
    this.root.replaceChildren(this.welcome);
    for (const turn of turns) this.add(turn);
    this.welcome.hidden = turns.length > 0;
  }

  /** A turn at the end. */
  add(turn) {
    this.welcome.hidden = true;
    const view = element("article", "turn");
    view.append(
      element("h3", "hidden", "You asked"),
      element("p", "question", turn.question),
      element("h3", "hidden", "Answer"),
      element("div", "answer"),
      element("p", "note"),
      element("p", "summary"),
    );
    this.views.set(turn, { view, shown: 0, grow: null });
    this.root.append(view);
    this.update(turn);
    this.root.scrollTop = this.root.scrollHeight;
  }

  /** Bring the view of `turn` up to date; only its last span can have grown. */
  update(turn) {
    const entry = this.views.get(turn);
    if (!entry) return; // of a conversation that was left
    const { scrollHeight, scrollTop, clientHeight } = this.root;
    const follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    const answer = part(entry, "answer");
    if (entry.grow) entry.grow(turn.spans[entry.shown - 1].text);
    for (const span of turn.spans.slice(entry.shown)) entry.grow = addWords(answer, span);
    entry.shown = turn.spans.length;
    entry.view.dataset.state = turn.state;
    answer.setAttribute("aria-busy", String(turn.state === "answering"));
    part(entry, "note").replaceChildren(...this.note(turn));
    part(entry, "summary").textContent = summary(turn);
    if (follows) this.root.scrollTop = this.root.scrollHeight;
  }

  note(turn) {
    if (turn.state === "answering") return [];
    const empty = !turn.note && !answerOf(turn);
    const parts = turn.note || empty ? [turn.note || "The answer is empty."] : [];
    if (turn.state === "broken" || turn.state === "stopped") {
      const again = element("button", "plain", "Try again");
      again.type = "button";
      again.addEventListener("click", () => this.onRetry(turn));
      parts.push(" ", again);
    }
    return parts;
  }
}

/** The answer in a sentence, for who cannot see colours. */
export function summary(turn) {
  const all = tokensOf(turn);
  if (turn.state === "answering" || !all) return "";
  const shares = ORIGINS.filter((origin) => turn.tokens[origin]).map(
    (origin) => `${NAMES[origin]} ${percent(turn.tokens[origin] / all)}`,
  );
  const parts = [`${all} tokens`, shares.join(", ")];
  if (turn.alone) parts.push(`${turn.alone} without the cloud that would have been asked`);
  const cost = turn.summary;
  if (cost) {
    parts.splice(1, 0, `${cost.tokens_per_second.toFixed(0)}/s`);
    if (cost.first_token_seconds != null) parts.push(`first after ${seconds(cost.first_token_seconds)}`);
    if (cost.uploaded_bytes) parts.push(`${bytes(cost.uploaded_bytes)} up, ${bytes(cost.downloaded_bytes)} down`);
  }
  return parts.join(" · ");
}

/** Add `span` and return what sets its text later. Space in front stays outside, where no line is
 * drawn below it. */
function addWords(answer, { text, origin, alone }) {
  const space = document.createTextNode("");
  const words = element("span", alone ? `${origin} alone` : origin, "");
  words.title = alone ? `${TITLES[origin]}; the cloud would have been asked` : TITLES[origin];
  answer.append(space, words);
  const grow = (now) => {
    const begin = now.length - now.trimStart().length;
    space.data = now.slice(0, begin);
    words.firstChild.data = now.slice(begin);
  };
  grow(text);
  return grow;
}

function part(entry, name) {
  return entry.view.querySelector(`:scope > .${name}`);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.append(document.createTextNode(text));
  return made;
}
