import { ask, Failure, holdFor, options, spread } from "./api.js";
import { Outbox } from "./outbox.js";

/** Records held ready, so that the next one is on screen before the server has heard of the last answer. */
export const AHEAD = 10;
const AT_ONCE = 50;
const POLL = 3000;
const RENEW = 60000;
const LONGEST_WAIT = 15000;

/**
 * What an annotator does, apart from how it looks: the records in hand, those answered, and the traffic with the server.
 *
 * An answer belongs to the record that was on screen, because it is made from that record and nothing else: however
 * late the server is, no key is credited to another one. `changed` is called after every change.
 */
export class Work {
  constructor(changed) {
    this.changed = changed;
    this.state = null; // of the campaign, as the server last sent it
    this.queue = []; // records in hand; the first is on screen unless `looking` is set
    this.done = []; // answered records, the oldest first
    this.looking = null; // an entry of `done` that is on screen again
    this.failure = null; // why the server does not answer as it should
    this.remark = null; // {text, kind}: one line about something that went otherwise than expected
    this.finished = false;
    this.dry = false; // the server had no more records when it was asked last
    this.outbox = null;
    this.exchanging = null; // the promise of the exchange under way
    this.again = false;
    this.pause = 0;
    this.timer = 0;
    this.shown = { row: null, at: 0, hidden: 0, since: null };
  }

  async start() {
    await this.#reachState();
    if (!this.state) return;
    addEventListener("online", () => this.sync());
    document.addEventListener("visibilitychange", () => this.#visible());
    setInterval(() => this.renew(), RENEW);
    await this.sync();
  }

  async #reachState() {
    try {
      const state = await ask("api/state");
      holdFor(state.campaign.id, state.me.name);
      this.outbox ??= new Outbox(state.campaign.id, state.me.name);
      const past = await ask("api/history?n=200");
      this.failure = null;
      this.pause = 0;
      this.state = state;
      const unsent = this.outbox.entries().map(([, operation]) => operation);
      this.done = past.answers.filter((each) => !unsent.some((one) => one.undoes === each.event_id));
      for (const one of unsent) if (one.kind === "answer") this.#remember(one, null);
    } catch (error) {
      this.#failed(error, () => this.start());
    }
    this.changed();
  }

