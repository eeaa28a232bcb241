/**
 * What the server has not confirmed yet, in the order in which it was done.
 *
 * It lies in localStorage, so it outlives a reload, a crash of the browser and a server that is gone for days. Each
 * entry has a key of its own: two tabs of one person add to the same outbox, and neither overwrites the other's.
 */
export class Outbox {
  constructor(campaign, annotator, storage = window.localStorage) {
    // Encoded: a name that holds a stroke would begin as another person's outbox does.
    this.prefix = `dal/${campaign}/${encodeURIComponent(annotator)}/outbox/`;
    this.storage = storage;
    this.last = 0;
  }

  /** Add an operation; it is on disk when this returns. */
  push(operation) {
    // The clock orders entries across tabs and reloads; within one millisecond, and where it was set back, the newest does.
    const newest = Number(this.#keys().at(-1)?.slice(this.prefix.length).split("/")[0] ?? 0);
    this.last = Math.max(Date.now(), this.last + 1, newest + 1);
    const key = `${this.prefix}${String(this.last).padStart(15, "0")}/${operation.event_id ?? operation.new_event_id}`;
    this.storage.setItem(key, JSON.stringify(operation));
    return key;
  }

  /** All operations as [key, operation], the oldest first. */
  entries() {
    return this.#keys().map((key) => [key, this.#read(key)]).filter(([, operation]) => operation !== null);
  }

  get size() {
    return this.#keys().length;
  }

  #keys() {
    return Object.keys(this.storage).filter((key) => key.startsWith(this.prefix)).sort();
  }

  #read(key) {
    try {
      return JSON.parse(this.storage.getItem(key));
    } catch {
      this.setAside(key); // torn: it must not hold up the rest
      return null;
    }
  }

  drop(keys) {
    for (const key of keys) this.storage.removeItem(key);
  }

  /** Take an operation out of the way that the server will never accept, without losing it. */
  setAside(key) {
    const value = this.storage.getItem(key);
    if (value !== null) this.storage.setItem(key.replace("/outbox/", "/refused/"), value);
    this.storage.removeItem(key);
  }
}
