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

export const chosen = () => job?.id;
const ended = () => ENDED.includes(job.status);

/** Shows a video and follows it as long as it runs. */
export function open(video) {
  close();
  job = video;
  stages = video.stages ?? [];
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
  if (video.status !== job.status || (video.progress ?? 0) > (job.progress ?? 0)) {
    stages = video.stages ?? stages;
    update({ ...job, ...video });
  }
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

/** One event of the running job. */
function took(name, value) {
  if (name === "preview") {
    setPreview(value.image ?? value.png ?? value.url ?? "");
    return "go";
  }
  if (value.object === "video" || value.status) {
    update({ ...job, ...value });
  }
  if (value.stages) stages = value.stages;
  else if (value.stage) {
    const at = stages.findIndex((stage) => stage.name === value.stage && (stage.number ?? 0) === (value.number ?? 0));
    const stage = { ...stages[at], ...value, name: value.stage };
    if (at < 0) stages.push(stage);
    else stages[at] = stage;
  }
  if (typeof value.progress === "number") job.progress = value.progress;
  draw();
  return ended() ? "end" : "go";
}

async function refresh() {
  try {
    const { id } = job;
    const fresh = await api.retrieve(id);
    if (job?.id === id) {
      stages = fresh.stages ?? stages;
      update(fresh);
    }
  } catch (error) {
    if (job) $("status").textContent = error.message;
  }
}

function update(fresh) {
  const before = job.status;
  job = fresh;
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
  const picture = /^[A-Za-z0-9+/=]+$/.test(address) ? `data:image/png;base64,${address}` : address;
  const fits = /^(data:image\/png;base64,|blob:|\/?v1\/)/.test(picture);
  if (fits) $("preview").src = picture;
  else $("preview").removeAttribute("src");
  show($("preview"), fits && !film);
  if (fits) show($("empty"), false);
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
  const place = job.queue_position;
  if (job.status === "queued") return place ? `Number ${place} in the queue.` : "In the queue.";
  if (job.status === "failed") return job.error?.message ?? "It failed; the server's log says why.";
  if (job.status === "cancelled") return "It was cancelled.";
  if (job.status === "completed") return job.completed_at ? `Finished ${ago(job.completed_at)}.` : "Finished.";
  const running = stages.filter((stage) => stage.done > 0 && stage.done < stage.total).map((stage) => words(stage.name));
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
  show($("play"), job.status === "in_progress" && job.playable !== false && (job.progress ?? 0) > 0);
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
    const name = words(stage.name);
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
