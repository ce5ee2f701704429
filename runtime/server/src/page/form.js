// The form of a new video: it asks for what the chosen plan takes, and for nothing else.

import * as api from "./api.js";
import { $, chosenLabels, el, labelFields, say, show } from "./dom.js";

let models = [];
let picture = null;
let parts = 0;
/** Whether the scenario is no longer the plan's; then its length is that of the video. */
let rewritten = false;

const current = () => models.find((model) => model.id === $("model").value);
const takes = () => current()?.vldm?.takes ?? {};

/** Fills in the plans. */
export function setModels(list) {
  models = list;
  const before = $("model").value;
  $("model").replaceChildren(...list.map((model) => el("option", { value: model.id }, model.id)));
  if (list.some((model) => model.id === before)) $("model").value = before;
  change();
}

export const modelOf = (id) => models.find((model) => model.id === id);

function change() {
  const model = current();
  if (!model) return;
  const facts = model.vldm ?? {};
  const about = takes();
  const text = [facts.size?.replace("x", " × "), facts.frames && `${facts.frames} frames`, facts.seconds && `${facts.seconds} s`];
  say($("model-facts"), text.filter(Boolean).join(" · "));
  show($("prompt-field"), about.prompt);
  $("prompt").value = facts.prompt ?? "";
  $("prompt").required = Boolean(about.prompt) && !facts.prompt;
  labelFields($("labels"), about.labels ?? [], facts.labels, false, "label");
  $("chunks").replaceChildren();
  show($("scenario"), about.scenario);
  setRewritten(false);
  for (const chunk of about.scenario ? (facts.scenario ?? []) : []) addChunk(chunk);
  show($("frame-field"), about.first_frame || about.image);
  $("frame-label").textContent = about.image ? "Picture to set in motion" : "First frame";
  choosePicture(null);
  $("seed").value = facts.seed ?? 0;
  $("steps").value = "";
  $("steps").placeholder = facts.steps ?? "";
  $("seconds").value = "";
  show($("seconds").parentElement, about.seconds);
}

function setRewritten(yes) {
  rewritten = yes;
  if (yes) $("seconds").value = "";
  $("seconds").disabled = yes;
  $("seconds").placeholder = yes ? "scenario’s" : "plan’s";
}

function addChunk(chunk = {}) {
  const id = `chunk-${++parts}`;
  const labels = el("fieldset", { className: "row" }, el("legend", { className: "sr" }, "Scene of this part"));
  labelFields(labels, takes().labels ?? [], chunk.labels, true, id);
  const remove = el("button", { type: "button", className: "quiet" }, "Remove");
  const item = el("li", {}, el("div", { className: "about" }, el("span"), remove), labels);
  if (takes().prompt) {
    const text = el("textarea", { id: `${id}-prompt`, rows: 2, maxLength: 4000, value: chunk.prompt ?? "", placeholder: "as before" });
    item.append(el("div", { className: "field" }, el("label", { for: text.id }, "What happens then"), text));
  }
  remove.addEventListener("click", () => {
    item.remove();
    number();
    setRewritten(true);
    $("chunk-add").focus();
  });
  $("chunks").append(item);
  number();
  return item;
}

function number() {
  [...$("chunks").children].forEach((item, i) => {
    item.querySelector("span").textContent = `Part ${i + 1}`;
    item.querySelector("button").setAttribute("aria-label", `Remove part ${i + 1}`);
  });
}

function choosePicture(file) {
  if (picture) URL.revokeObjectURL($("frame-preview").src);
  picture = file;
  if (!file) $("frame").value = "";
  $("frame-preview").src = file ? URL.createObjectURL(file) : "";
  show($("frame-preview"), file);
  show($("frame-clear"), file);
  $("frame-hint").textContent = file ? `${file.name}, ${Math.ceil(file.size / 1024)} KiB` : "PNG; choose a file or drop it here";
}

/** What the form says, in the fields of the Videos API. */
function fields() {
  const about = takes();
  const all = { model: $("model").value };
  const text = $("prompt").value.trim();
  all.prompt = about.prompt ? text : "";
  if ($("seed").value !== "") all.seed = Number($("seed").value);
  if ($("steps").value !== "") all.num_inference_steps = Number($("steps").value);
  if (about.seconds && $("seconds").value !== "") all.seconds = $("seconds").value;
  if (about.labels?.length) all.labels = chosenLabels($("labels"));
  if (rewritten) {
    all.scenario = [...$("chunks").children].map((item) => {
      const part = { labels: chosenLabels(item.querySelector("fieldset")) };
      const words = item.querySelector("textarea")?.value.trim();
      return words ? { ...part, prompt: words } : part;
    });
  }
  return all;
}

/** Makes the form work; `made` is given each new video. */
export function start(made) {
  $("model").addEventListener("change", change);
  $("chunk-add").addEventListener("click", () => {
    setRewritten(true);
    addChunk().querySelector("select, textarea")?.focus();
  });
  $("chunks").addEventListener("change", () => setRewritten(true));
  $("dice").addEventListener("click", () => {
    $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  });
  $("frame").addEventListener("change", () => choosePicture($("frame").files[0] ?? null));
  $("frame-clear").addEventListener("click", () => {
    choosePicture(null);
    $("frame").focus();
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    $("drop").addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) choosePicture(event.dataTransfer.files[0]);
    });
  }
  $("compose").addEventListener("submit", async (event) => {
    event.preventDefault();
    say($("compose-error"), "");
    $("submit").disabled = true;
    try {
      made(await api.create(fields(), picture));
    } catch (error) {
      say($("compose-error"), error.message);
    } finally {
      $("submit").disabled = false;
    }
  });
}
