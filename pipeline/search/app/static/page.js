// The search page. All text from the server is set as text, never as markup.

const PAGE = 24;
const TYPING_MS = 140;
const SLOW_MS = 120;
const LOWEST = -1;

const $ = (id) => document.getElementById(id);
const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

class Problem extends Error {
  constructor(error, fix) {
    super(error);
    this.fix = fix;
  }
}

const state = { q: "", target: "texts", min: LOWEST, show: "", picture: null };
const pictures = new Map(); // by number: query pictures of this visit, for the way back
let about = null;
let columns = [];

// ---------------------------------------------------------------- asking the server

async function read(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new Problem(
    body?.error ?? `the server answered ${response.status}.`,
    body?.fix ?? "look at the terminal it runs in.",
  );
}

async function request(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("the server does not answer.", "check that `python -m stages.app` is still running.");
  }
}

async function find(system, wanted, offset, signal) {
  const parameters = new URLSearchParams({
    target: wanted.target, k: PAGE, offset, min_score: wanted.min, system,
  });
  if (wanted.picture === null) {
    parameters.set("q", wanted.q);
    return read(await request(`/search?${parameters}`, { signal }));
  }
  const { file } = pictures.get(wanted.picture);
  if (file.size > about.limits.upload_bytes) {
    const most = about.limits.upload_bytes / 2 ** 20;
    throw new Problem(`the picture is larger than ${most} MiB.`, "use a smaller one.");
  }
  return read(await request(`/search/image?${parameters}`, { method: "POST", body: file, signal }));
}

// ---------------------------------------------------------------- one system's results

class Column {
  constructor(system) {
    this.system = system;
    this.element = $("column-template").content.firstElementChild.cloneNode(true);
    this.list = this.element.querySelector(".results");
    this.button = this.element.querySelector(".more");
    this.problem = this.element.querySelector(".problem");
    this.summary = this.element.querySelector(".summary");
    this.results = [];
    this.error = null;
    this.abort = new AbortController();
    const title = this.element.querySelector("h2");
    title.textContent = system.name;
    title.hidden = about.systems.length < 2;
    this.element.setAttribute("aria-label", `Results of ${system.name}`);
    this.button.addEventListener("click", () => this.more());
  }

  // Ask anew; an answer that comes after a later question is dropped.
  async search(wanted) {
    this.wanted = wanted;
    const found = await this.ask(0);
    if (found === null) return;
    this.results = [];
    this.list.replaceChildren();
    this.append(found);
  }

  async more() {
    const first = this.results.length;
    const found = await this.ask(first);
    if (found === null) return;
    this.append(found);
    this.list.children[first]?.querySelector("button").focus();
    settle();
  }

  async ask(offset) {
    this.cancel();
    const { signal } = (this.abort = new AbortController());
    const slow = setTimeout(() => this.wait(), SLOW_MS);
    try {
      const found = await find(this.system.name, this.wanted, offset, signal);
      return signal.aborted ? null : found;
    } catch (error) {
      if (!signal.aborted) this.fail(error, offset);
      return null;
    } finally {
      clearTimeout(slow);
      if (!signal.aborted) this.setBusy(false);
    }
  }

  wait() {
    this.setBusy(true);
    const first = this.wanted.picture !== null && !Column.teacherLoaded;
    tell(first ? "Searching; the first picture takes a few seconds more…" : "Searching…");
  }

  cancel() {
    this.abort.abort();
    this.setBusy(false);
  }

  setBusy(busy) {
    this.element.classList.toggle("busy", busy);
    this.element.setAttribute("aria-busy", busy);
  }

  fail(error, offset) {
    this.error = error;
    showProblem(this.problem, error);
    if (offset > 0) return; // what was found before stays
    this.results = [];
    this.list.replaceChildren();
    this.button.hidden = true;
    this.summary.textContent = "";
  }

  append(found) {
    if (this.wanted.picture !== null) Column.teacherLoaded = true;
    this.error = null;
    this.problem.hidden = true;
    this.results.push(...found.results);
    this.list.className = `results ${found.target}`;
    this.list.append(...found.results.map((result) => draw(result, this)));
    this.list.classList.toggle("plain", this.results.every((result) => result.picture === null));
    this.button.hidden = !found.more || this.results.length > about.limits.offset;
    if (!this.results.length) this.list.append(drawNothing(this.wanted));
  }
}
Column.teacherLoaded = false;

// ---------------------------------------------------------------- drawing

const keyOf = (result) => `${result.kind} ${result.id}`;

