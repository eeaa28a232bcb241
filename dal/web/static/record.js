import { spread } from "./api.js";
import { make } from "./dom.js";

const LONG = 60;
const RETRY = 1000;
const LATEST = 15000;
const SMALL = 128; // an image of fewer pixels is enlarged by whole steps, each pixel a square

/** Draws records; holds what was loaded ahead, and how large images are shown. */
export class Drawing {
  constructor(broken) {
    this.broken = broken; // called with a record whose image cannot be shown
    this.images = new Map();
    this.texts = new Set(); // fields that held a long text once: they stay where they are from record to record
    this.zoom = 1;
  }

  /** Load and decode the images of records that come soon. */
  prefetch(records) {
    const kept = new Map();
    for (const record of records) {
      if (!record.image) continue;
      const image = this.images.get(record.row) ?? this.#load(record);
      kept.set(record.row, image);
    }
    this.images = kept;
  }

  #load(record) {
    const alt = `Record ${record.record_id}`;
    const image = make("img", { alt, draggable: "false" });
    let pause = RETRY;
    image.addEventListener("error", () => {
      pause = Math.min(LATEST, 2 * pause);
      this.#failed(record, image, pause);
    });
    image.addEventListener("load", () => {
      image.alt = alt;
      this.#size(image);
    });
    image.src = record.image;
    image.decode?.().catch(() => {}); // ahead of time; a failure is told by the error event
    return image;
  }

  /** Ask why an image did not come. While the server is gone it is asked for again; only its own word makes it broken. */
  async #failed(record, image, pause) {
    const why = await refusal(record.image);
    if (why === null) {
      image.alt = "The image appears as soon as the server can be reached.";
      setTimeout(() => { if (this.images.get(record.row) === image) image.src = record.image; }, spread(pause));
      return;
    }
    record.error = `Its image cannot be shown${why && `: ${why}`}.`;
    this.broken(record);
  }

  bigger() {
    this.#rescale(1.5);
  }

  smaller() {
    this.#rescale(1 / 1.5);
  }

  #rescale(by) {
    this.zoom = Math.min(16, Math.max(0.25, this.zoom * by));
    for (const image of this.images.values()) this.#size(image);
  }

  #size(image) {
    if (!image.naturalWidth) return;
    const room = Math.min(innerWidth - 80, 560, Math.max(180, innerHeight - 400));
    const longest = Math.max(image.naturalWidth, image.naturalHeight);
    const fit = longest < SMALL ? Math.max(1, Math.floor(room / longest)) : Math.min(1, room / longest);
    image.classList.toggle("smooth", longest >= SMALL);
    image.width = Math.round(image.naturalWidth * fit * this.zoom);
  }

  /** Give the nodes that show a record. */
  nodes(record) {
    const nodes = [];
    if (record.image && !record.error) {
      const image = this.images.get(record.row) ?? this.#load(record);
      this.images.set(record.row, image);
      nodes.push(make("div", { class: "picture" }, image));
    }
    const rows = [];
    for (const { name, value } of record.fields) {
      if (typeof value === "string" && (value.length > LONG || value.includes("\n"))) this.texts.add(name);
      if (this.texts.has(name)) nodes.push(make("p", { class: "text" }, make("b", {}, name), String(value ?? "")));
      else rows.push(make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: typeof value === "number" ? "number" : "" }, formatted(value))));
    }
    if (rows.length) nodes.push(make("table", { class: "fields" }, make("tbody", {}, ...rows)));
    return nodes;
  }

  /** Say a record to those who hear the page. */
  spoken(record) {
    const fields = record.fields.map(({ name, value }) => `${name}: ${formatted(value)}`).join(". ");
    return `Record ${record.record_id}. ${record.image ? "An image. " : ""}${fields}`.slice(0, 600);
  }
}

/** Give the server's reason for not giving an image, "" for one that no browser can read, null if it may come yet. */
async function refusal(url) {
  let content;
  try {
    const response = await fetch(url, { cache: "reload" });
    // Only these are words about the record; everything else is about the moment.
    if ([400, 404, 409, 422].includes(response.status)) return String((await response.json()).detail);
    if (!response.ok) return null;
    content = await response.blob();
  } catch {
    return null; // no connection, or a proxy's own page: not a word of the server's
  }
  return createImageBitmap(content).then(() => null, () => "");
}

function formatted(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
  return String(value);
}
