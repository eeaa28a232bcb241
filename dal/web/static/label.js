import { ask, Failure } from "./api.js";
import { count, find, make, span } from "./dom.js";
import { keyOf, meaning } from "./keys.js";
import { Drawing } from "./record.js";
import { Work } from "./work.js";

const REASONS = ["unclear", "broken", "not my field", "several classes"];
const LISTED = 10;

const work = new Work(() => draw());
const drawing = new Drawing((record) => record === work.current && draw());
let drawn = { key: null, round: null, classes: null };
let reason = REASONS[0];
let loggedOut = false;

// -- the state that the page is in, in one place -------------------------------------------------------------------------

/** Name the state: what stands on the stage. */
function stateOf() {
  const { state, failure } = work;
  if (failure?.barred) return failure.kind;
  if (!state) return failure ? "gone" : "loading";
  if (work.finished) return "finished";
  if (work.current) return work.current.error ? "broken" : "record";
  if (failure) return "gone";
  if (state.phase === "open") return work.dry ? "others" : "loading";
  return state.phase;
}

const STAGE = { training: training, waiting: waiting, between: between, paused: paused, stopped: stopped, others: others,
  finished: finished, token: token, forbidden: forbidden, elsewhere: elsewhere, gone: gone, loading: skeleton };

function skeleton() {
  return [make("div", { class: "skeleton", "aria-label": "Loading" }, make("i"), make("i"), make("i"))];
}

function notice(title, ...parts) {
  return [make("div", { class: "state" }, make("h2", {}, title), ...parts)];
}

const paragraph = (text) => make("p", {}, text);

function training() {
  const { state } = work;
  const doing = { frozen: "learning from the labels", fitted: "scoring the pool", scanned: "choosing the batch" }[state.step];
  const passed = Math.max(0, (Date.now() - Date.parse(state.since)) / 1000);
  const usual = state.usual_pause;
  return notice(
    `Round ${state.round} is in preparation`,
    usual ? make("progress", { max: usual, value: Math.min(passed, usual * 0.97), "aria-label": "Time passed of the usual time" }) : null,
    paragraph(`The computer is ${doing}.` + (usual ? ` It usually takes about ${span(usual)}; ${span(passed)} have passed.` : " The duration of the first time is not known.")),
    paragraph("This page continues automatically. Meanwhile you may look through your earlier answers."),
  );
}

const sought = () => (work.state.examples ? paragraph(`The next batch looks for more like ${work.state.examples === 1 ? "one record" : `${count(work.state.examples)} records`}.`) : null);

const thanks = () => (work.state.mine ? paragraph(`Of this batch you have answered ${count(work.state.mine)}. Thank you.`) : null);

function waiting() {
  return notice("Nothing has been asked yet", paragraph("The first batch has not been chosen. The manager of the campaign starts it with dal next or dal run."), paragraph("This page continues automatically."));
}

function between() {
  return notice("This batch is done", paragraph(`${work.state.answered < work.state.size ? "Enough of its records have" : "Every record of it has"} an answer. The next round starts with dal next, or automatically where dal run is running.`), sought(), thanks());
}

function paused() {
  return notice("The campaign is paused", ...work.state.reasons.map(paragraph), paragraph("Nothing is lost, and this page continues automatically."), thanks());
}

function stopped() {
  return notice("The campaign is over", ...work.state.reasons.map(paragraph), thanks());
}

function others() {
  const left = work.state.pending;
  return notice(
    "You are done with this batch",
    make("p", { class: "count" }, count(left)),
    paragraph(left === 1 ? "answer is with others." : "answers are with others."),
    sought(),
    paragraph("If others return records, you get them: this page continues automatically."),
    thanks(),
  );
}

function finished() {
  return notice("See you", paragraph("Your unanswered records went back to the others."), thanks(), actions(["Go on labelling", () => work.resume(), "primary"]));
}

function token() {
  return notice("Your link is needed", paragraph(work.failure.message), kept());
}