function draw(result, column) {
  const item = $("result-template").content.firstElementChild.cloneNode(true);
  const button = item.firstElementChild;
  button.dataset.key = keyOf(result);
  button.querySelector(".text").textContent = result.text || "(no caption)";
  button.querySelector(".rank").textContent = result.rank;
  button.querySelector(".cosine").textContent = result.score.toFixed(4);
  button.querySelector(".bar").style.setProperty("--share", Math.max(0, Math.min(1, result.score)));
  if (result.picture) fill(button.querySelector(".frame"), result.picture, "");
  note(button, result, []);
  button.addEventListener("click", () => open(result, column));
  for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
    button.addEventListener(event, () => pair(button, on));
  }
  return item;
}

function drawNothing(wanted) {
  const item = document.createElement("li");
  item.className = "nothing";
  item.textContent = wanted.min > LOWEST
    ? `Nothing scores ${wanted.min.toFixed(2)} or more. Lower the minimum score.`
    : "Nothing was found.";
  return item;
}

// A picture that cannot be had is replaced by why.
function fill(frame, address, name) {
  const image = document.createElement("img");
  image.alt = name;
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("error", async () => {
    const reason = await request(address).then(read).catch((error) => error);
    const text = document.createElement(frame.id ? "p" : "span");
    text.textContent = frame.id ? `${reason.message} ${reason.fix ?? ""}` : "no picture";
    text.title = reason.message;
    frame.replaceChildren(text);
  });
  image.src = address;
  frame.replaceChildren(image);
}

function note(button, result, ranks) {
  const notes = [];
  if (result.count > 1) notes.push(["", `×${result.count}`]);
  if (["sentence", "text"].includes(result.kind)) notes.push(["", `${result.kind} ${result.id}`]);
  for (const { system, rank } of ranks) {
    notes.push(["both", `also #${rank}`, `found by ${system.name} too, at rank ${rank}`]);
  }
  button.querySelector(".notes").replaceChildren(...notes.map(([kind, text, title]) => {
    const element = document.createElement("span");
    element.className = kind;
    element.textContent = text;
    if (title) element.title = title;
    return element;
  }));
}

// Mark in each column what the other one found too, with its rank there.
function compare() {
  const ranks = columns.map(({ results }) => new Map(results.map((one) => [keyOf(one), one.rank])));
  return columns.map((column, at) => {
    let shared = 0;
    const buttons = column.list.querySelectorAll(".result");
    column.results.forEach((result, row) => {
      const others = columns
        .map((other, place) => ({ system: other.system, rank: ranks[place].get(keyOf(result)), place }))
        .filter(({ rank, place }) => place !== at && rank !== undefined);
      shared += others.length > 0;
      note(buttons[row], result, others);
    });
    return shared;
  });
}

function pair(button, on) {
  if (columns.length < 2) return;
  for (const other of document.querySelectorAll(`.result[data-key="${button.dataset.key}"]`)) {
    other.classList.toggle("same", on && other !== button);
  }
}

