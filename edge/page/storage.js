// The browser's storage where it may be used; where not, the page forgets when it is left.

function kept(area) {
  return {
    get(name) {
      try {
        return window[area].getItem(name);
      } catch {
        return null;
      }
    },
    /** Whether it could be kept; `null` forgets. */
    set(name, value) {
      try {
        if (value === null) window[area].removeItem(name);
        else window[area].setItem(name, value);
        return true;
      } catch {
        return false;
      }
    },
  };
}

export const tab = kept("sessionStorage");
export const browser = kept("localStorage");
