"use strict";
/* The explorer: DATA (data.js; vicjoint/embeddings/explorer.py says what it holds) -> map, search, colours, and a
   panel for one item with what is nearest to it. Items have numbers; `#17` in the address is item 17.
   Text from data becomes text nodes only, never markup. */

const COLOURS = ["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#97bbf5", "#9c6b4e", "#b5bd3d"];
const RAMP = ["#3b7dd8", "#9a5fd0", "#e0528f", "#f58a3c", "#e8c02b"]; // from low to high numbers
const STEPS = 32; // of a ramp
const MOST_VALUES = 24; // of a column that get a colour of their own; others share grey
const GREY = "#8c959f";
const LISTED = 60; // matches in the panel
const CRISP = 64; // pixels of a picture that is enlarged without smoothing

const element = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const count = DATA.items.length;
const cloudOf = DATA.clouds.flatMap((cloud, k) => Array(cloud.count).fill(k));
const state = { query: "", colouring: null, only: -1, selected: -1 };
let haystack = null;

/* An element: tag, properties, children (elements or texts). */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// ---- words ----

const cloudName = (cloud) => cloud.name + (cloud.modality && cloud.modality !== cloud.name ? ` (${cloud.modality})` : "");
const seconds = (i) => (DATA.seconds[i] ? `${DATA.seconds[i].map((s) => +s.toFixed(2)).join(" – ")} s` : "");

/* What an item is called where there is little room: a text itself, of a path its last part. */
function title(i) {
  const item = String(DATA.items[i]);
  return DATA.clouds[cloudOf[i]].reads === "text" ? item : item.split(/[\\/]/).pop();
}

const caption = (i) => [title(i), seconds(i)].filter(Boolean).join(", ");
/* A cell as text: numbers to six digits. */
const written = (value) => String(typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value);
const shorter = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

// ---- colours ----

/* What items can be coloured by. coarse: it says less of an item than what it is called. */
function colourings() {
  const found = DATA.columns.map((column) => ({ name: column.name, values: column.values }));
  if (DATA.seconds.some((window) => window !== null)) {
    found.unshift({ name: "start, seconds", values: DATA.seconds.map((window) => window && window[0]) });
    if (new Set(DATA.items).size > 1) found.unshift({ name: "file", coarse: true, values: DATA.items.map((_, i) => title(i)) });
  }
  if (DATA.clouds.length > 1) found.unshift({ name: "index", coarse: true, values: cloudOf.map((k) => cloudName(DATA.clouds[k])) });
  return found;
}

/* {of: number of the colour of each item, palette, legend: [[value, number of items]], range: for numbers}. */
function colouring({ values }) {
  const counts = new Map();
  for (const value of values) if (value !== null) counts.set(value, (counts.get(value) || 0) + 1);
  const numbers = [...counts.keys()].every((value) => typeof value === "number");
  if (numbers && counts.size > COLOURS.length) return ramp(values, [...counts.keys()]);
  const common = [...counts].sort((one, other) => other[1] - one[1]).slice(0, MOST_VALUES);
  common.sort((one, other) => (numbers ? one[0] - other[0] : String(one[0]).localeCompare(String(other[0]))));
  const place = new Map(common.map(([value], k) => [value, k])), rest = common.length;
  const of = values.map((value) => place.get(value) ?? rest);
  const palette = common.map((_, k) => (common.length <= COLOURS.length ? COLOURS[k] : hue(k)));
  const others = of.filter((k) => k === rest).length;
  return { of, palette: [...palette, GREY], legend: others ? [...common, ["other or none", others]] : common };
}

const hue = (k) => `hsl(${Math.round((k * 137.5) % 360)} ${k % 2 ? 55 : 80}% ${k % 3 ? 58 : 46}%)`;

function ramp(values, there) {
  const low = there.reduce((a, b) => Math.min(a, b)), high = there.reduce((a, b) => Math.max(a, b));
  const of = values.map((value) => (value === null ? STEPS : Math.floor(((value - low) / (high - low)) * (STEPS - 1e-6))));
  const palette = Array.from({ length: STEPS }, (_, k) => mixed(k / (STEPS - 1)));
  return { of, palette: [...palette, GREY], legend: [], range: [low, high] };
}

