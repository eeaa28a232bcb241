/** What went wrong with a request, by what the page does about it. */
export class Failure extends Error {
  /** @param {"offline" | "token" | "forbidden" | "busy" | "refused"} kind */
  constructor(kind, message, status = 0, wait = 0) {
    super(message);
    Object.assign(this, { kind, status, wait });
  }
}

const KINDS = { 401: "token", 403: "forbidden", 429: "busy" };

/** Ask the server; every address is relative, so that a proxy may put any prefix before it. */
export async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(20000) });
  } catch (error) {
    throw new Failure("offline", String(error));
  }
  // A proxy answers 502 to 504, often in HTML, while the server behind it is down.
  if (response.status >= 500) throw new Failure("offline", `the server answered ${response.status}`, response.status);
  let answer;
  try {
    answer = await response.json();
  } catch (error) {
    throw new Failure("offline", `no JSON came: ${error}`, response.status);
  }
  if (response.ok) return answer;
  const told = typeof answer.detail === "string" ? answer.detail : JSON.stringify(answer.detail);
  throw new Failure(KINDS[response.status] ?? "refused", told, response.status, Number(response.headers.get("retry-after")));
}
