// Runs before the page is painted: says that scripts run, and lets the theme change without a reload.
"use strict";
document.documentElement.classList.add("js");

document.addEventListener("submit", (event) => {
  const form = event.target;
  const button = event.submitter;
  if (!(form instanceof HTMLFormElement) || !button || button.name !== "theme") return;
  event.preventDefault();
  const theme = button.value;
  document.documentElement.dataset.theme = theme;
  document.querySelector('meta[name="color-scheme"]').content = theme === "auto" ? "light dark" : theme;
  for (const other of form.querySelectorAll('button[name="theme"]')) {
    other.setAttribute("aria-pressed", String(other === button));
  }
  // The cookie is the server's to set. When that fails the choice lasts as long as the page.
  fetch(form.action, {
    method: "POST",
    body: new URLSearchParams({ theme }),
    credentials: "same-origin",
    redirect: "manual",
    keepalive: true, // also when the reader goes on to another page at once
  }).catch(() => {});
});