function mixed(share) {
  const at = Math.min(share * (RAMP.length - 1), RAMP.length - 1 - 1e-9), k = Math.floor(at);
  const part = (colour, c) => parseInt(colour.slice(1 + 2 * c, 3 + 2 * c), 16);
  return `rgb(${[0, 1, 2].map((c) => Math.round(part(RAMP[k], c) * (k + 1 - at) + part(RAMP[k + 1], c) * (at - k))).join(" ")})`;
}

/* The column that is looked at first: the indexes where there are several, else one of a few values. */
function firstColouring(all) {
  const few = all.findIndex(({ values }) => {
    const different = new Set(values).size;
    return different > 1 && different <= MOST_VALUES && different < count / 2;
  });
  return DATA.clouds.length > 1 ? 0 : few;
}

function showLegend({ palette, legend, range }) {
  const at = element("legend");
  if (range) {
    const strip = make("span", { className: "ramp" });
    strip.style.background = `linear-gradient(90deg, ${RAMP.join(",")})`;
    at.replaceChildren(make("span", { className: "scale" }, written(range[0]), strip, written(range[1])));
    return;
  }
  at.replaceChildren(...(legend.length > 1 ? legend : []).map(([value, items], k) => {
    const button = make("button", { type: "button", title: "show these alone" }, dot(palette[k]), make("span", {}, shorter(written(value), 60)), make("small", {}, number(items)));
    button.setAttribute("aria-pressed", state.only === k);
    button.onclick = () => {
      state.only = state.only === k ? -1 : k;
      refresh();
    };
    return button;
  }));
}

function dot(colour) {
  const made = make("i", { className: "dot" });
  made.style.background = colour;
  return made;
}

// ---- search ----

function texts() {
  haystack = haystack || DATA.items.map((item, i) => {
    const cells = DATA.columns.map((column) => column.values[i]).filter((value) => value !== null);
    return [item, ...cells.map(written)].join("\n").toLowerCase();
  });
  return haystack;
}

/* Of each item: does it hold all words of the query, and the value that the legend shows alone? */
function matches() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const { of } = state.colouring;
  return DATA.items.map((_, i) => (state.only < 0 || of[i] === state.only) && (!words.length || words.every((word) => texts()[i].includes(word))));
}

// ---- the panel ----

function picture(i, properties = {}) {
  const image = make("img", { src: DATA.picture[i], alt: "", loading: "lazy", ...properties });
  image.onload = () => image.classList.toggle("crisp", image.naturalWidth <= CRISP);
  return image;
}

/* What a tile says of an item beside its picture or text: the value that it is coloured by, else what it is called. */
function label(i) {
  const value = state.column && state.column.values[i];
  return value === null || value === undefined || state.column.coarse ? [seconds(i), title(i)].filter(Boolean).join(", ") : written(value);
}

/* Whether item k is right for i: a partner, or of the same value in the column that says so. */
function same(i, k) {
  if (DATA.partners) return DATA.partners[i].includes(k);
  const { values } = DATA.columns[DATA.right];
  return values[i] !== null && values[i] === values[k];
}

/* Whether an item has any right neighbour in a cloud, so that others are wrong. */
const judged = (i, cloud) => (DATA.partners || DATA.right !== null) && cloudOf.some((k, other) => k === cloud && other !== i && same(i, other));

/* `beside`: {item that it is a neighbour of, their similarity, whether it is right or wrong}. */
function tile(i, beside) {
  const drawn = DATA.picture[i] !== null, mark = dot(state.colouring.palette[state.colouring.of[i]]);
  const made = make("button", { type: "button", className: "tile", title: shorter(caption(i), 300) });
  const line = make("span", { className: "line" }, mark);
  if (drawn) {
    made.append(picture(i), make("span", { className: "line" }, mark, make("span", {}, shorter(label(i), 160))));
  } else made.append(make("span", { className: "text" }, shorter(caption(i), 300)));
  if (beside) {
    line.append(beside.similarity.toFixed(3));
    if (beside.judged) {
      const right = same(beside.item, i);
      made.classList.add(right ? "right" : "wrong");
      line.append(make("b", {}, right ? "✓ right" : "✗ wrong"));
    }
  }
  if (beside || !drawn) made.append(line);
  made.onclick = () => choose(i);
  return made;
}

function tiles(items, beside) {
  const made = make("div", { className: "tiles" }, ...items.map((i, k) => tile(i, beside && beside(k))));
  made.classList.toggle("texts", items.every((i) => DATA.picture[i] === null));
  return made;
}

