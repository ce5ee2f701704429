// One video: its stages, previews and film as they come, and what can be done with it.

import * as api from "./api.js";
import { $, ago, chosenLabels, el, labelFields, say, show, words } from "./dom.js";
import { modelOf } from "./form.js";

const ENDED = ["completed", "failed", "cancelled"];
export const STATES = { queued: "Waiting", in_progress: "Running", completed: "Finished", failed: "Failed", cancelled: "Cancelled" };

let job = null;
let watching = null;
let told = () => {};
let film = "";
let stages = [];
/** The latest preview that was shown, and whether one is on its way. */
let seen = -1;
let looking = false;

export const chosen = () => job?.id;
const ended = () => ENDED.includes(job.status);

/** Shows a video and follows it as long as it runs. */
export function open(video) {
  close();
  job = video;
  stages = [];
  seen = -1;
  draw();
  if (job.status === "completed") play();
  if (!ended()) follow();
}

/** Shows nothing. */
export function close() {
  watching?.abort();
  watching = null;
  job = null;
  setFilm("");
  setPreview("");
  for (const id of ["state", "overall", "stages", "actions", "facts"]) show($(id), false);
  show($("empty"), true);
  $("viewer-title").textContent = "No video chosen";
  $("status").textContent = "";
}

/** What the list says of the video that is shown, for when no event comes through. */
export function sync(video) {
  if (!job || job.id !== video.id || ended()) return;
  const place = video.queue_position !== job.queue_position;
  if (video.status !== job.status || place || (video.progress ?? 0) > (job.progress ?? 0)) update({ ...job, ...video });
}

async function follow() {
  const mine = new AbortController();
  watching = mine;
  const { id } = job;
  const take = (name, data) => {
    if (mine.signal.aborted) return "end";
    if (name === "again") {
      refresh();
      return "go";
    }
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      return "go";
    }
    return took(name, value);
  };
  try {
    await api.events(id, take, mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) $("status").textContent = error.message;
  }
}

/** One event of the running job: all there is to say of it. */
function took(name, value) {
  if (name === "deleted") {
    const { id } = job;
    close();
    told({ id, gone: true });
    return "end";
  }
  if (value.stages) stages = value.stages;
  if (value.video) update({ ...job, ...value.video });
  if (value.preview) look(value.preview.frame);
  return ended() ? "end" : "go";
}

/** Fetches the latest frame, one at a time: pictures that are overtaken meanwhile are not asked for. */
async function look(frame) {
  if (looking || film || frame === seen) return;
  looking = true;
  const { id } = job;
  try {
    const address = await api.preview(id, frame);
    if (job?.id === id && !film) setPreview(address);
    else URL.revokeObjectURL(address);
    seen = frame;
  } catch {
    // The frame is gone or not there yet; the next event names another.
  } finally {
    looking = false;
  }
}

async function refresh() {
  try {
    const { id } = job;
    const fresh = await api.retrieve(id);
    if (job?.id === id) {
      update({ ...job, ...fresh });
    }
  } catch (error) {
    if (job) $("status").textContent = error.message;
  }
}

function update(fresh) {
  const before = job.status;
  job = fresh;
  if (job.status === "completed") stages = stages.map((stage) => ({ ...stage, done: stage.total }));
  draw();
  told(job);
  if (job.status !== before && job.status === "completed") play();
}

function setFilm(address, autoplay = true) {
  const at = $("video").currentTime;
  const longer = film && address;
  if (film) URL.revokeObjectURL(film);
  film = address;
  if (address) {
    $("video").src = address;
    if (longer) $("video").addEventListener("loadedmetadata", () => ($("video").currentTime = at), { once: true });
    if (autoplay) $("video").play().catch(() => {});
  } else {
    $("video").removeAttribute("src");
    $("video").load();
  }
  show($("video"), address);
  if (address) show($("preview"), false);
  show($("empty"), !address && $("preview").hidden);
}

function setPreview(address) {
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  if (address) $("preview").src = address;
  else $("preview").removeAttribute("src");
  show($("preview"), address && !film);
  if (address) show($("empty"), false);
}

/** Plays the film, or as much of it as there is. */
async function play() {
  const { id } = job;
  try {
    const address = await api.content(id);
    if (job?.id === id) setFilm(address, !matchMedia("(prefers-reduced-motion: reduce)").matches);
    else URL.revokeObjectURL(address);
  } catch (error) {
    if (job?.id === id) $("status").textContent = error.message;
  }
}

export const titleOf = (video) => video.prompt || `${video.model} · ${video.id.slice(-6)}`;

