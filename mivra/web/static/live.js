// One event stream for the whole page, shared by every place that is mounted; a place reruns when its mark is old.
const SCRIPT_BUSY_MS = 250; // look again this long after finding a script run or an open dialog in the way
const ASK_AGAIN_MS = 10000; // a rerun that was asked for and never came is asked for again
const SETTLE_MS = 400; // two reruns asked for at once become one, and not always the larger: one place asks at a time
const GESTURE_MS = 800; // a rerun asked for right after a click would overtake it: Streamlit keeps the last request
const GAP_MS = { bots: 400, data: 1000 }; // a page is redrawn at most this often

function openShared() {
  const shared = { marks: null, lost: false, skew: 0, askedAt: 0, places: new Set(), source: null };
  // The page before its fragments: it draws them too.
  const tell = () => [...shared.places].sort((a, b) => b.data.topic.localeCompare(a.data.topic)).forEach((p) => p.look());
  const connect = () => {
    if (shared.source || document.hidden) return;
    shared.source = new EventSource(new URL("api/events", document.baseURI));
    shared.source.onmessage = (event) => {
      shared.marks = JSON.parse(event.data);
      shared.skew = shared.marks.now - Date.now();
      shared.lost = false;
      tell();
    };
    shared.source.onerror = () => {
      shared.lost = true;
      // A refusal ends an EventSource for good; a broken connection does not.
      if (shared.source?.readyState === EventSource.CLOSED) {
        disconnect();
        leaveIfSignedOut();
        setTimeout(connect, 5000);
      }
      tell();
    };
  };
  const disconnect = () => {
    shared.source?.close();
    shared.source = null;
  };
  // A hidden tab holds no connection (a browser allows six a host) and is brought up to date when it is looked at.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  setInterval(() => showAges(shared.skew), 1000);
  connect();
  return shared;
}

// A session that has ended leaves nothing on the screen: loaded anew, every page leads to the sign-in.
async function leaveIfSignedOut() {
  const answer = await fetch(new URL("api/events", document.baseURI), { method: "HEAD" }).catch(() => null);
  if (answer?.status === 401) location.reload();
}
window.addEventListener("pageshow", (event) => event.persisted && location.reload());

function showAges(skew) {
  for (const element of document.querySelectorAll("[data-as-of]")) {
    const text = age((Date.now() + skew - Number(element.dataset.asOf)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}

function age(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.max(0, Math.floor(seconds))} s ago`;
}

let gestureAt = Date.now(); // somebody has opened the page
for (const kind of ["pointerdown", "pointerup", "keydown", "popstate"]) {
  window.addEventListener(kind, () => (gestureAt = Date.now()), true);
}

function busy(shared) {
  const now = Date.now();
  if (now - shared.askedAt < SETTLE_MS || now - gestureAt < GESTURE_MS || document.querySelector('[role="dialog"]')) return true;
  const app = document.querySelector('[data-testid="stApp"]')?.dataset;
  return app?.testScriptState !== "notRunning" || app.testConnectionState !== "CONNECTED";
}

function indicate(root, lost) {
  const box = root.querySelector(".live") ?? root.appendChild(document.createElement("div"));
  box.className = lost ? "live lost" : "live";
  box.setAttribute("role", "status");
  const words = lost ? "Connection lost, trying again" : "Live";
  if (box.textContent !== words) box.innerHTML = `<span class="dot"></span><span>${words}</span>`;
}

const places = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const shared = (window.__mivraLive ??= openShared());
  const place = places.get(parentElement) ?? { timer: null, idle: null, asked: null, askedAt: 0 };
  places.set(parentElement, place);
  Object.assign(place, { data, setTriggerValue });

  const later = (ms) => {
    clearTimeout(place.timer);
    place.timer = setTimeout(place.look, ms);
  };
  const ask = (mark) => {
    Object.assign(place, { asked: mark, askedAt: Date.now() });
    shared.askedAt = place.askedAt;
    place.setTriggerValue("changed", { mark, at: place.askedAt, still_s: (place.askedAt - gestureAt) / 1000 });
  };
  place.look = () => {
    const { topic, mark, indicator } = place.data;
    if (indicator) indicate(parentElement, shared.lost);
    const current = shared.marks?.[topic];
    if (!current || current === mark) return;
    const since = Date.now() - place.askedAt;
    const wait = place.asked === current ? ASK_AGAIN_MS - since : GAP_MS[topic] - since;
    if (wait <= 0 && !busy(shared)) ask(current);
    // Looked at again in any case: a rerun that was asked for may be lost to another.
    later(Math.max(wait, SCRIPT_BUSY_MS));
  };
  place.rest = () => {
    const wait = document.hidden || busy(shared);
    if (!wait) ask(place.data.mark);
    place.idle = setTimeout(place.rest, wait ? 1000 : ASK_AGAIN_MS);
  };
  clearTimeout(place.idle);
  if (data.idle_ms) place.idle = setTimeout(place.rest, data.idle_ms);
  shared.places.add(place);
  place.look();
  showAges(shared.skew);
  return () => {
    clearTimeout(place.timer);
    clearTimeout(place.idle);
    shared.places.delete(place);
  };
}
