// Small things that every part of the page uses.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash) and children; text is only ever text. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Shows `text` in an element, or hides it when there is none. */
export function say(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

export const show = (element, visible) => {
  element.hidden = !visible;
};

/** `night_sky` and `interpolate-1` as people write them. */
export const words = (name) => name.replace(/[_-]/g, " ").replace(/^./, (c) => c.toUpperCase());

/** Seconds since 1970 as "3 min ago". */
export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => past >= size) ?? ["second", 1];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" }).format(-Math.floor(past / size), unit);
}

/**
 * Choices for a model's labels inside a fieldset. `given` are the classes that are set already; with `open`, a choice may be
 * left as it was.
 */
export function labelFields(fieldset, labels, given, open, prefix) {
  fieldset.querySelectorAll(".field").forEach((field) => field.remove());
  for (const label of labels) {
    const id = `${prefix}-${label.name}`;
    const names = label.classes === 2 ? ["no", "yes"] : [];
    const options = Array.from({ length: label.classes }, (_, i) => el("option", { value: String(i) }, names[i] ?? String(i)));
    options.unshift(el("option", { value: "" }, open ? "as before" : "not given"));
    const select = el("select", { id, name: label.name }, ...options);
    select.value = given?.[label.name] == null ? "" : String(given[label.name]);
    fieldset.append(el("div", { className: "field" }, el("label", { for: id }, words(label.name)), select));
  }
  fieldset.hidden = labels.length === 0;
}

/** The classes that are chosen in a fieldset. */
export const chosenLabels = (fieldset) =>
  Object.fromEntries([...fieldset.querySelectorAll("select")].filter((s) => s.value !== "").map((s) => [s.name, Number(s.value)]));
