import { ask, Failure } from "./api.js";
import { find } from "./dom.js";

function tell(title, text) {
  find("title").textContent = title;
  find("text").textContent = text;
}

/** Turn the token behind "#" into a cookie, and go to the pages; the token leaves the address bar and the history. */
async function enter() {
  const token = location.hash.slice(1);
  if (!token) return tell("Your link is needed", "Open the whole link that you were given, with everything behind the # sign.");
  try {
    const me = await ask("enter", { token });
    // A manager who only looks must not take records in hand: the others would wait for them.
    location.replace(me.role === "manager" ? "campaign" : "./");
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    history.replaceState(null, "", location.pathname);
    if (error.kind === "offline") {
      tell("The server cannot be reached", "Open the link again in a while.");
    } else tell("This link does not work", error.message);
  }
}

// The right link, opened in a tab that shows a wrong one, is the same page to the browser.
addEventListener("hashchange", () => location.hash && enter());
enter();
