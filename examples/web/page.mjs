// The page: a history, the list that follows from it, and the milliseconds that the list took.
//
// index.html?check=lists.json computes the lists of the histories in that file, and posts them to `result`.

import { load } from "./earn-web/index.js";

const shown = 10;
const element = (id) => document.getElementById(id);
const history = JSON.parse(localStorage.getItem("history") ?? "[]");
let earn;
let asked = 0;

const button = (id, mark, label, action) => {
  const item = document.createElement("li");
  const control = document.createElement("button");
  control.type = "button";
  control.setAttribute("aria-label", `${label}: ${earn.title(id) || id}`);
  for (const [name, text] of [["title", earn.title(id) || id], ["mark", mark]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    control.append(part);
  }
  control.addEventListener("click", action);
  item.append(control);
  return item;
};

const choose = (id) => {
  history.push(id);
  update();
};

async function update() {
  localStorage.setItem("history", JSON.stringify(history));
  const newestFirst = history.map((id, place) => button(id, "remove", "Remove", () => {
    history.splice(place, 1);
    update();
  })).reverse();
  element("history").replaceChildren(...newestFirst);
  element("clear").hidden = history.length === 0;
  if (history.length === 0) {
    element("list").replaceChildren();
    element("time").textContent = "";
    element("status").textContent = "Add something that you like.";
    return;
  }
  const number = ++asked;
  const start = performance.now();
  const items = await earn.recommend(history, { k: shown, excludeHistory: true });
  if (number !== asked) return; // a later choice has been answered, or will be
  element("time").textContent = `in ${(performance.now() - start).toFixed(0)} ms`;
  element("list").replaceChildren(
    ...items.map((item) => button(item.id, `${(100 * Math.exp(item.score)).toFixed(1)} %`, "Choose", () => choose(item.id))),
  );
  element("status").textContent = "Choose one, and the list changes.";
}

async function check(file) {
  const lists = [];
  const times = [];
  for (const asks of await (await fetch(file)).json()) {
    const start = performance.now();
    lists.push((await earn.recommend(asks, { k: shown, excludeHistory: true })).map((item) => item.id));
    times.push(performance.now() - start);
  }
  const median = times.sort((a, b) => a - b)[times.length >> 1];
  await fetch("result", { method: "POST", body: JSON.stringify({ lists, median }) });
}

try {
  earn = await load("bundle", { onProgress: (loaded, total) => (element("loading").value = loaded / total) });
  element("loading").hidden = true;
  const ids = new Map(earn.items.map(({ id, title }) => [title || id, id]));
  element("items").append(...[...ids.keys()].sort().map((title) => new Option(title)));
  for (const control of element("add").elements) control.disabled = false;
  element("add").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = ids.get(element("search").value);
    if (id === undefined) {
      element("status").textContent = "There is nothing of that title. Take one of the list.";
      return;
    }
    element("search").value = "";
    choose(id);
  });
  element("clear").addEventListener("click", () => {
    history.length = 0;
    update();
  });
  history.splice(0, history.length, ...history.filter((id) => earn.items.some((item) => item.id === id)));
  await update();
  const checked = new URLSearchParams(location.search).get("check");
  if (checked) await check(checked);
  if ("serviceWorker" in navigator) await navigator.serviceWorker.register("worker.js");
} catch (error) {
  element("loading").hidden = true;
  element("status").textContent = error.message;
}
