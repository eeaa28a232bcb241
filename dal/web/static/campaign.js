import { ask, Failure, holdFor, spread } from "./api.js";
import { count, find, make, span } from "./dom.js";

const POLL = 4000;
const LATEST = 30000;
const REDRAW = 15000; // figures follow the answers at this distance at most
const PHASES = { waiting: "not begun", training: "preparing the next batch", open: "labelling", between: "between rounds", paused: "paused", stopped: "stopped" };
const ASKED = {
  pause: ["Pause the campaign?", "Annotators get no records until you go on. Unanswered records go back; answers being sent are kept.", "Pause"],
  resume: ["Go on?", "Annotators get records again.", "Go on"],
  close: ["Close this round early?", "The learner learns from the answers so far. Unanswered records of this batch are not asked again, unless the share close_at is answered. Late answers are kept.", "Close the round"],
  stop: ["Stop the campaign?", "Annotators get no records, and no further round begins. Nothing is deleted, and you can go on later.", "Stop the campaign"],
};
const dark = matchMedia("(prefers-color-scheme: dark)");
let drawn = { version: null, at: 0 };
let shown = null;
let me = null;
let pause = POLL;
let timer = 0;
let drawing = false;
const embedded = new Map(); // by place: Bokeh's views of the figures there

function draw(overview) {
  const { standing } = overview;
  shown = overview;
  document.title = `${overview.name}: ${PHASES[standing.phase]}`;
  find("name").textContent = overview.name;
  find("phase").textContent = standing.round ? `round ${standing.round}, ${PHASES[standing.phase]}` : PHASES[standing.phase];
  find("phase").className = standing.phase === "paused" || standing.phase === "stopped" ? "badge" : "badge calm";
  find("about").textContent = `${count(overview.n_rows)} records · ${overview.strategy} · ${overview.learner}`;
  find("batch").textContent = standing.size ? `${count(standing.answered)} of ${count(standing.size)}` : "–";
  find("progress").max = Math.max(1, standing.size);
  find("progress").value = standing.answered;
  find("left").textContent = left(overview);
  find("labels").textContent = count(overview.labels);
  find("budget").textContent = overview.budget ? `of ${count(overview.budget)} budgeted` : `${count(overview.asked)} asked`;
  find("pace").textContent = `${count(Math.round(overview.per_hour))} / h`;
  find("active").textContent = `${count(standing.active)} ${standing.active === 1 ? "person" : "people"} at work`;
  const [value, ...rest] = overview.accuracy.split(" ");
  const measured = /^[01]\./.test(value);
  find("accuracy").textContent = measured ? `${(100 * Number(value)).toFixed(1)} %` : "–";
  find("accuracy-text").textContent = measured ? rest.join(" ") : overview.accuracy;
  drawLists(overview);
  for (const button of document.querySelectorAll("[data-act]")) {
    const halted = standing.phase === "paused" || standing.phase === "stopped";
    const allowed = { pause: !halted, resume: halted, close: standing.step === "open", stop: standing.phase !== "stopped" };
    button.hidden = button.dataset.act === "resume" ? !halted : button.dataset.act === "pause" ? halted : false;
    button.disabled = !allowed[button.dataset.act];
  }
  drawFigures(overview);
}

function left(overview) {
  const texts = [timeLeft(overview), overview.standing.rest].filter(Boolean);
  return texts.join(texts[0]?.endsWith(".") ? " " : "; ");
}

function timeLeft({ standing, left_low, left_high }) {
  if (standing.phase === "training") return standing.usual_pause ? `the next one usually takes ${span(standing.usual_pause)}` : "the next one is in preparation";
  if (standing.reasons.length) return standing.reasons.join(" ");
  if (left_low === null) return standing.pending ? "time left: shown after 20 answers in 15 minutes" : "";
  return `${span(left_low)} to ${span(left_high)} left at this pace`;
}

function drawLists(overview) {
  find("warnings").hidden = !overview.warnings.length;
  find("warnings").replaceChildren(...overview.warnings.map((text) => make("p", { class: "notice warn" }, text)));
  find("verdicts").replaceChildren(...(overview.verdicts.length
    ? overview.verdicts.map((each) => make("li", {}, make("b", {}, each.stop ? "Stop: " : ""), each.reason))
    : [make("li", {}, "No criterion was chosen: the campaign continues until a manager stops it.")]));
  find("machines").replaceChildren(...overview.machines.map((text) => make("li", {}, text)));
  find("balance").replaceChildren(...overview.balance.map((text) => make("li", {}, text)));
  find("bias").replaceChildren(...overview.bias.map((text) => make("li", {}, text)));
  find("people").replaceChildren(...overview.people.map((each) => make("tr", {},
    make("th", { scope: "row" }, each.name), make("td", {}, count(each.answers)), make("td", {}, each.answers ? `${Math.round((100 * each.skipped) / each.answers)} %` : "–"),
    make("td", {}, each.median_seconds === null ? "–" : `${each.median_seconds.toFixed(1)} s`),
    make("td", {}, each.agreement === null ? "–" : `${Math.round(100 * each.agreement)} % of ${count(each.together)}`),
    make("td", {}, `${span((Date.now() - Date.parse(each.last_at)) / 1000)} ago`))));
  if (!overview.people.length) find("people").replaceChildren(make("tr", {}, make("td", { colspan: 6 }, "No answers yet.")));
  find("actions").replaceChildren(...(overview.actions.length
    ? overview.actions.map((each) => make("li", {}, `${new Date(each.at).toLocaleString()}: ${each.person}: ${each.act}`))
    : [make("li", {}, "Nothing yet.")]));
}

