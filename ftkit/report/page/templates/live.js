// Loads this file again while its run works, and says so when there has been no sign of life for a while.
"use strict";
(() => {
  const data = document.documentElement.dataset;
  const written = Number(data.written), every = Number(data.every), limit = Number(data.limit);
  if (!every) return; // nobody writes this file again
  const MOST = 6; // reloads without a sign of life, each after twice as long a wait as the one before
  const key = "ftkit " + location.pathname, now = () => Date.now() / 1000, opened = now();

  // What this tab knows: the file's stamp, when it first saw that stamp, and how often it looked since in vain.
  // Times are compared on the reader's clock alone: it may differ from that of the machine that writes.
  let seen = null, remembers = true;
  try { seen = JSON.parse(sessionStorage.getItem(key)); } catch { remembers = false; } // each load is the first
  if (!seen) seen = { written, at: Math.min(opened, written), tries: 0 };
  else if (seen.written !== written) seen = { written, at: opened, tries: 0 };
  remember();
  function remember() { try { sessionStorage.setItem(key, JSON.stringify(seen)); } catch { remembers = false; } }

  const age = document.getElementById("age"), stale = document.getElementById("stale");
  const pause = document.getElementById("pause"), fresh = document.getElementById("fresh");
  let paused = false;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? tr("Go on") : tr("Pause");
    tick();
  });

  const reading = () => document.querySelector("details[open]") || String(getSelection()) !== "";

  function words(seconds) {
    const s = Math.round(seconds);
    if (s < 60) return tr("{n} s", { n: s });
    return s < 3600 ? tr("{n} min", { n: Math.floor(s / 60) }) : tr("{n} h {m} min", { n: Math.floor(s / 3600), m: Math.floor(s % 3600 / 60) });
  }

  function tick() {
    const silent = now() - seen.at, dead = silent >= limit;
    const wait = dead ? every * 2 ** seen.tries : every, due = now() - opened >= wait;
    const waits = paused || document.hidden || reading();
    const given_up = dead && (seen.tries >= MOST || !remembers);
    fresh.classList.toggle("dead", dead && !waits);
    stale.hidden = !dead || waits;
    document.body.classList.toggle("silent", dead && !waits);
    if (paused) age.textContent = tr("Paused.");
    else if (waits) age.textContent = tr("Waits while you read.");
    else if (given_up) age.textContent = tr("This page does not refresh itself any more.");
    else age.textContent = dead ? tr("Silent for {time}.", { time: words(silent) }) : tr("Alive {time} ago.", { time: words(silent) });
    if (due && !waits && !given_up) {
      if (dead) seen.tries += 1;
      remember();
      location.reload();
      return;
    }
    if (!given_up) setTimeout(tick, 500);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
  tick();
})();