function forbidden() {
  return notice("This is not for you", paragraph(work.failure.message), kept());
}

function elsewhere() {
  return notice("This page is out of date", paragraph(work.failure.message), kept(), actions(["Open it again", () => location.reload(), "primary"]));
}

function gone() {
  // 503 is the server's own word: it is there, and what it keeps things in is not.
  const why = work.failure.status === 503 ? paragraph(work.failure.message) : null;
  return notice(why ? "The server cannot answer just now" : "The server cannot be reached", why, paragraph("This page tries again automatically."), kept(), actions(["Try now", () => (work.state ? work.sync() : work.start())]));
}

function kept() {
  const unsent = work.unsent;
  return unsent ? paragraph(`${unsent === 1 ? "One answer is" : `${count(unsent)} answers are`} kept on this computer and will be sent.`) : null;
}

function actions(...buttons) {
  return make("div", { class: "actions" }, ...buttons.map(([text, onclick, kind = ""]) => make("button", { onclick, class: kind }, text)));
}

// -- drawing -------------------------------------------------------------------------------------------------------------

function draw() {
  const name = stateOf();
  document.body.dataset.state = name;
  drawing.prefetch([work.looking?.record, ...work.queue].filter(Boolean).slice(0, 14));
  drawTop();
  drawStage(name);
  drawClasses();
  drawPrevious();
  drawRemark();
}

function drawTop() {
  const { state } = work;
  find("unsent").hidden = !(work.unsent && work.failure) ;
  find("unsent").textContent = `${count(work.unsent)} unsent`;
  find("finish").hidden = !state || work.finished || state.phase !== "open";
  find("team").hidden = !state?.size;
  if (!state) return;
  document.title = `Labelling: ${state.campaign.name}`;
  find("campaign").textContent = state.campaign.name;
  find("round").textContent = state.round ? `round ${state.round}` : "";
  find("progress").max = Math.max(1, state.size);
  find("progress").value = state.answered;
  find("answered").textContent = state.size ? `${count(state.answered)} of ${count(state.size)}` : "";
  find("mine").textContent = state.size ? ` · ${count(state.mine)} by you${left()}` : "";
  find("me").textContent = state.me.name;
  find("overview").hidden = state.me.role !== "manager";
  find("guide").hidden = !state.guidelines;
  find("leave").hidden = !state.me.session;
}

/** The time left for the batch at the pace of this person's last answers, once there are twenty to judge by. */
function left() {
  const paces = work.done.slice(-50).map((each) => each.lead_time).filter((seconds) => seconds !== null).sort((a, b) => a - b);
  if (paces.length < 20 || !work.state.pending) return "";
  return ` · about ${span((paces[paces.length >> 1] * work.state.pending) / Math.max(1, work.state.active))} left`;
}

function drawStage(name) {
  const record = name === "record" || name === "broken" ? work.current : null;
  // Redrawn only when it changes: text that somebody is selecting stays selected.
  const key = record ? `${name} ${record.row} ${record.was ? "was" : ""} ${work.looking ? "looking" : ""} ${record.example ? "example" : ""}` : `${name} ${JSON.stringify(work.state)} ${work.unsent} ${work.failure?.message}`;
  if (key === drawn.key) return;
  drawn.key = key;
  if (!record) {
    find("record").replaceChildren(...STAGE[name]());
    say(find("record").textContent);
    return;
  }
  work.seen(record);
  const body = make("div", { class: "body" });
  if (record.error) {
    body.append(make("div", { class: "notice bad" }, make("span", {}, `Part of this record cannot be shown: ${record.error} Space skips it as broken.`)));
  }
  body.append(...drawing.nodes(record));
  find("record").replaceChildren(heading(record), body);
  find("record").scrollTop = 0;
}

