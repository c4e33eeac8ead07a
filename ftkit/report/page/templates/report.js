"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // ---- theme
  const root = document.documentElement;
  const button = byId("theme");
  const stored = () => {
    try { return localStorage.getItem("ftkit-theme"); } catch { return null; }
  };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? tr("Light theme") : tr("Dark theme"); };
  if (["dark", "light"].includes(stored())) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("ftkit-theme", root.dataset.theme); } catch { /* a sandboxed frame has no storage */ }
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
})();
