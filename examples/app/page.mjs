// A user's history, and the list that follows from it, kept up to date by an open session of `earn serve`.
//
// The history is the page's own state. The session is a faster way to a list: where it is gone (closed, the server began
// anew), it is opened again from the history. Titles are set as text, never as markup.

const K = 9;
const PAUSE_MS = 150; // after the last letter, before the server is asked
const WAIT_MS = 8000; // for an answer
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token"); // /app/#token=... where the server has one

const state = { bundles: [], bundle: null, history: [], blocked: [], tag: null, list: [], session: null };
let newest = 0; // number of the newest refresh: answers to older ones are dropped
let working = Promise.resolve();

class Gone extends Error {}

async function ask(method, path, body) {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const request = { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(WAIT_MS) };
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Gone("The server cannot be reached. What you chose is kept.");
  }
  if (answer.status === 204) return null;
  const value = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
}

// Opens a session, or appends what was chosen since. Undone or switched, it is opened anew.
async function session(history) {
  const open = state.session;
  const read = open?.history ?? [];
  const fits = open?.bundle === state.bundle && read.length <= history.length && read.every((id, i) => id === history[i]);
  if (!fits) {
    if (open) ask("DELETE", `/session/${open.id}`).catch(() => {});
    state.session = null;
    const opened = await ask("POST", "/session", { bundle: state.bundle, history, unknown: "skip" });
    state.session = { id: opened.session, bundle: opened.bundle, history: [...history] };
  } else {
    for (const id of history.slice(read.length)) {
      await ask("POST", `/session/${open.id}/append`, { item_id: id });
      open.history.push(id);
    }
  }
  return state.session.id;
}

async function listOf(history) {
  const wanted = { k: K, exclude: state.blocked, exclude_history: true, allow: state.tag && { tag: state.tag } };
  for (let attempt = 0; ; attempt++) {
    try {
      const id = await session(history);
      return await ask("POST", `/session/${id}/recommend`, wanted);
    } catch (error) {
      if (error.status === 404 && attempt === 0) {
        state.session = null; // it was closed: open it again
      } else if (error.status === 503 && attempt === 0) {
        // no room for a session: the same list, read anew
        return await ask("POST", "/recommend", { bundle: state.bundle, history, ...wanted, unknown: "skip" });
      } else throw error;
    }
  }
}

async function refresh() {
  const mine = ++newest;
  draw();
  $("list").classList.add("old");
  working = working.then(async () => {
    if (mine !== newest) return; // chosen on meanwhile: only the newest list is asked for
    const history = state.history.map((item) => item.item_id);
    const started = performance.now();
    try {
      if (history.length === 0) {
        const found = await ask("GET", `/items?limit=${K}&bundle=${encodeURIComponent(state.bundle)}`);
        show(mine, found, "Nothing chosen yet. Begin with one of these, or type a title.");
      } else {
        const answer = await listOf(history);
        const total = performance.now() - started;
        const { compute_ms, wait_ms } = answer.timing;
        show(mine, answer.items, "", `${total.toFixed(0)} ms: search ${compute_ms.toFixed(0)}, queue ${wait_ms.toFixed(0)}, ` +
          `the rest ${Math.max(0, total - compute_ms - wait_ms).toFixed(0)}`);
      }
    } catch (error) {
      if (mine !== newest) return;
      say(error.message, true);
      $("retry").hidden = false;
      $("time").textContent = "";
    }
  });
  await working;
}

function show(mine, items, text, time = "") {
  if (mine !== newest) return;
  state.list = items;
  say(text || `${state.history.length} chosen. The list follows each choice.`);
  $("time").textContent = time;
  $("retry").hidden = true;
  draw();
  $("list").classList.remove("old");
}

function row(mark, item, label, act, extra) {
  const line = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "choose", onclick: act });
  button.setAttribute("aria-label", `${label} ${item.title || item.item_id}`);
  for (const [name, text] of [["mark", mark], ["title", item.title || `item ${item.item_id}`]]) {
    button.append(Object.assign(document.createElement("span"), { className: name, textContent: text }));
  }
  line.append(button);
  if (extra) line.append(extra);
  return line;
}

function block(item) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "✕", title: "Never show this" });
  button.setAttribute("aria-label", `Never show ${item.title || item.item_id}`);
  button.onclick = () => { state.blocked.push(item.item_id); refresh(); };
  return button;
}

function draw() {
  const undo = (index) => () => { state.history.splice(index, 1); refresh(); };
  $("history").replaceChildren(...state.history.map((item, i) => row("−", item, "Remove", undo(i))).reverse());
  $("clear").hidden = state.history.length + state.blocked.length === 0;
  const focused = document.activeElement?.closest("#list li");
  const place = focused ? [...$("list").children].indexOf(focused) : -1;
  $("list").replaceChildren(
    ...state.list.map((item, i) => row(String(i + 1), item, "Choose", () => choose(item), block(item))),
  );
  if (place >= 0) $("list").children[Math.min(place, state.list.length - 1)]?.querySelector("button").focus();
}

function choose(item) {
  state.history.push(item);
  state.list = state.list.filter((other) => other !== item); // a second click must not choose it twice
  return refresh();
}

let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(async () => {
    const found = await search($("search").value, 12).catch(() => []);
    $("found").replaceChildren(...found.map((item) => new Option("", item.title || item.item_id)));
  }, PAUSE_MS);
});

const search = (text, limit) =>
  ask("GET", `/items?limit=${limit}&query=${encodeURIComponent(text)}&bundle=${encodeURIComponent(state.bundle)}`);

$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("search").value.trim();
  if (!text) return;
  try {
    const found = await search(text, 12);
    const item = found.find(({ title, item_id }) => [title.toLowerCase(), item_id].includes(text.toLowerCase())) ?? found[0];
    if (!item) return say(`Nothing here is called "${text}".`, true);
    $("search").value = "";
    await choose(item);
  } catch (error) {
    say(error.message, true);
  }
});

$("clear").onclick = () => { state.history = []; state.blocked = []; refresh(); };
$("retry").onclick = () => (state.bundle ? refresh() : start());

document.addEventListener("keydown", (event) => {
  if (event.target === $("search") || event.target === $("tag")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  if (event.key === "Backspace" && state.history.pop()) refresh();
  if (/^[1-9]$/.test(event.key) && state.list[event.key - 1]) choose(state.list[event.key - 1]);
});

// Offers the tags of the chosen bundle; the one that was chosen stays if this bundle has it too.
function offerTags() {
  const { tags } = state.bundles.find(({ bundle }) => bundle === state.bundle);
  state.tag = tags.includes(state.tag) ? state.tag : null;
  $("tag").replaceChildren(new Option("(everything)", ""), ...tags.map((tag) => new Option(tag, tag)));
  $("tag").value = state.tag ?? "";
  $("kept").hidden = tags.length === 0;
}

$("tag").onchange = () => { state.tag = $("tag").value || null; refresh(); };

async function start() {
  try {
    state.bundles = await ask("GET", "/catalog");
  } catch (error) {
    say(error.message, true);
    $("retry").hidden = false;
    return;
  }
  state.bundle = state.bundles[0].bundle;
  offerTags();
  $("bundles").hidden = state.bundles.length < 2;
  for (const { bundle } of state.bundles) {
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "bundle", value: bundle });
    radio.checked = bundle === state.bundle;
    radio.onchange = () => { state.bundle = bundle; offerTags(); refresh(); };
    const label = document.createElement("label");
    label.append(radio, ` ${bundle}`);
    $("bundles").append(label);
  }
  await refresh();
}

start();