function heading(record) {
  const head = make("header", {}, make("span", { class: "id" }, record.record_id));
  const earlier = work.looking ?? record.was;
  if (record.refused) head.append(make("span", { class: "badge" }, `not accepted: ${record.refused}`));
  if (work.looking) head.append(make("span", { class: "badge calm" }, `your answer: ${nameOf(earlier)}; a class key changes it, → continues`));
  else if (record.was) head.append(make("span", { class: "badge calm" }, `was ${nameOf(earlier)}`));
  if (record.example) head.append(make("span", { class: "badge calm" }, "the next batch looks for more like this"));
  if (record.suggestion) {
    const [code, sure] = record.suggestion;
    head.append(make("span", { class: "badge" }, `the model's guess: ${work.state.classes[code]}${sure === null ? "" : `, ${Math.round(100 * sure)} %`}`));
  }
  return head;
}

function nameOf({ label, status, skip_reason }) {
  return status === "skipped" ? `skipped${skip_reason ? ` (${skip_reason})` : ""}` : (work.state?.classes[label] ?? `class ${label}`);
}

function drawClasses() {
  const classes = work.state?.classes ?? [];
  const key = classes.join("\n");
  if (drawn.classes !== key) {
    drawn.classes = key;
    find("classes").replaceChildren(...classes.map((name, code) => {
      const dot = make("i");
      dot.style.background = work.state.colors[code];
      return make("button", { "data-code": code, onclick: (event) => { choose(code); released(event); } }, keyOf(code) ? make("kbd", {}, keyOf(code)) : null, dot, make("span", {}, name));
    }));
  }
  const earlier = work.looking ?? work.current?.was;
  for (const button of find("classes").children) {
    button.disabled = !work.current;
    button.classList.toggle("was", Boolean(earlier) && earlier.status !== "skipped" && String(earlier.label) === button.dataset.code);
  }
  find("skip").disabled = find("reasons").disabled = find("more").disabled = !work.current;
  find("more").setAttribute("aria-pressed", String(Boolean(work.current?.example)));
  find("undo").disabled = !work.done.length || Boolean(work.failure?.barred);
}

function drawPrevious() {
  const entries = work.done.slice(-LISTED).reverse();
  find("none").hidden = entries.length > 0;
  find("previous").replaceChildren(...entries.map((entry) => make("li", {}, make("button", {
    "aria-current": entry === work.looking ? "true" : null,
    "aria-label": `Record ${entry.record_id}: ${nameOf(entry)}. Look at it again`,
    onclick: (event) => { work.look(entry); released(event); },
  }, make("span", { class: "id" }, entry.record_id), make("span", {}, nameOf(entry)), make("span", { class: "took" }, entry.lead_time === null ? "" : `${Math.round(entry.lead_time)} s`)))));
}

function drawRemark() {
  const offline = work.failure && work.current ? { kind: "warn", text: trouble(work.failure) } : null;
  const remark = offline ?? work.remark;
  find("remark").hidden = !remark;
  if (!remark) return find("remark").replaceChildren();
  find("remark").className = `notice ${remark.kind}`;
  if (find("remark").textContent === remark.text) return;
  find("remark").replaceChildren(make("span", {}, remark.text));
}

function trouble({ kind, status, message }) {
  if (kind === "busy") return "The server is busy; your answers are kept and will be sent.";
  const why = status === 503 ? message : "No connection.";
  return `${why} Go on: your answers are kept on this computer and sent when it is back.`;
}

function say(text) {
  find("say").textContent = text;
}

// -- what people do --------------------------------------------------------------------------------------------------------

function choose(code) {
  const name = work.state.classes[code];
  if (name === undefined || !work.answer(code)) return;
  for (const button of find("classes").children) button.classList.toggle("pressed", button.dataset.code === String(code));
  setTimeout(() => find("classes").children[code]?.classList.remove("pressed"), 180);
  spoken(`${name}.`);
}

function skip(because) {
  const given = because ?? (work.current?.error ? "broken" : reason);
  if (work.answer(null, given)) spoken(`Skipped, ${given}.`);
}

