// What was asked and answered, kept over a reload of the page. Knows nothing of the page's elements.

import { tab } from "./storage.js";

const NAME = "tandem.conversation";
export const ORIGINS = ["exit1", "exit2", "cloud"];

/** A question and its answer. `spans` is text by origin: `{text, origin, alone}`; `tokens` counts
 * by origin; `state` is answering, done, stopped or broken; `note` says why it is not whole. */
export function newTurn(question) {
  return { question, spans: [], tokens: {}, alone: 0, state: "answering", note: "", summary: null };
}

/** Forget the answer of `turn`, to ask again. */
export function reset(turn) {
  Object.assign(turn, newTurn(turn.question));
}

/** Add what a chunk of the stream carries; neighbours of one origin become one span. */
export function addPiece(turn, { text, origin, alone, tokens }) {
  const known = looks(origin);
  turn.tokens[known] = (turn.tokens[known] ?? 0) + tokens;
  if (alone) turn.alone += tokens;
  const last = turn.spans.at(-1);
  if (last && last.origin === known && last.alone === alone) last.text += text;
  else if (text) turn.spans.push({ text, origin: known, alone });
}

/** Take up the daemon's own count: a piece of several tokens has one look, whatever they were. */
export function sumUp(turn, summary) {
  turn.summary = summary;
  turn.alone = summary.alone;
  turn.tokens = byLooks(summary.origins);
}

/** Counts by origin as counts by how the words look. */
export function byLooks(origins) {
  const counts = {};
  for (const [origin, count] of Object.entries(origins)) {
    counts[looks(origin)] = (counts[looks(origin)] ?? 0) + count;
  }
  return counts;
}

const looks = (origin) => (ORIGINS.includes(origin) ? origin : "exit2"); // as deeper exits do

export const answerOf = (turn) => turn.spans.map((span) => span.text).join("");
export const tokensOf = (turn) => Object.values(turn.tokens).reduce((sum, n) => sum + n, 0);

/** Share of the answer's tokens that the device decided, or `null` before the first. */
export function shareOf(turn) {
  const all = tokensOf(turn);
  return all ? 1 - (turn.tokens.cloud ?? 0) / all : null;
}

/** The conversation as the API has it; questions that got no answer are left out. */
export function messagesOf(turns) {
  return turns.flatMap((turn) => {
    const answer = answerOf(turn);
    const asked = { role: "user", content: turn.question };
    if (turn.state === "answering") return [asked];
    return answer ? [asked, { role: "assistant", content: answer }] : [];
  });
}

/** Keep `turns` for a reload; whether there was room. */
export function keep(turns) {
  return tab.set(NAME, turns.length ? JSON.stringify(turns) : null);
}

/** What was kept. An answer that was being made has broken off. */
export function kept() {
  let turns = [];
  try {
    turns = JSON.parse(tab.get(NAME)) ?? [];
  } catch {
    // not ours: begin anew
  }
  for (const turn of turns) {
    if (turn.state !== "answering") continue;
    turn.state = "broken";
    turn.note = "The page was left while this answer was made.";
  }
  return turns;
}
