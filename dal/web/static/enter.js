import { ask, Failure, spread } from "./api.js";
import { find } from "./dom.js";

const SOON = 1000;
const LATEST = 15000;
let timer = 0;

function tell(title, text) {
  find("title").textContent = title;
  find("text").textContent = text;
}

/** Turn the token behind "#" into a cookie, and go to the pages; the token leaves the address bar and the history. */
async function enter(pause = SOON) {
  clearTimeout(timer);
  const token = location.hash.slice(1);
  if (!token) return tell("Your link is needed", "Open your complete link, with everything after the # sign.");
  try {
    const me = await ask("enter", { token });
    // A manager who only looks must not take records in hand: the others would wait for them.
    location.replace(me.role === "manager" ? "campaign" : "./");
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.kind === "offline" || error.kind === "busy") {
      const why = error.status === 503 || error.kind === "busy" ? error.message : "The server cannot be reached.";
      tell("One moment more", `${why} This page tries again automatically.`);
      timer = setTimeout(() => enter(Math.min(LATEST, 2 * pause)), spread(Math.max(pause, 1000 * error.wait)));
      return;
    }
    history.replaceState(null, "", location.pathname);
    tell("This link does not work", error.message);
  }
}

// The right link, opened in a tab that shows a wrong one, is the same page to the browser.
addEventListener("hashchange", () => location.hash && enter());
enter();