/* An item as large as there is room, playing where it plays. */
function media(i) {
  const plays = (tag, src) => {
    const made = make(tag, { src, controls: true, loop: tag === "video", playsInline: true });
    made.play().catch(() => {}); // a page that was just opened may not play by itself
    return made;
  };
  if (DATA.clip[i] !== null) {
    const film = plays("video", DATA.clip[i]);
    film.poster = DATA.picture[i];
    film.onloadedmetadata = () => film.classList.toggle("crisp", film.videoWidth <= CRISP);
    return [make("div", { className: "show" }, film)];
  }
  return [
    DATA.picture[i] === null ? null : make("div", { className: "show" }, picture(i)),
    DATA.sound[i] === null ? null : plays("audio", DATA.sound[i]),
  ].filter(Boolean);
}

/* The heading and tiles of an item's neighbours in a cloud. */
function nearest(i, cloud) {
  const { numbers, similarity } = DATA.near[cloud], heading = make("h2", {}, `Nearest in ${cloudName(DATA.clouds[cloud])}`);
  if (!numbers[i].length) return [heading, make("p", { className: "soft" }, "There is no other item, or the embedding is not finite.")];
  const judge = judged(i, cloud);
  return [heading, tiles(numbers[i], (n) => ({ item: i, similarity: similarity[i][n], judged: judge }))];
}

function showItem(i) {
  const cloud = DATA.clouds[cloudOf[i]], text = cloud.reads === "text";
  const back = make("button", { type: "button" }, "close");
  back.onclick = () => choose(-1);
  const facts = make("dl", {}, ...DATA.columns.flatMap(({ name, values }) => (values[i] === null ? [] : [make("dt", {}, name), make("dd", {}, written(values[i]))])));
  // where partners are in another cloud, it comes first
  const order = DATA.clouds.map((_, k) => k).sort((k, other) => (DATA.partners ? (k === cloudOf[i]) - (other === cloudOf[i]) : 0));
  const near = order.flatMap((k) => nearest(i, k));
  element("side").replaceChildren(
    make("div", { className: "top" }, make("h2", {}, cloudName(cloud)), back),
    ...media(i),
    text ? make("blockquote", {}, String(DATA.items[i])) : make("p", { className: "name" }, caption(i)),
    text ? "" : make("small", {}, String(DATA.items[i])),
    DATA.cause[i] ? make("p", { className: "soft" }, `Not shown: ${DATA.cause[i]}`) : "",
    facts,
    ...near,
  );
  element("side").scrollTop = 0;
}

function showMatches(matched) {
  const found = matched.flatMap((yes, i) => (yes ? [i] : []));
  const more = found.length > LISTED ? `${number(found.length - LISTED)} more: add a word.` : "";
  element("side").replaceChildren(
    make("h2", {}, `${number(found.length)} of ${number(count)} items`),
    found.length ? tiles(found.slice(0, LISTED)) : make("p", { className: "soft" }, "No item holds all of these words."),
    make("p", { className: "soft" }, more),
  );
}

function showHint() {
  element("side").replaceChildren(
    make("h2", {}, "Look around"),
    make("p", { className: "soft" }, "Point at an item to see it. Click it to play or read it, and to see what is nearest to it. Drag to move, scroll to zoom."),
    ...(DATA.partners ? [make("p", { className: "soft" }, "Neighbours in the other set are right where they belong together.")] : []),
    ...(DATA.right === null ? [] : [make("p", { className: "soft" }, `Neighbours are right where they hold the same in “${DATA.columns[DATA.right].name}”.`)]),
    make("h2", {}, "Some items"),
    tiles(Array.from({ length: Math.min(12, count) }, (_, k) => Math.floor((k * count) / Math.min(12, count)))),
  );
}

// ---- all together ----

function choose(i) {
  const address = i < 0 ? "" : `#${i}`;
  if (location.hash === address) return;
  if (i >= 0) location.hash = address;
  else history.pushState(null, "", location.pathname + location.search);
  refresh();
}