/** What a state means, in one sentence. */
function sentence() {
  const before = job.queue_position;
  if (job.status === "queued") return before ? `In the queue; ${before} before it.` : "Next in the queue.";
  if (job.status === "failed") return job.error?.message ?? "It failed; the server's log says why.";
  if (job.status === "cancelled") return "It was cancelled.";
  if (job.status === "completed") return job.completed_at ? `Finished ${ago(job.completed_at)}.` : "Finished.";
  const running = stages.filter((stage) => stage.done > 0 && stage.done < stage.total).map((stage) => words(stage.stage));
  return running.length ? `Now: ${running.join(", ")}.` : "Running.";
}

function draw() {
  $("viewer-title").textContent = titleOf(job);
  const state = $("state");
  state.className = `pill ${job.status}`;
  say(state, job.status === "in_progress" ? `${STATES[job.status]} · ${job.progress ?? 0} %` : (STATES[job.status] ?? job.status));
  // A live region is read out when it changes, so it changes only when there is news.
  const news = sentence();
  if ($("status").textContent !== news) $("status").textContent = news;
  show($("overall"), !ended());
  $("bar").value = job.progress ?? 0;
  drawStages();
  const takes = modelOf(job.model)?.vldm?.takes ?? {};
  show($("actions"), true);
  show($("play"), job.status === "in_progress" && stages.some((stage) => stage.stage === "video" && stage.done > 0));
  show($("download"), job.status === "completed");
  show($("extend"), job.status === "completed" && takes.extend);
  show($("remix"), job.status === "completed");
  show($("cancel"), !ended());
  show($("delete"), ended());
  drawFacts();
}

function drawStages() {
  show($("stages"), stages.length > 0 && job.status !== "queued");
  const items = stages.map((stage) => {
    const done = stage.total > 0 && stage.done >= stage.total;
    const name = words(stage.stage);
    const bar = el("progress", { max: Math.max(1, stage.total), value: stage.done, "aria-label": `${name}: ${stage.done} of ${stage.total}` });
    return el("li", { className: done ? "done" : "" }, el("div", {}, el("span", {}, name), el("span", {}, done ? "✓" : `${stage.done}/${stage.total}`)), bar);
  });
  $("stages").replaceChildren(...items);
}

function drawFacts() {
  const facts = [
    ["Plan", job.model],
    ["Size", job.size?.replace("x", " × ")],
    ["Length", job.seconds && `${job.seconds} s`],
    ["Seed", job.seed],
    ["Remix of", job.remixed_from_video_id],
    ["Name", job.id],
  ];
  const rows = facts.filter(([, value]) => value !== undefined && value !== null && value !== "");
  $("facts").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  show($("facts"), true);
}

async function act(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    $("status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

/** Asks for what a continuation or a remix needs; `send` makes it. */
function next(title, hint, extending, send) {
  const about = modelOf(job.model)?.vldm?.takes ?? {};
  $("next-title").textContent = title;
  say($("next-hint"), hint);
  show($("next-prompt-field"), about.prompt);
  $("next-prompt").value = job.prompt ?? "";
  labelFields($("next-labels"), about.labels ?? [], {}, true, "next-label");
  show($("next-seconds-field"), extending);
  say($("next-error"), "");
  const form = $("next-form");
  form.onsubmit = async (event) => {
    if (event.submitter?.value !== "go") return;
    event.preventDefault();
    $("next-go").disabled = true;
    try {
      const fields = { prompt: $("next-prompt").value.trim() };
      if (about.labels?.length) fields.labels = chosenLabels($("next-labels"));
      if (extending) fields.seconds = $("next-seconds").value;
      const made = await send(fields);
      $("next-dialog").close();
      open(made);
      told(made);
    } catch (error) {
      say($("next-error"), error.message);
    } finally {
      $("next-go").disabled = false;
    }
  };
  $("next-dialog").showModal();
}

/** Makes the buttons work; `news` is given a video whenever it changes, and its id alone when it is gone. */
export function start(news) {
  told = news;
  $("play").addEventListener("click", () => act($("play"), play));
  $("cancel").addEventListener("click", () => act($("cancel"), async () => update({ ...job, ...(await api.cancel(job.id)) })));
  $("delete").addEventListener("click", () => act($("delete"), async () => {
    if (!confirm("Delete this video and its files?")) return;
    const { id } = job;
    await api.remove(id);
    close();
    told({ id, gone: true });
    $("viewer").focus();
  }));
  $("download").addEventListener("click", () => act($("download"), async () => {
    const address = await api.content(job.id);
    el("a", { href: address, download: `${job.id}.mp4` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }));
  $("extend").addEventListener("click", () => next("Continue", "The video goes on from its last frames.", true, (f) => api.extend(job.id, f)));
  $("remix").addEventListener("click", () => next("Remix", "The same plan and seed, told something else.", false, (f) => api.remix(job.id, f)));
}
