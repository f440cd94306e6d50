// Speaks with the server. The token is in this tab's session storage, and travels in a header alone.

const PLACE = "cellblock-token";
const LONGEST = 30_000; // milliseconds that an answer may take

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(PLACE),
  set: (value) => sessionStorage.setItem(PLACE, value),
  clear: () => sessionStorage.removeItem(PLACE),
};

/** Send a request and return the response; throws ApiError for every failure. */
export async function send(path, { method = "GET", body = undefined, bearer = token.get() } = {}) {
  const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
  const how = { method, body, headers, credentials: "omit", redirect: "error", cache: "no-store" };
  let response;
  try {
    response = await fetch(path, { ...how, signal: AbortSignal.timeout(LONGEST) });
  } catch {
    throw new ApiError(0, "The server does not answer.");
  }
  if (!response.ok) throw new ApiError(response.status, await problemOf(response));
  return response;
}

/** Send a request and return its JSON. */
export const json = async (path, options) => (await send(path, options)).json();

/** Return a path with its parameters; every part that is not ours goes through here. */
export function path(strings, ...values) {
  return strings.reduce((all, part, index) => all + encodeURIComponent(values[index - 1]) + part);
}

async function problemOf(response) {
  try {
    const problem = await response.json();
    return [problem.detail, problem.remedy].filter(Boolean).join(" ").slice(0, 500);
  } catch {
    return `The server answered ${response.status}.`;
  }
}