function spoken(what) {
  const next = work.current;
  say(next ? `${what} ${drawing.spoken(next)}` : what);
}

async function undo() {
  const entry = await work.undo();
  if (entry) spoken(`Took back ${nameOf(entry)}.`);
}

async function more() {
  const record = await work.more();
  if (record) say(record.example ? `The next batch looks for more like ${record.record_id}.` : `No longer for more like ${record.record_id}.`);
}

/** Close a dialog. Until the next frame its button would keep the focus, and a quick Space would press it again. */
function shut(dialog) {
  dialog.close();
  if (dialog.contains(document.activeElement)) document.activeElement.blur();
}

function askReason() {
  if (!work.current) return;
  find("reason-choices").replaceChildren(...REASONS.map((text, at) => make("button", {
    autofocus: text === reason, "data-digit": at + 1,
    onclick: () => { shut(find("reason-dialog")); if (!work.current?.error) reason = text; skip(text); },
  }, make("kbd", {}, String(at + 1)), text)));
  find("reason-dialog").showModal();
}

function search() {
  if (!work.current) return;
  find("search").value = "";
  filter();
  find("search-dialog").showModal();
  find("search").focus();
}

function filter() {
  const part = find("search").value.trim().toLowerCase();
  const found = work.state.classes.map((name, code) => [name, code]).filter(([name]) => name.toLowerCase().includes(part)).slice(0, 8);
  find("search-choices").replaceChildren(...found.map(([name, code]) => make("button", { onclick: () => { shut(find("search-dialog")); choose(code); } }, name)));
}

async function guidelines() {
  if (!work.state?.guidelines) return;
  try {
    find("guide-text").textContent = (await ask("api/guidelines")).text;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    find("guide-text").textContent = `The guidelines cannot be read now: ${error.message}`;
  }
  find("guide-dialog").showModal();
}

async function logOut() {
  try {
    await work.logOut();
    loggedOut = true;
    location.replace("enter");
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    work.remark = { kind: "warn", text: `You are not logged out: ${error.message}` };
    draw();
  }
}

/** A button that was clicked by pointer gives the focus back: Space would press it again, and label a record. */
function released(event) {
  if (event.detail > 0) event.currentTarget?.blur?.();
}

const ACTS = {
  skip: () => skip(), reasons: askReason, undo, back: () => work.step(-1), forward: () => work.step(1), search, more, guidelines,
  help: () => find("help-dialog").showModal(), bigger: () => drawing.bigger(), smaller: () => drawing.smaller(),
};

document.addEventListener("keydown", (event) => {
  const meant = meaning(event, work.state?.classes.length ?? 0);
  if (!meant || document.querySelector("dialog[open]")) return;
  if (meant.act !== "choose" && !(meant.act in ACTS)) return;
  event.preventDefault();
  if (meant.act === "choose") choose(meant.code);
  else ACTS[meant.act]();
});
for (const [id, act] of [["skip", "skip"], ["reasons", "reasons"], ["undo", "undo"], ["more", "more"], ["help", "help"], ["guidelines", "guidelines"]]) {
  find(id).addEventListener("click", (event) => { ACTS[act](); released(event); });
}
find("leave").addEventListener("click", logOut);
find("finish").addEventListener("click", () => work.finish());
find("overview").addEventListener("click", (event) => { if (!event.ctrlKey && !event.metaKey && !event.shiftKey) work.leave(); });
addEventListener("pageshow", (event) => event.persisted && work.back());
find("search").addEventListener("input", filter);
find("search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  find("search-choices").firstElementChild?.click();
});
find("reason-dialog").addEventListener("keydown", (event) => {
  const button = [...find("reason-choices").children].find((each) => each.dataset.digit === event.key);
  if (button) { event.preventDefault(); button.click(); }
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("cancel", (event) => { event.preventDefault(); shut(dialog); });
}
addEventListener("beforeunload", (event) => {
  if (work.unsent && !loggedOut) event.preventDefault();
});

draw();
work.start();
