// Works the forms of the admin page (ask, call the admin API, say what came of it), keeps the training live, names the hour under the pointer.
"use strict";
const POLL_MS = 3000;
const said = document.getElementById("said");
const ask = document.getElementById("ask");

function say(words, failed) {
  said.textContent = words;
  said.classList.toggle("failed", Boolean(failed));
}

function bodyOf(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    body[field.name] = field.dataset.type === "boolean" ? field.checked : field.dataset.type === "number" ? Number(field.value) : field.value;
  }
  return body;
}

// The dialog's button repeats the words of the button that was pressed.
function confirmed(words, button) {
  document.getElementById("ask-words").textContent = words;
  const yes = document.getElementById("ask-yes");
  yes.textContent = button.textContent;
  yes.className = button.className;
  ask.returnValue = "";
  ask.showModal();
  return new Promise((resolve) => ask.addEventListener("close", () => resolve(ask.returnValue === "yes"), { once: true }));
}

// The page of a login that is over asks for the key again, and says why.
function goneIfEnded(answer) {
  if (answer.status === 401) location.assign("/admin?ended");
  return answer.status === 401;
}

async function call(form) {
  const body = bodyOf(form);
  const words = form.dataset.confirm.replace(/\{(\w+)\}/g, (_, name) => body[name]);
  const button = form.querySelector("button");
  if (!(await confirmed(words, button))) return;
  button.disabled = true;
  try {
    const answer = await fetch(form.dataset.call, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    if (goneIfEnded(answer)) return;
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    sessionStorage.setItem("said", found.message || (found.version ? `${found.version} is ${found.state.replace("_", " ")}.` : "Done."));
    location.reload();
  } catch (failed) {
    say(failed.message, true);
    button.disabled = false;
    said.scrollIntoView({ block: "nearest" });
  }
}

for (const form of document.querySelectorAll("form[data-call]")) {
  form.addEventListener("submit", (event) => { event.preventDefault(); call(form); });
  for (const slider of form.querySelectorAll("input[type=range]")) {
    slider.addEventListener("input", () => { form.querySelector(`output[for=${slider.id}]`).value = `${slider.value} %`; });
  }
}
say(sessionStorage.getItem("said") || "");
sessionStorage.removeItem("said");

const live = document.getElementById("live");
async function poll() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/admin/live.json");
    if (goneIfEnded(answer)) return;
    if (!answer.ok) throw new Error();
    const found = await answer.json();
    live.innerHTML = found.training; // escaped by the server
    if (found.state !== live.dataset.state) {
      live.dataset.state = found.state;
      say("The training's state changed: reload the page for the rest of it.");
    }
  } catch {
    say("The server does not answer: what is shown is old.", true);
  }
}
setInterval(poll, POLL_MS);

const strip = document.getElementById("strip");
if (strip) {
  const { first, rows, columns, codes } = strip.dataset;
  const names = ["pending", "thin", "ready", "waiting", "scored", "trained", "quarantined"];
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const code = codes[column * rows + row];
    const hour = new Date(Date.parse(`${first}Z`) + (column * rows + row) * 3600e3).toISOString().slice(0, 16).replace("T", " ");
    document.getElementById("strip-hour").value = code === undefined ? "" : `${hour}: ${names[code] ?? "no rows"}`;
  });
}
