/** The key printed on the button of class `code`: 1 to 9, 0, then the same with Shift; none beyond the twentieth. */
export function keyOf(code) {
  if (code >= 20) return "";
  const digit = String((code + 1) % 10);
  return code < 10 ? digit : `⇧${digit}`;
}

const PLAIN = {
  u: "undo", Backspace: "undo", ArrowLeft: "back", ArrowRight: "forward", "+": "bigger", "=": "bigger", "-": "smaller",
  g: "guidelines", "?": "help", "/": "search", w: "why", m: "more",
};

/**
 * Say what a key press means where there are `classes` classes: {act, code}, or null where it means nothing.
 *
 * A held key repeats; were repeats taken, one long press would answer every record in the queue.
 */
export function meaning(event, classes) {
  // A dialog that a key has just closed has taken the key: the record behind it must not get it as well.
  if (event.repeat || event.isComposing || event.altKey || event.defaultPrevented) return null;
  const target = event.target;
  if (target instanceof Element) {
    if (target.closest("input, textarea, select, dialog[open]")) return null;
    // Where a button has the focus, Space and Enter press it, as everywhere.
    if ((event.key === " " || event.key === "Enter") && target.closest("button, a, summary")) return null;
  }
  if (event.ctrlKey || event.metaKey) return event.key.toLowerCase() === "z" && !event.shiftKey ? { act: "undo" } : null;
  if (event.key === " ") return { act: event.shiftKey ? "reasons" : "skip" };
  // By the place of the key, because Shift+1 is another character on every keyboard; by the character, too, for
  // keyboards that have the digits on Shift (French) or on a pad.
  const place = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  const digit = place ? place[1] : /^[0-9]$/.test(event.key) ? event.key : null;
  if (digit !== null) {
    const shifted = event.shiftKey && !/^[0-9]$/.test(event.key);
    const code = ((Number(digit) + 9) % 10) + (shifted ? 10 : 0);
    // "/" is Shift+7 on German keyboards: a digit that is no class may still mean something else.
    if (code < classes) return { act: "choose", code };
  }
  const act = PLAIN[event.key];
  return act ? { act } : null;
}