  /** Try again later after any failure, even without a valid link, which a manager may repair. */
  #failed(error, again) {
    this.failure = error instanceof Failure ? error : new Failure("offline", String(error));
    this.pause = Math.min(LONGEST_WAIT, Math.max(500, this.pause * 2));
    this.#later(again, Math.max(this.pause, this.failure.wait * 1000));
    if (error !== this.failure) reportError(error);
  }

  // -- what is on screen ---------------------------------------------------------------------------------------------

  get current() {
    if (this.failure?.barred) return null;
    if (this.looking) return this.looking.record;
    return this.finished ? null : (this.queue[0] ?? null);
  }

  get unsent() {
    return this.outbox?.size ?? 0;
  }

  /** Begin to count the time that a record is looked at; time in a hidden tab does not count. */
  seen(record) {
    if (this.shown.row !== record.row) {
      this.shown = { row: record.row, at: Date.now(), from: performance.now(), hidden: 0, since: document.hidden ? performance.now() : null };
    }
  }

  #visible() {
    if (document.hidden) this.shown.since = performance.now();
    else {
      if (this.shown.since !== null) this.shown.hidden += performance.now() - this.shown.since;
      this.shown.since = null;
      this.renew();
      this.sync();
    }
  }

  // -- what the annotator does ---------------------------------------------------------------------------------------

  /** Answer the record on screen: a class code, or null with a reason to skip it. */
  answer(label, reason = null) {
    const record = this.current;
    if (!record) return null;
    const operation = {
      kind: "answer",
      event_id: crypto.randomUUID?.() ?? uuid(),
      row: record.row,
      record_id: record.record_id,
      status: label === null ? "skipped" : "submitted",
      label,
      skip_reason: label === null ? reason : null,
      // Not by the clock, which may be put right meanwhile: years would be no time that the server takes.
      lead_time: Math.max(0, performance.now() - this.shown.from - this.shown.hidden) / 1000,
      shown_at: new Date(this.shown.at).toISOString(),
      answered_at: new Date().toISOString(),
      suggestion_shown: Boolean(record.suggestion),
    };
    if (!this.#keep(operation)) return null;
    this.#remember(operation, record);
    if (this.looking) this.looking = null;
    else this.queue.shift();
    this.shown = { row: null, at: 0, hidden: 0, since: null };
    this.remark = null;
    this.changed();
    this.sync();
    return operation;
  }

  /** Put an operation into the outbox; where it has no room, say so: what was not kept was not done. */
  #keep(operation) {
    try {
      this.outbox.push(operation);
      return true;
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.remark = { kind: "bad", text: "This browser has no space left to keep your answer, so it was not saved. Free some space, or use another browser." };
      this.changed();
      return false;
    }
  }

  #remember(operation, record) {
    const before = this.done.find((each) => each.row === operation.row);
    const entry = {
      event_id: operation.event_id, row: operation.row, record_id: operation.record_id, status: operation.status,
      label: operation.label, skip_reason: operation.skip_reason, lead_time: operation.lead_time,
      record: record ?? before?.record ?? null, earlier: before ? before.event_id : null,
    };
    if (before) this.done[this.done.indexOf(before)] = entry;
    else this.done.push(entry);
  }

  /** Take back the newest answer, or the one that is on screen again; its record comes back to be answered again. */
  async undo() {
    const entry = this.failure?.barred ? null : (this.looking ?? this.done.at(-1));
    if (!entry || !(await this.#load(entry))) return null;
    if (!this.#keep({ kind: "undo", undoes: entry.event_id, new_event_id: crypto.randomUUID?.() ?? uuid() })) return null;
    this.done.splice(this.done.indexOf(entry), 1);
    this.looking = null;
    this.queue = this.queue.filter((record) => record.row !== entry.row);
    this.queue.unshift({ ...entry.record, was: { label: entry.label, status: entry.status } });
    this.finished = false;
    this.shown = { row: null, at: 0, hidden: 0, since: null };
    this.changed();
    this.sync();
    return entry;
  }

  /** Look at an answered record again, without taking its answer back. */
  async look(entry) {
    if (entry && !(await this.#load(entry))) return;
    this.looking = entry;
    this.changed();
  }

  /** Have the next batch search for more like the record on screen, or no longer; give the record, null if it failed. */
  async more() {
    const record = this.current;
    if (!record) return null;
    try {
      const { wanted, examples } = await ask("api/examples", { row: record.row, wanted: !record.example });
      record.example = wanted;
      this.state.examples = examples;
      this.remark = null;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.remark = { kind: "warn", text: `Record ${record.record_id} could not be marked: ${error.message}` };
    }
    this.changed();
    return this.remark ? null : record;
  }

  step(by) {
    if (!this.done.length) return;
    const at = this.looking ? this.done.indexOf(this.looking) : this.done.length;
    const next = Math.max(0, at + by);
    this.look(next >= this.done.length ? null : this.done[next]);
  }

  /** Hand the records in hand back on the way to another page; the request outlives this one. */
  leave() {
    const rows = this.queue.map((record) => record.row);
    if (rows.length) fetch("api/release", { ...options({ rows }), keepalive: true }).catch(() => {});
  }

  /** Take records again where the browser restores this page from its cache. */
  back() {
    if (!this.outbox) return;
    this.queue = [];
    this.changed();
    this.sync();
  }

  /** Hand the records in hand back, for others. */
  async finish() {
    this.finished = true;
    this.looking = null;
    this.changed();
    await this.exchanging; // it may bring more records, after these were handed back
    if (!this.finished) return; // resumed meanwhile
    const rows = this.queue.map((record) => record.row);
    this.queue = [];
    this.changed();
    try {
      if (rows.length) await ask("api/release", { rows });
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.remark = { kind: "warn", text: "The server could not be reached. Your unanswered records go to others in ten minutes." };
      this.changed();
    }
  }

  /** Log this browser out, after what is unsent was sent or tried; what is left waits here for the same person. */
  async logOut() {
    await this.sync();
    await this.finish(); // waited for: without the session nothing can be handed back
    await ask("leave", {});
  }

  resume() {
    this.finished = false;
    this.sync();
    this.changed();
  }

  async #load(entry) {
    if (entry.record) return true;
    try {
      entry.record = await ask(`api/records/${entry.row}`);
      return true;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.remark = { kind: "warn", text: `Record ${entry.record_id} cannot be shown again now: ${error.message}` };
      this.changed();
      return false;
    }
  }

  // -- the server ----------------------------------------------------------------------------------------------------

  /** Send what is unsent, and take as many records as are missing. One request at a time; calls meanwhile make one more. */
  sync() {
    if (this.exchanging) this.again = true;
    return (this.exchanging ??= this.#exchangeAll());
  }

  async #exchangeAll() {
    clearTimeout(this.timer);
    try {
      do {
        this.again = false;
        await this.#exchange();
        this.pause = 0;
        this.failure = null;
      } while (this.again || this.unsent > 0);
      this.#later(() => this.sync(), this.queue.length || this.finished ? 5 * POLL : POLL);
    } catch (error) {
      this.#failed(error, () => this.sync());
    } finally {
      this.exchanging = null;
    }
    this.changed();
  }

  #later(action, wait = POLL) {
    clearTimeout(this.timer);
    this.timer = setTimeout(action, spread(wait));
  }

  async #exchange() {
    const entries = this.outbox.entries();
    const first = entries[0]?.[1];
    if (first?.kind === "undo") return this.#sendUndo(entries[0]);
    const end = entries.findIndex(([, operation]) => operation.kind === "undo");
    const sending = entries.slice(0, end < 0 ? AT_ONCE : Math.min(end, AT_ONCE));
    await this.#sendAnswers(sending);
  }

  async #sendUndo([key, { undoes, new_event_id }]) {
    try {
      const remark = this.remark;
      const { outcome, state } = await ask("api/undo", { event_id: undoes, new_event_id });
      if (outcome.outcome === "refused") this.#stands(key, outcome.reason);
      else this.outbox.drop([key]);
      this.#newState(state, remark);
    } catch (error) {
      if (!error.final) throw error;
      this.#stands(key, error.message);
    }
  }

  #stands(key, reason) {
    this.outbox.setAside(key);
    this.remark = { kind: "bad", text: `An answer could not be taken back: ${reason}` };
  }

  async #sendAnswers(sending) {
    const remark = this.remark;
    const answers = sending.map(([, { kind, record_id, ...given }]) => given);
    const before = new Set(sending.map(([, operation]) => operation.row));
    // The server counts what is in hand: those on screen and ahead, of which it knows, and new ones.
    // Some at a time, because choosing one costs the server as much as choosing six.
    const wanted = this.finished || this.queue.length > AHEAD ? 0 : AHEAD + 6;
    let got;
    try {
      got = await ask("api/answers", { answers, lease: wanted });
    } catch (error) {
      if (!error.final || !sending.length) throw error;
      // One that the server cannot read at all must not hold up the rest for ever.
      if (sending.length === 1) this.#refused(sending[0][0], sending[0][1], error.message);
      else for (const one of sending) await this.#sendAnswers([one]);
      return;
    }
    const outcomes = new Map(got.outcomes.map((each) => [each.event_id, each]));
    for (const [key, operation] of sending) {
      const outcome = outcomes.get(operation.event_id);
      if (outcome?.outcome === "refused") this.#refused(key, operation, outcome.reason);
      else if (outcome) {
        this.outbox.drop([key]);
        if (outcome.late) this.remark = { kind: "calm", text: `Your answer to ${operation.record_id} came late. It is kept, and counts from the next round.` };
      }
    }
    // What was answered here while the request was under way may have been leased again: the server could not know.
    const answered = new Set([...before, ...this.outbox.entries().map(([, operation]) => operation.row)]);
    const held = new Set(this.queue.map((record) => record.row));
    this.queue.push(...got.records.filter((record) => !held.has(record.row) && !answered.has(record.row)));
    if (wanted) this.dry = got.records.length === 0;
    this.#newState(got.state, remark);
  }

  #refused(key, operation, reason) {
    this.outbox.setAside(key);
    const at = this.done.findIndex((each) => each.event_id === operation.event_id);
    const entry = at < 0 ? null : this.done.splice(at, 1)[0];
    if (entry?.record) {
      this.queue.unshift({ ...entry.record, was: { label: operation.label, status: operation.status }, refused: reason });
      this.looking = null;
    } else this.remark = { kind: "bad", text: `The answer to ${operation.record_id} was not accepted: ${reason}` };
  }

  #newState(state, remark) {
    const before = this.state;
    this.state = state;
    // A round that was closed early or a campaign that was paused takes the leases of its records with it.
    if (before && (before.round !== state.round || before.phase !== state.phase)) {
      // What was remarked before is of the past; what came with this very state is not: that an answer was late, say.
      if (this.remark === remark) this.remark = null;
      // A batch that looks for more like the marked records uses the marks up; one of another search leaves them.
      if (!state.examples) for (const record of [...this.queue, ...this.done.map((each) => each.record)]) if (record) record.example = false;
      this.renew();
    }
    this.changed();
  }

  /** Keep the records in hand for another ten minutes; records that went to somebody else leave the screen. */
  async renew() {
    if (document.hidden || !this.queue.length || this.failure) return;
    const rows = this.queue.map((record) => record.row);
    let kept;
    try {
      kept = new Set((await ask("api/renew", { rows })).rows);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      return; // the next exchange says what is wrong
    }
    const lost = this.queue.filter((record) => rows.includes(record.row) && !kept.has(record.row) && !record.was);
    if (!lost.length) return;
    const visible = lost.includes(this.queue[0]) && !this.looking;
    this.queue = this.queue.filter((record) => !lost.includes(record));
    // Where a round was closed, nobody else has them: the page says so itself.
    if (visible && this.state.phase === "open") this.remark = { kind: "calm", text: `Record ${lost[0].record_id} went to somebody else meanwhile; here is another one.` };
    this.changed();
    this.sync();
  }
}

/** A random UUID where crypto.randomUUID is missing: browsers offer it on https and localhost only. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
