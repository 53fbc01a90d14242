// Runs before the page is drawn, so that a chosen theme does not flash.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("tandem.theme");
  } catch {
    // storage is forbidden: the system's theme it is
  }
  if (chosen) document.documentElement.dataset.theme = chosen;
})();
