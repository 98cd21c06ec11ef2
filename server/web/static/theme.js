/**
 * Light or dark. Follows the system until the person chooses; the choice is remembered in localStorage.
 *
 * A classic script, loaded in <head> before the style sheets paint, so that a page never flashes in the wrong
 * theme. It knows nothing of the pages but their button `#theme`. The colours themselves are in theme.css.
 */
(() => {
  const KEY = "readingroom.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage can be forbidden; the system's theme then holds
    }
  }

  function isDark() {
    return (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  }

  function apply(theme) {
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  function label() {
    const button = document.getElementById("theme");
    if (!button) return;
    const text = isDark() ? "Switch to the light theme" : "Switch to the dark theme";
    button.setAttribute("aria-label", text);
    button.title = text;
    button.querySelector("use").setAttribute("href", `/static/icons.svg#${isDark() ? "sun" : "moon"}`);
  }

  apply(stored());
  system.addEventListener("change", label);
  document.addEventListener("DOMContentLoaded", () => {
    label();
    document.getElementById("theme")?.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      // Back at what the system says: forget the choice, so that the page follows the system again.
      const followsSystem = (theme === "dark") === system.matches;
      apply(followsSystem ? null : theme);
      try {
        if (followsSystem) localStorage.removeItem(KEY);
        else localStorage.setItem(KEY, theme);
      } catch {
        // not remembered, but applied
      }
      label();
    });
  });
})();
