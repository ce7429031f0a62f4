// Makes pages live: reads new log bytes by offset, and re-reads the marked parts of a page. Every page works without it.
"use strict";

const LOG_PERIOD_MS = 1000;
const LOG_SLOWEST_MS = 5000;
const LOG_KEPT_CHARACTERS = 2_000_000;

function said(problem) {
  const status = document.getElementById("connection");
  const freshness = document.getElementById("freshness");
  const text = problem ? `no answer from the control plane; ${freshness.textContent}` : "";
  if (status.textContent !== text) status.textContent = text;
}

// ---------------------------------------------------------------- live log

function followLog(log) {
  const follow = document.getElementById("follow");
  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
  for (const element of document.querySelectorAll(".without-script")) element.hidden = true;
  let offset = Number(log.dataset.offset);
  let attempt = Number(log.dataset.attempt);
  let wait = LOG_PERIOD_MS;

  const toEnd = () => { if (follow.checked) log.scrollTop = log.scrollHeight; };
  const append = (text) => {
    log.append(text);
    while (log.textContent.length > LOG_KEPT_CHARACTERS && log.childNodes.length > 1) log.firstChild.remove();
    toEnd();
  };
  // Scrolling up means reading: following goes on once the end is in sight again.
  log.addEventListener("scroll", () => { follow.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 40; });
  follow.addEventListener("change", toEnd);
  toEnd();
  if (log.dataset.complete === "true") return;

  async function read() {
    try {
      const answer = await fetch(`${log.dataset.log}?offset=${offset}${attempt ? `&attempt=${attempt}` : ""}`);
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      const newest = Number(answer.headers.get("X-Ground-Newest-Attempt"));
      attempt = attempt || Number(answer.headers.get("X-Ground-Attempt"));
      offset = Number(answer.headers.get("X-Ground-Next-Offset"));
      said(false);
      if (text) append(text);
      wait = text ? LOG_PERIOD_MS : Math.min(wait * 1.3, LOG_SLOWEST_MS);
      if (text && answer.headers.get("X-Ground-Complete") !== "true") wait = 100;
      if (answer.headers.get("X-Ground-Complete") === "true" && newest > attempt) {
        attempt += 1;
        offset = 0;
        wait = LOG_PERIOD_MS;
        append(`\n──── attempt ${attempt} ────\n`);
        document.getElementById("log-attempt").textContent = String(attempt);
      } else if (answer.headers.get("X-Ground-Complete") === "true" && isOver()) {
        return;
      }
    } catch (error) {
      said(error);
      wait = LOG_SLOWEST_MS;
    }
    setTimeout(read, document.hidden ? LOG_SLOWEST_MS : wait);
  }
  setTimeout(read, LOG_PERIOD_MS / 2);
}

// The head of a run's page stops being marked for refresh once the run is over.
function isOver() {
  const head = document.getElementById("run-head");
  return head !== null && head.dataset.refresh === undefined;
}

// ---------------------------------------------------------------- refresh

function isInUse(element) {
  const selection = document.getSelection();
  const selecting = selection && !selection.isCollapsed && element.contains(selection.anchorNode);
  return selecting || (element.contains(document.activeElement) && document.activeElement.matches("input, select, a"));
}

async function refresh() {
  const parts = [...document.querySelectorAll("[data-refresh]")];
  if (parts.length === 0) return;
  const period = 1000 * Math.min(...parts.map((part) => Number(part.dataset.refresh)));
  try {
    if (!document.hidden) {
      const answer = await fetch(location.href, { redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of parts) {
        const next = fresh.getElementById(part.id);
        if (next && !isInUse(part) && next.outerHTML !== part.outerHTML) part.replaceWith(document.adoptNode(next));
      }
      document.getElementById("freshness").replaceWith(document.adoptNode(fresh.getElementById("freshness")));
      said(false);
    }
  } catch (error) {
    said(error);
  }
  setTimeout(refresh, period);
}

// Menus work without a script; with one they close on Escape, and when something else is meant.
function closeMenus(but) {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== but) menu.open = false;
}
document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (!open) return;
  closeMenus(null);
  open.querySelector("summary").focus();
});

const log = document.querySelector("[data-log]");
if (log) followLog(log);
if (document.querySelector("[data-refresh]")) setTimeout(refresh, 2000);
