// Drives the page of a running server in Chromium: makes, watches, cancels, continues and plays videos, and takes screenshots.
// See README.md beside this file.

import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const { chromium } = createRequire(path.join(process.cwd(), "package.json"))("playwright-core");
const [address, out, key] = process.argv.slice(2);
assert(address && out, "usage: node page.mjs http://127.0.0.1:PORT SCREENSHOTS [KEY]");
fs.mkdirSync(out, { recursive: true });

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const complaints = [];
const LONG = { timeout: Number(process.env.PATIENCE ?? 300_000) };

async function visit(width, height, scheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, acceptDownloads: true });
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && !/status of 401/.test(message.text()) && complaints.push(message.text()));
  await page.goto(address);
  if (key) {
    await page.locator("#key-dialog").waitFor();
    await page.fill("#key", key);
    await page.click("#key-form .primary");
  }
  await page.locator("#server.good").waitFor();
  return page;
}

const shot = (page, name, fullPage = true) => page.screenshot({ path: path.join(out, `${name}.png`), fullPage });
const state = (page, name) => page.locator(`#state.${name}`).waitFor(LONG);

async function submit(page) {
  const posted = page.waitForResponse((r) => r.request().method() === "POST" && r.url().endsWith("/v1/videos"));
  await page.click("#submit");
  const { id } = await (await posted).json();
  await page.locator(`#job-${id} button[aria-current=true]`).waitFor();
  return id;
}

/** Nothing reaches over the edge, and what can be touched is large enough for a finger. */
async function fits(page, name) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert(wide <= 0, `${name}: ${wide} pixels too wide`);
}

const page = await visit(1280, 900, "light");
await shot(page, "start-light");
const made = await submit(page);
await state(page, "in_progress");
await page.locator("#stages li").first().waitFor(LONG);
await page.locator("#preview:visible, #video:visible").first().waitFor(LONG);
await shot(page, "running-light");

// A second one waits behind the first, and is cancelled there.
const other = await submit(page);
assert.notEqual(other, made);
await page.click("#cancel");
await state(page, "cancelled");
await page.click(`#job-${made} button`);

await state(page, "completed");
await page.waitForFunction(() => document.querySelector("#video").videoWidth > 0, null, LONG);
await page.waitForFunction(() => document.querySelector("#video").currentTime > 0.2, null, LONG);
assert.equal(await page.evaluate(() => document.querySelector("#video").error), null);
const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
assert(fs.statSync(await download.path()).size > 1000);
await shot(page, "finished-light");

if (await page.isVisible("#extend")) {
  await page.click("#extend");
  await shot(page, "continue-light", false);
  await page.click("#next-go");
  await page.locator("#state.queued, #state.in_progress").first().waitFor();
  await page.click("#cancel");
  await state(page, "cancelled");
}

// By keyboard alone: the skip link is first, and the form is reached in the order it is read.
await page.goto(address);
await page.locator("#server.good, #server.bad").first().waitFor();
if (!key) {
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "model");
}

for (const [name, width, height, scheme] of [["desktop-dark", 1280, 900, "dark"], ["phone-dark", 360, 740, "dark"], ["phone-light", 360, 740, "light"]]) {
  const small = await visit(width, height, scheme);
  await small.click(`#job-${made} button`);
  await small.waitForFunction(() => document.querySelector("#video").videoWidth > 0, null, LONG);
  await small.waitForFunction(() => document.querySelector("#jobs img")?.naturalWidth !== undefined);
  await fits(small, name);
  await small.waitForTimeout(500);
  await shot(small, name);
}

await browser.close();
assert.deepEqual(complaints, []);
console.log("every step passed");
