// The page's behaviour. Whatever comes from the collection or the query is set as text, never as
// markup. A search by text or by one of the results has an address (#text=…, #like=…), so that the
// browser's Back works; it stays in the browser, since fragments are not sent.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("form"), field = byId("text"), results = byId("results");
let about = null;
let latest = 0;

class Problem extends Error {}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Problem("The server does not answer. Is the command still running?");
  }
  const content = await answer.json().catch(() => null);
  if (answer.ok && content) return content;
  throw new Problem(
    content?.what
      ? `${sentence(content.what)} Expected: ${content.expected}. What to do: ${content.do}.`
      : `The server answered ${answer.status}.`,
  );
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

// Only the latest search shows: an earlier one may be answered later.
async function search(path, options, title) {
  const turn = ++latest;
  results.ariaBusy = "true";
  byId("status").textContent = "Searching…";
  showProblem(null);
  try {
    const found = await ask(path, options);
    if (turn !== latest) return;
    showQuery(found.query, title);
    showResults(found.results);
    byId("results-title").textContent = "Most similar pictures";
    byId("status").textContent =
      `${found.results.length} of ${about.collection.num_pictures.toLocaleString()}, by cosine similarity`;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (turn !== latest) return;
    byId("status").textContent = "";
    showProblem(error.message);
  } finally {
    if (turn === latest) results.ariaBusy = "false";
  }
}

function searchByText(text) {
  const limit = about.limits.text_chars;
  if ([...text].length > limit) return refuse(`The text is too long: ${limit} characters at most.`);
  const body = JSON.stringify({ text });
  const headers = { "Content-Type": "application/json" };
  return search("/api/search/text", { method: "POST", body, headers }, text);
}

function searchByPicture(file) {
  const limit = about.limits.upload_bytes;
  if (file.size > limit) {
    return refuse(`${file.name} is too large: ${(limit / 1e6).toLocaleString()} MB at most.`);
  }
  field.value = "";
  setAddress("");
  const headers = { "Content-Type": "application/octet-stream" };
  return search("/api/search/picture", { method: "POST", body: file, headers }, file.name);
}

const searchAlike = (id) => search(`/api/search/like/${id}`, {}, null);

function refuse(message) {
  latest += 1;
  results.ariaBusy = "false";
  byId("status").textContent = "";
  showProblem(message);
}

function showProblem(message) {
  byId("problem").textContent = message ?? "";
  byId("problem").hidden = !message;
}

function showQuery(query, title) {
  const named = title ?? (query.caption || query.key);
  byId("query").hidden = false;
  byId("query-title").textContent = named;
  byId("seen").hidden = !query.seen;
  if (query.seen) byId("seen").src = query.seen;
  const size = `${about.model.image_size_px}×${about.model.image_size_px} pixels`;
  const notes = {
    text: query.seen ? `A text, drawn on ${size}.` : "A text, as tokens of a vocabulary.",
    picture: `Your picture, on ${size}. It is not kept.`,
    alike: `A picture of the collection, on ${size}.`,
  };
  const where = query.seen ? "on the canvas, or not in the font" : "among the tokens that fit";
  const cut = query.is_cut ? ` Its end is not ${where}.` : "";
  const unjoined = query.is_unjoined ?
    " Its letters stand one by one, from left to right, as this font draws them and the model learned them." : "";
  const far = query.usual_score == null ? "" :
    ` No picture is near: the texts that this model knows reach a similarity of ${query.usual_score.toFixed(2)} here.`;
  byId("query-note").textContent = notes[query.kind] + cut + unjoined + far;
  byId("seen").alt = query.kind === "text" ? `The text “${named}”, drawn in pixels` : named;
}

function showResults(found) {
  const template = byId("result").content;
  results.replaceChildren(...found.map((result) => {
    const item = template.cloneNode(true);
    const card = item.querySelector(".card");
    const image = item.querySelector("img");
    const named = result.caption || result.key;
    card.title = `${named}\n${result.key}\nMore like this`;
    card.dataset.picture = result.id;
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 128));
    image.src = `/pictures/${result.id}`;
    image.alt = `More like this picture: ${named}`;
    item.querySelector(".caption").textContent = named;
    item.querySelector(".caption").classList.toggle("key", !result.caption);
    item.querySelector(".score").textContent = result.score?.toFixed(3) ?? "";
    return item;
  }));
}

function showAbout() {
  const { model, collection } = about;
  byId("served").textContent =
    `${model.name} · ${collection.num_pictures.toLocaleString()} pictures of ${collection.name}`;
  const rejected = Object.values(collection.rejected).reduce((sum, count) => sum + count, 0);
  const facts = {
    Checkpoint: model.name,
    Step: model.step?.toLocaleString(),
    Parameters: `${(model.num_parameters / 1e6).toFixed(1)} M`,
    Canvas: `${model.image_size_px} px, patches of ${model.patch_size_px}`,
    Font: model.text_input === "pixels"
      ? `${model.font} (${model.font_sha256.slice(0, 8)})` : null,
    Identity: model.identity.replace("sha256:", "").slice(0, 12),
    Rejected: rejected ? `${rejected.toLocaleString()} files that are no whole pictures` : null,
  };
  for (const [name, value] of Object.entries(facts)) {
    if (value == null) continue;
    const [term, detail] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = name;
    detail.textContent = value;
    byId("model").append(term, detail);
  }
  for (const example of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.dir = "auto";
    button.textContent = example;
    button.addEventListener("click", () => { setAddress(`text=${encodeURIComponent(example)}`); follow(); });
    byId("examples").append(button);
  }
  byId("examples").hidden = !about.examples.length;
}

function setAddress(fragment) {
  if (location.hash.slice(1) !== fragment) history.pushState(null, "", fragment ? `#${fragment}` : "/");
}

// Does what the address says.
function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  field.value = wanted.get("text") ?? "";
  if (wanted.get("text")) return searchByText(wanted.get("text"));
  if (/^\d+$/.test(wanted.get("like") ?? "")) return searchAlike(wanted.get("like"));
  latest += 1;
  byId("query").hidden = true;
  showProblem(null);
  showResults(about.pictures);
  byId("results-title").textContent = "Pictures";
  byId("status").textContent = "some of the collection";
  results.ariaBusy = "false";
}

function listen() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setAddress(field.value.trim() ? `text=${encodeURIComponent(field.value)}` : "");
    follow();
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) searchByPicture(file);
    event.target.value = "";
  });
  results.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    setAddress(`like=${card.dataset.picture}`);
    follow();
    byId("results-title").focus({ preventScroll: true });
    scrollTo({ top: 0 });
  });
  addEventListener("popstate", follow);
  addEventListener("paste", (event) => takeFile(event.clipboardData, event));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = !event.dataTransfer.types.includes("Files");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    takeFile(event.dataTransfer, event);
  });
}

function takeFile(transfer, event) {
  const [file] = transfer?.files ?? [];
  if (!file) return;
  event.preventDefault();
  searchByPicture(file);
}

async function start() {
  try {
    about = await ask("/api/about");
  } catch (error) {
    showProblem(error.message);
    throw error;
  }
  showAbout();
  listen();
  await follow();
}

start();
