/** What went wrong with a request, by what the page does about it. */
export class Failure extends Error {
  /** @param {"offline" | "token" | "forbidden" | "elsewhere" | "busy" | "refused"} kind */
  constructor(kind, message, status = 0, wait = 0) {
    super(message);
    Object.assign(this, { kind, status, wait });
  }

  /** Whether the server lets nobody in as whom this page is open: nothing may be answered until that is mended. */
  get barred() {
    return BARRED.has(this.kind);
  }

  /** Whether a rule of the server's refused what was sent, and would refuse it again. Everything else passes. */
  get final() {
    return this.kind === "refused" && FINAL.has(this.status);
  }
}

const FINAL = new Set([400, 413, 422]);
const BARRED = new Set(["token", "forbidden", "elsewhere"]);
const KINDS = { 401: "token", 403: "forbidden", 404: "refused", 408: "busy", 409: "refused", 415: "refused", 421: "elsewhere", 425: "busy", 429: "busy" };
const SLOW = 20000;
let holder = null; // for which campaign and person this page holds answers

/** Say for which campaign and person everything is meant from now on: the server refuses what is another one's. */
export function holdFor(campaign, person) {
  holder = `${campaign}/${encodeURIComponent(person).replace(/[!'()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`)}`;
}

/** Give the options of a request, with a body or without. */
export function options(body) {
  const headers = { ...(body === undefined ? {} : { "content-type": "application/json" }), ...(holder === null ? {} : { "dal-for": holder }) };
  return { cache: "no-store", credentials: "same-origin", headers, ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) }) };
}

/** Spread a wait, lest a hundred pages come back in the same instant when a server does. */
export function spread(wait) {
  return wait * (0.7 + 0.6 * Math.random());
}

/** Ask the server; every address is relative, so that a proxy may put any prefix before it. */
export async function ask(path, body) {
  let response;
  let answer;
  try {
    response = await fetch(path, { ...options(body), signal: AbortSignal.timeout(SLOW) });
    answer = await response.json().catch((error) => {
      // A proxy answers in HTML while the server behind it is down, or before it lets anyone through.
      throw new Failure("offline", `no JSON came: ${error}`, response.status);
    });
  } catch (error) {
    throw error instanceof Failure ? error : new Failure("offline", String(error));
  }
  if (response.ok) return answer;
  const detail = typeof answer?.detail === "string" ? answer.detail : null;
  const refused = detail !== null && (FINAL.has(response.status) ? "refused" : KINDS[response.status]);
  throw new Failure(refused || "offline", detail ?? `the server answered ${response.status}`, response.status, Number(response.headers.get("retry-after")) || 0);
}
