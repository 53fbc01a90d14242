// Figures as people read them; `–` is not known.

export const UNKNOWN = "–";

export const percent = (share) => (share == null ? UNKNOWN : `${Math.round(share * 100)}%`);

export function seconds(value) {
  if (value == null) return UNKNOWN;
  if (value >= 1) return `${value.toFixed(1)} s`;
  const milliseconds = value * 1000;
  return `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
}

export function bytes(count) {
  if (count == null) return UNKNOWN;
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

export const speed = (tokensPerSecond) =>
  tokensPerSecond == null ? UNKNOWN : tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0);