function showProblem(element, error) {
  const what = document.createElement("strong");
  const fix = document.createElement("span");
  what.textContent = sentence(error.message);
  fix.textContent = sentence(error.fix ?? "Reload the page.");
  element.replaceChildren(what, fix);
  element.hidden = false;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function tell(text) {
  $("status").textContent = text;
}

// ---------------------------------------------------------------- searching

let latest = 0;

async function search() {
  const ticket = ++latest;
  const wanted = { ...state };
  const idle = wanted.picture === null && !wanted.q.trim() && !wanted.asked;
  $("problem").hidden = true;
  $("start").hidden = !idle;
  $("columns").hidden = idle;
  document.title = wanted.q && wanted.picture === null ? `${wanted.q} · KDMCSE search` : "KDMCSE search";
  if (idle) {
    columns.forEach((column) => column.cancel());
    tell("");
    return;
  }
  arrange();
  const begun = performance.now();
  await Promise.all(columns.map((column) => column.search(wanted)));
  if (ticket === latest) settle(performance.now() - begun);
}

// Show the columns of the systems that are wanted, keeping those that are there.
function arrange() {
  const systems = about.systems.filter(({ name }) => state.show === "" || state.show === name);
  const shown = columns.map(({ system }) => system.name).join("\n");
  if (shown === systems.map(({ name }) => name).join("\n")) return;
  columns.forEach((column) => column.cancel());
  columns = systems.map((system) => new Column(system));
  $("columns").classList.toggle("two", columns.length > 1);
  $("columns").replaceChildren(...columns.map(({ element }) => element));
}

// What is said and marked once all columns have their answer.
function settle(milliseconds) {
  const shared = compare();
  const both = columns.length > 1;
  columns.forEach((column, at) => {
    if (!both || !column.results.length) return void (column.summary.textContent = "");
    const best = column.results[0].score.toFixed(4);
    column.summary.textContent = `best ${best} · ${shared[at]} of ${column.results.length} in both`;
  });
  document.querySelector(".result")?.setAttribute("tabindex", "0");
  if (columns.every(({ error }) => error)) return failAlike();
  const found = columns.map(({ results }) => results.length).join(" + ");
  const best = both ? [] : columns[0].results.slice(0, 1).map(({ score }) => `best ${score.toFixed(4)}`);
  const time = milliseconds === undefined ? [] : [`${Math.round(milliseconds)} ms`];
  tell([`${found} ${state.target === "texts" ? "texts" : "pictures"}`, ...best, ...time].join(" · "));
}

// All columns have failed; what they all say is said once.
function failAlike() {
  tell("");
  const [first, ...others] = columns.map(({ error }) => error);
  if (!others.length || others.some(({ message }) => message !== first.message)) return;
  columns.forEach(({ problem }) => { problem.hidden = true; });
  showProblem($("problem"), first);
}

// ---------------------------------------------------------------- state, address and history

let committed = true; // whether the next typing begins a step of its own in the history

function address() {
  const parameters = new URLSearchParams();
  if (state.q) parameters.set("q", state.q);
  if (state.target !== "texts") parameters.set("target", state.target);
  if (state.min > LOWEST) parameters.set("min_score", state.min);
  if (state.show) parameters.set("show", state.show);
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

function remember({ typing = false } = {}) {
  const step = { picture: state.picture };
  if (typing && !committed) history.replaceState(step, "", address());
  else if (address() !== location.pathname + location.search || history.state?.picture !== step.picture) {
    history.pushState(step, "", address());
  }
  committed = !typing;
}

function restore(step) {
  const parameters = new URLSearchParams(location.search);
  const minimum = Number.parseFloat(parameters.get("min_score") ?? LOWEST);
  const show = parameters.get("show");
  state.q = parameters.get("q") ?? "";
  state.target = parameters.get("target") === "images" ? "images" : "texts";
  state.min = minimum >= LOWEST && minimum <= 1 ? minimum : LOWEST;
  state.show = about.systems.some(({ name }) => name === show) ? show : "";
  state.picture = pictures.has(step?.picture) ? step.picture : null;
  state.asked = false;
  committed = true;
  render();
  search();
}

// The controls, as the state has them.
function render() {
  $("query").value = state.q;
  $("min-score").value = state.min;
  renderMinimum();
  for (const radio of document.querySelectorAll("[name=target]")) {
    radio.checked = radio.value === state.target;
    const side = state.picture === null ? "by_text" : "by_picture";
    radio.disabled = !about.systems.some((system) => system[side].includes(radio.value));
  }
  for (const radio of document.querySelectorAll("[name=show]")) radio.checked = radio.value === state.show;
  const picture = pictures.get(state.picture);
  $("chip").hidden = !picture;
  $("query").placeholder = picture ? "Type to search by text" : "Search, or drop a picture";
  if (!picture) return;
  $("chip-picture").hidden = false;
  $("chip-picture").src = picture.address;
  $("chip-name").textContent = picture.file.name || "pasted picture";
  $("chip").title = picture.file.name;
}

function renderMinimum() {
  const text = state.min > LOWEST ? state.min.toFixed(2) : "any";
  $("min-score-value").textContent = text;
  $("min-score").setAttribute("aria-valuetext", text);
}

function change(values, { typing = false } = {}) {
  Object.assign(state, { asked: false }, values);
  remember({ typing });
  render();
  search();
}

// ---------------------------------------------------------------- typing and choosing

let timer;

function later(work) {
  clearTimeout(timer);
  timer = setTimeout(work, TYPING_MS);
}

function listen() {
  $("query").addEventListener("input", () => {
    const q = $("query").value;
    later(() => change({ q, picture: null }, { typing: true }));
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    const q = $("query").value;
    const picture = q === state.q ? state.picture : null;
    change({ q, picture, asked: picture === null });
  });
  $("options").addEventListener("change", ({ target }) => {
    if (target.name === "target" || target.name === "show") change({ [target.name]: target.value });
  });
  $("min-score").addEventListener("input", () => {
    state.min = Number($("min-score").value);
    renderMinimum();
    later(() => change({}));
  });
  $("chip-remove").addEventListener("click", () => {
    change({ picture: null });
    $("query").focus();
  });
  $("chip-picture").addEventListener("error", () => { $("chip-picture").hidden = true; });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    takePicture($("file").files);
    $("file").value = "";
  });
  window.addEventListener("popstate", (event) => restore(event.state));
  listenForDrops();
  listenForKeys();
  listenForLarge();
}

