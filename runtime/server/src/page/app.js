// The page: connects the form, the viewer and the list of videos with the server.

import * as api from "./api.js";
import { $, ago, el, say, show } from "./dom.js";
import * as form from "./form.js";
import * as viewer from "./viewer.js";

/** How often the list is asked for, in milliseconds. */
const EVERY = 4000;

/** Every known video by its id, newest first. */
const jobs = new Map();
const thumbnails = new Map();
let more = null;
let timer = 0;

function server(text, kind) {
  $("server").className = `pill ${kind}`;
  $("server").textContent = text;
}

function failed(error) {
  if (error.status === 401 || error.status === 403) {
    server("Key needed", "bad");
    if (!$("key-dialog").open) {
      say($("key-hint"), api.key.get() ? "The server does not know this key." : "This server asks for a key. It stays in this tab until you close it.");
      $("key-dialog").showModal();
    }
    return;
  }
  server(error.status === 0 ? "Offline" : "Trouble", "bad");
  say($("alert"), error.message);
}

async function load() {
  clearTimeout(timer);
  try {
    const first = jobs.size === 0;
    if (first) form.setModels((await api.models()).data);
    const page = await api.list();
    take(page.data);
    page.data.forEach(viewer.sync);
    if (first) more = page.has_more ? page.last_id : null;
    say($("alert"), "");
    server("Ready", "good");
    timer = setTimeout(load, document.hidden ? EVERY * 4 : EVERY);
  } catch (error) {
    failed(error);
    if (error.status !== 401 && error.status !== 403) timer = setTimeout(load, EVERY);
  }
}

function take(list) {
  for (const job of list) jobs.set(job.id, { ...jobs.get(job.id), ...job });
  draw();
}

function draw() {
  const all = [...jobs.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  const waiting = all.filter((job) => job.status === "queued").length;
  const running = all.filter((job) => job.status === "in_progress").length;
  $("queue-count").textContent = all.length ? `${running} running, ${waiting} waiting` : "";
  show($("queue-empty"), all.length === 0);
  show($("more"), more);
  all.forEach((job, i) => {
    const item = document.getElementById(`job-${job.id}`) ?? add(job);
    const button = item.firstElementChild;
    const state = button.querySelector(".pill");
    state.className = `pill ${job.status}`;
    state.textContent = label(job);
    button.querySelector(".title").textContent = viewer.titleOf(job);
    button.querySelector(".hint").textContent = `${job.model} · ${ago(job.created_at)}`;
    button.setAttribute("aria-current", String(viewer.chosen() === job.id));
    if (job.status === "completed") thumbnail(job.id, button.querySelector("img"));
    if ($("jobs").children[i] !== item) $("jobs").insertBefore(item, $("jobs").children[i] ?? null);
  });
}

function label(job) {
  if (job.status === "queued" && job.queue_position != null) return `${viewer.STATES.queued} · ${job.queue_position + 1}`;
  if (job.status === "in_progress") return `${job.progress ?? 0} %`;
  return viewer.STATES[job.status] ?? job.status;
}

function add(job) {
  const text = el("span", {}, el("span", { className: "title" }), el("span", { className: "hint" }));
  const button = el("button", { type: "button" }, el("span", { className: "thumb" }, el("img", { alt: "", hidden: true })), text, el("span", { className: "pill" }));
  button.addEventListener("click", () => {
    viewer.open(jobs.get(job.id));
    draw();
    $("viewer").focus({ preventScroll: true });
    $("viewer").scrollIntoView({ block: "start", behavior: "smooth" });
  });
  const item = el("li", { id: `job-${job.id}` }, button);
  $("jobs").append(item);
  return item;
}

async function thumbnail(id, image) {
  if (thumbnails.has(id)) return;
  thumbnails.set(id, "");
  try {
    const address = await api.content(id, "thumbnail");
    thumbnails.set(id, address);
    image.src = address;
    image.hidden = false;
  } catch {
    // A list without a picture is still a list; the next visit asks again.
  }
}

function forget(id) {
  jobs.delete(id);
  document.getElementById(`job-${id}`)?.remove();
  URL.revokeObjectURL(thumbnails.get(id) ?? "");
  thumbnails.delete(id);
  draw();
}

form.start((job) => {
  take([job]);
  viewer.open(job);
  draw();
  $("viewer").scrollIntoView({ block: "nearest", behavior: "smooth" });
});
viewer.start((job) => (job.gone ? forget(job.id) : take([job])));

$("more").addEventListener("click", async () => {
  try {
    const page = await api.list(more);
    more = page.has_more ? page.last_id : null;
    take(page.data);
  } catch (error) {
    failed(error);
  }
});
$("key-open").addEventListener("click", () => {
  $("key").value = api.key.get();
  $("key-dialog").showModal();
});
$("key-form").addEventListener("submit", (event) => {
  if (event.submitter?.value !== "save") return;
  api.key.set($("key").value.trim());
  load();
});
document.addEventListener("visibilitychange", () => document.hidden || load());

load();