function refresh() {
  const asked = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : -1, before = state.selected;
  state.selected = asked < count ? asked : -1;
  map.hover(-1);
  const matched = matches(), narrowed = state.only >= 0 || state.query.trim() !== "";
  const { selected } = state, others = selected < 0 ? [] : DATA.near.flatMap(({ numbers }) => numbers[selected]);
  const kept = new Set([selected, ...others]);
  map.look({
    colour: state.colouring.of,
    palette: state.colouring.palette,
    state: DATA.items.map((_, i) => (map.x[i] === null ? HIDDEN : matched[i] || kept.has(i) ? FULL : FAINT)),
  });
  map.mark(selected, others);
  element("count").textContent = narrowed ? `${number(matched.filter(Boolean).length)} of ${number(count)}` : `${number(count)} items`;
  showLegend(state.colouring);
  if (selected >= 0) {
    if (selected !== before || state.shownWith !== state.colouring) showItem(selected);
    if (selected !== before) map.reveal(selected);
  } else if (narrowed) showMatches(matched);
  else showHint();
  state.shownWith = state.colouring;
}

function hover(i, x, y) {
  const tip = element("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  if (tip.dataset.item !== String(i)) {
    tip.dataset.item = i;
    const value = state.column && state.column.values[i];
    tip.replaceChildren(
      DATA.picture[i] === null ? "" : picture(i, { loading: "eager" }),
      make("div", {}, shorter(caption(i), 200)),
      value === null || value === undefined ? "" : make("div", { className: "soft" }, `${state.column.name}: ${shorter(written(value), 80)}`),
    );
  }
  const { offsetWidth, offsetHeight } = tip;
  tip.style.left = `${Math.max(4, x + 16 + offsetWidth > innerWidth ? x - offsetWidth - 12 : x + 16)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - offsetHeight - 6))}px`;
}

function ink() {
  const style = getComputedStyle(document.documentElement);
  map.look({ ink: style.getPropertyValue("--fg").trim(), faint: style.getPropertyValue("--soft").trim() });
}

function useMap(k) {
  const [x, y] = DATA.maps[k].places;
  map.look({ x, y });
  element("note").textContent = `${DATA.maps[k].name}: ${DATA.maps[k].note}`;
}

function about() {
  element("title").textContent = document.title = DATA.clouds.map(cloudName).join(" and ");
  element("about").textContent = DATA.clouds.map((cloud) => {
    const branch = cloud.branch ? ` of branch ${cloud.branch}` : "", name = DATA.clouds.length > 1 ? `${cloud.name}: ` : "";
    const sample = cloud.total > cloud.count ? `, a sample of ${number(cloud.total)}` : "";
    return `${name}${number(cloud.count)} items${branch}${sample}.`;
  }).concat(DATA.clouds.some((cloud) => cloud.total > cloud.count) ? "Neighbours are those among the sample." : []).join(" ");
}

const map = new PointMap(element("box"), { hover, choose });

function start() {
  const all = colourings(), first = firstColouring(all), plain = { of: DATA.items.map(() => 0), palette: [COLOURS[0]], legend: [] };
  const use = (k) => {
    state.column = all[k];
    state.colouring = k < 0 ? plain : colouring(all[k]);
    state.only = -1;
    delete element("tip").dataset.item;
  };
  about();
  element("colour").append(new Option("one colour", -1), ...all.map(({ name }, k) => new Option(shorter(name, 40), k)));
  element("colour").value = first;
  element("colour").onchange = (event) => { use(Number(event.target.value)); refresh(); };
  element("map").append(...DATA.maps.map(({ name }, k) => new Option(name, k)));
  element("map").onchange = (event) => { useMap(Number(event.target.value)); refresh(); };
  element("map").parentElement.hidden = DATA.maps.length < 2;
  element("show-pictures").hidden = DATA.picture.every((name) => name === null);
  element("pictures").onchange = (event) => map.look({ withPictures: event.target.checked });
  element("query").oninput = (event) => { state.query = event.target.value; if (state.selected >= 0) choose(-1); refresh(); };
  element("tools").onsubmit = (event) => event.preventDefault();
  element("nearer").onclick = () => map.zoom(1.6);
  element("farther").onclick = () => map.zoom(1 / 1.6);
  element("all").onclick = () => map.fit();
  window.onpopstate = window.onhashchange = refresh;
  document.onkeydown = (event) => { if (event.key === "Escape") choose(-1); };
  matchMedia("(prefers-color-scheme: dark)").onchange = ink;
  use(first);
  map.look({ picture: DATA.picture, shape: cloudOf.map((k) => k % SHAPES.length), state: [], colour: state.colouring.of, palette: state.colouring.palette });
  ink();
  map.resize();
  useMap(DATA.maps.length - 1);
  element("map").value = DATA.maps.length - 1;
  refresh();
}

start();