async function drawFigures(overview) {
  if (drawing) return;
  const version = `${overview.version} ${dark.matches}`;
  if (version === drawn.version || (drawn.version !== null && Date.now() - drawn.at < REDRAW && drawn.dark === dark.matches)) return;
  drawn = { version, at: Date.now(), dark: dark.matches };
  drawing = true;
  try {
    await drawAll(overview);
  } finally {
    drawing = false;
  }
}

async function drawAll(overview) {
  for (const place of document.querySelectorAll("[data-figure]")) {
    const name = place.dataset.figure;
    const there = overview.figures.includes(name);
    // The stopping criteria have words to say before there is anything to draw.
    if (place.matches("article")) place.hidden = !there && name !== "stopping";
    const target = place.matches("article") ? place.querySelector(".figure") : place;
    if (there) await embed(name, target);
    else empty(target);
  }
}

/** Take figures away. Bokeh keeps what was drawn until it is told; a page that is open for days would grow. */
function empty(target, ...children) {
  for (const views of embedded.get(target) ?? []) {
    const documents = new Set(views.roots.map((view) => view.model.document));
    views.clear();
    for (const each of documents) Bokeh.documents.splice(Bokeh.documents.indexOf(each), 1);
  }
  embedded.delete(target);
  target.replaceChildren(...children);
}

async function embed(name, target) {
  let answer;
  try {
    await drawingCode();
    answer = await ask(`api/figures/${name}?theme=${dark.matches ? "dark" : "light"}`);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    empty(target, make("p", { class: "muted" }, `This figure cannot be drawn now: ${error.message}`));
    drawn.version = null; // with the next overview
    return;
  }
  const places = answer.figures.map(() => make("div"));
  empty(target, ...places);
  const views = [];
  embedded.set(target, views);
  for (const [at, item] of answer.figures.entries()) views.push(await Bokeh.embed.embed_item(item, places[at]));
}

/** Load Bokeh where the page came, and its script did not. */
async function drawingCode() {
  if (window.Bokeh) return;
  await new Promise((loaded, failed) => {
    const gone = () => failed(new Failure("offline", "the server cannot be reached."));
    document.head.append(make("script", { src: "bokeh/bokeh.min.js", onload: loaded, onerror: gone }));
  });
}

/** Ask who this is, and stay with them and their campaign: what is told to one must not steer another. */
async function known() {
  const state = await ask("api/state");
  holdFor(state.campaign.id, state.me.name);
  return state.me;
}

async function refresh() {
  clearTimeout(timer);
  try {
    me ??= await known();
    find("me").textContent = me.name;
    find("leave").hidden = !me.session;
    draw(await ask("api/campaign"));
    find("problem").hidden = true;
    pause = POLL;
  } catch (error) {
    find("problem").hidden = false;
    find("problem").textContent = problem(error);
    pause = Math.min(LATEST, Math.max(2 * pause, 1000 * (error.wait || 0)));
    if (!(error instanceof Failure)) reportError(error);
  } finally {
    clearTimeout(timer);
    timer = setTimeout(() => (document.hidden ? null : refresh()), spread(pause));
  }
}

function problem({ kind, status, message }) {
  if (kind === "token") return `Your link is needed. ${message}`;
  if (kind === "offline") return `${status === 503 ? message : "The server cannot be reached."} This page tries again automatically.`;
  return message;
}

for (const button of document.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => {
    const [title, text, yes] = ASKED[button.dataset.act];
    find("sure-title").textContent = title;
    find("sure-text").textContent = text;
    find("yes").textContent = yes;
    find("sure").dataset.act = button.dataset.act;
    find("sure").returnValue = "no";
    find("sure").showModal();
  });
}
find("sure").addEventListener("close", async () => {
  if (find("sure").returnValue !== "yes") return;
  const { act } = find("sure").dataset;
  try {
    await ask("api/actions", { act });
    find("say").textContent = `Done: ${ASKED[act][2]}.`;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    find("problem").hidden = false;
    find("problem").textContent = error.message;
    return;
  }
  await refresh();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "r") refresh();
});
dark.addEventListener("change", () => shown && drawFigures(shown));

document.addEventListener("visibilitychange", () => document.hidden || refresh());
find("leave").addEventListener("click", async () => {
  try {
    await ask("leave", {});
    location.replace("enter");
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    find("problem").hidden = false;
    find("problem").textContent = `You are not logged out: ${error.message}`;
  }
});

refresh();