function takePicture(files) {
  if (!files.length) {
    showProblem($("problem"), new Problem("that is not a file.", "drop a picture that is a file."));
    return;
  }
  const number = `${performance.timeOrigin} ${pictures.size}`; // differs after a reload
  pictures.set(number, { file: files[0], address: URL.createObjectURL(files[0]) });
  $("large").close();
  change({ picture: number });
}

function listenForDrops() {
  let depth = 0;
  const mark = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => { event.preventDefault(); mark(1); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("dragleave", () => mark(-1));
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(0);
    takePicture(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    takePicture(event.clipboardData.files);
  });
}

// ---------------------------------------------------------------- keys

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function listenForKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search]");
    if ($("large").open) return stepLarge(event);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("query").select();
      $("query").focus();
    } else if (typing && event.key === "ArrowDown") {
      event.preventDefault();
      document.querySelector(".result")?.focus();
    } else if (event.key in ARROWS && event.target.matches(".result")) {
      event.preventDefault();
      move(event.target, ARROWS[event.key]);
    }
  });
}

const middle = (element) => {
  const { x, y, width, height } = element.getBoundingClientRect();
  return [x + width / 2, y + height / 2];
};

// To the nearest result in a direction: columns, lists and grids alike.
function move(from, [right, down]) {
  const [x, y] = middle(from);
  let best = null;
  for (const element of document.querySelectorAll(".result")) {
    const [otherX, otherY] = middle(element);
    const along = (otherX - x) * right + (otherY - y) * down;
    const aside = Math.abs((otherX - x) * down) + Math.abs((otherY - y) * right);
    const cost = along + 3 * aside;
    if (along > 4 && element !== from && (best === null || cost < best.cost)) best = { element, cost };
  }
  if (best !== null) best.element.focus();
  else if (down < 0) $("query").focus();
}

// ---------------------------------------------------------------- one result, large

let opened = null;

function open(result, column) {
  opened = { result, column };
  const dialog = $("large");
  dialog.classList.toggle("plain", result.picture === null);
  $("large-text").textContent = result.text || "(no caption)";
  $("large-search").hidden = !result.text;
  if (result.picture) fill($("large-picture"), `${result.picture}?size=large`, result.text);
  const facts = [
    ["Cosine", result.score.toFixed(4)], ["Rank", result.rank], ["Model", column.system.name],
    [sentence(result.kind), result.id], ["Occurs", count(result.count, "time", "times")],
    ["Archive", result.archive], ["Member", result.member],
  ];
  $("large-list").replaceChildren(...facts.filter(([, value]) => value !== "").flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.textContent = value;
    return [term, description];
  }));
  if (!dialog.open) dialog.showModal();
}

function stepLarge(event) {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const { result, column } = opened;
  const next = column.results[column.results.indexOf(result) + step];
  if (next) open(next, column);
}

function listenForLarge() {
  const dialog = $("large");
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    if (opened === null) return;
    const { result, column } = opened;
    opened = null;
    column.list.querySelectorAll(".result")[column.results.indexOf(result)]?.focus();
  });
  $("large-search").addEventListener("click", () => {
    const { text } = opened.result;
    opened = null;
    dialog.close();
    change({ q: text, picture: null });
    $("query").focus();
  });
}

// ---------------------------------------------------------------- the beginning

function introduce() {
  const { systems, images, captions, examples } = about;
  const models = systems.length > 1 ? `, ${systems.length} models side by side` : "";
  $("corpus").textContent =
    `${count(images, "picture", "pictures")} and ${count(captions, "caption", "captions")}${models}.`;
  $("examples").replaceChildren(...examples.map((text) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => change({ q: text, picture: null }));
    item.append(button);
    return item;
  }));
  if (systems.length < 2) return;
  $("show").hidden = false;
  for (const [value, text] of [["", "Side by side"], ...systems.map(({ name }) => [name, name])]) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    const span = document.createElement("span");
    Object.assign(radio, { type: "radio", name: "show", value });
    span.textContent = text;
    span.title = text;
    label.append(radio, span);
    $("show").append(label);
  }
}

try {
  about = await read(await request("/about"));
  introduce();
  listen();
  restore(history.state);
} catch (error) {
  showProblem($("problem"), error);
}
