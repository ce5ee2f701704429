// What the server is asked. Every answer is JSON, bytes or an Error with the server's words.

const KEY = "vldm-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class Refused extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function ask(method, path, { body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (key.get()) all.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method, body, headers: all, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // The body is no JSON; the status has to do.
  }
  const words = typeof said === "string" ? said : said.message;
  throw new Refused(response.status, words ?? `The server answered ${response.status}.`, said.param);
}

const json = async (method, path, value) => {
  const headers = value === undefined ? {} : { "Content-Type": "application/json" };
  const body = value === undefined ? undefined : JSON.stringify(value);
  return (await ask(method, path, { body, headers })).json();
};
const video = (id) => `v1/videos/${encodeURIComponent(id)}`;

export const models = () => json("GET", "v1/models");
export const list = (after) => json("GET", `v1/videos?limit=20&order=desc${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const retrieve = (id) => json("GET", video(id));
export const cancel = (id) => json("POST", `${video(id)}/cancel`);
export const remove = (id) => json("DELETE", video(id));
export const remix = (id, fields) => json("POST", `${video(id)}/remix`, fields);
export const extend = (id, fields) => json("POST", "v1/videos/extensions", { ...fields, video: { id } });

/** `fields` as JSON, or as a form when a picture goes along. */
export async function create(fields, picture) {
  const headers = { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) };
  if (!picture) {
    const body = JSON.stringify(fields);
    return (await ask("POST", "v1/videos", { body, headers: { ...headers, "Content-Type": "application/json" } })).json();
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  form.append("input_reference", picture, picture.name);
  return (await ask("POST", "v1/videos", { body: form, headers })).json();
}

/** The bytes of a video or a picture of it, as an address that an element can show. The caller frees it. */
export async function content(id, variant = "video") {
  const response = await ask("GET", `${video(id)}/content?variant=${variant}`);
  return URL.createObjectURL(await response.blob());
}

/** The latest frame of a video that runs. */
export const preview = (id, frame) => content(id, `preview&frame=${encodeURIComponent(frame)}`);

/**
 * Server-sent events of a job, until it ends or `signal` is aborted. `EventSource` cannot send a key, hence by hand.
 * A broken connection is taken up again where it broke.
 */
export async function events(id, take, signal) {
  let last = "";
  for (let wait = 500; !signal.aborted; wait = Math.min(wait * 2, 8000)) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await ask("GET", `${video(id)}/events`, { headers, signal });
      wait = 500;
      for await (const event of parse(response.body)) {
        last = event.id || last;
        if (take(event.event, event.data) === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await new Promise((done) => setTimeout(done, wait));
    if (take("again", null) === "end") return;
  }
}

/** Source: HTML Living Standard, "Interpreting an event stream". */
async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { event: "message", data: "", id: "" };
      for (const line of block.split(/\r?\n/)) {
        const at = line.indexOf(":");
        const [name, text] = at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1).replace(/^ /, "")];
        if (name === "data") event.data += (event.data && "\n") + text;
        else if (name === "event" || name === "id") event[name] = text;
      }
      if (event.data) yield event;
    }
  }
}
