"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // --- dark or light: as the system says, or the other of the two ---
  const theme = $("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement.style;
    const dark = root.colorScheme
      ? root.colorScheme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.colorScheme = dark ? "light" : "dark";
  });

  if (!$("data")) return;
  const data = JSON.parse($("data").textContent);
  const pixels = $("pixels").textContent;
  $("pixels").remove();
  const { side } = data;

  // --- pictures ---
  const stops = [[87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const colours = new Uint8Array(256 * 4);
  for (let value = 0; value < 256; value++) {
    const at = (value / 255) * (stops.length - 1);
    const first = Math.min(Math.floor(at), stops.length - 2);
    for (let k = 0; k < 3; k++) {
      const [a, b] = [stops[first][k], stops[first + 1][k]];
      colours[4 * value + k] = a + (b - a) * (at - first);
    }
    colours[4 * value + 3] = 255 * Math.min(1, value / 100);
  }
  const legend = $("legend").getContext("2d");
  const ramp = legend.createImageData(256, 1);
  ramp.data.set(colours);
  legend.putImageData(ramp, 0, 0);

  const scratch = document.createElement("canvas");
  scratch.width = scratch.height = side;
  const heat = scratch.getContext("2d", { willReadFrequently: true });

  function load(i) {
    const text = atob(pixels.slice(data.offset[i], data.offset[i + 1]));
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  }

  function draw(canvas, picture, view, strength = 0.75) {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const part = view === "reconstruction" ? side : 0;
    context.drawImage(picture, part, 0, side, side, 0, 0, side, side);
    if (view !== "map") return;
    heat.drawImage(picture, 2 * side, 0, side, side, 0, 0, side, side);
    const map = heat.getImageData(0, 0, side, side);
    for (let k = 0; k < map.data.length; k += 4) {
      const value = 4 * map.data[k];
      map.data.set(colours.subarray(value, value + 4), k);
    }
    heat.putImageData(map, 0, 0);
    context.globalAlpha = strength;
    context.drawImage(scratch, 0, 0);
    context.globalAlpha = 1;
  }

  // --- words ---
  const named = (value) => (value ? "abnormal" : "normal");
  const short = (path) => path.split("/").slice(-2).join("/");
  const number = (value) => (value === null ? "none" : String(Number(value.toPrecision(4))));
  function error(i) {
    if (!data.abnormal || data.abnormal[i] === data.label[i]) return "";
    return data.abnormal[i] ? "false positive" : "false negative";
  }
  function make(tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  // --- which cases, in which order ---
  const filters = $("filters");
  filters.hidden = false;
  const value = (name) => (filters.elements[name] ? filters.elements[name].value : "");
  const compare = {
    "-score": (a, b) => data.score[b] - data.score[a],
    score: (a, b) => data.score[a] - data.score[b],
    path: (a, b) => (data.path[a] < data.path[b] ? -1 : 1),
  };
  let shown = [];
  function choose() {
    const text = value("text").toLowerCase();
    const [label, abnormal, wrong] = ["label", "abnormal", "error"].map(value);
    const kinds = { any: (e) => e, none: (e) => !e };
    kinds.fp = (e) => e === "false positive";
    kinds.fn = (e) => e === "false negative";
    shown = data.path
      .map((_, i) => i)
      .filter(
        (i) =>
          (!text || data.path[i].toLowerCase().includes(text)) &&
          (!label || data.label[i] === Number(label)) &&
          (!abnormal || data.abnormal[i] === Number(abnormal)) &&
          (!wrong || kinds[wrong](error(i))),
      )
      .sort(compare[value("sort")]);
    $("count").textContent =
      `${shown.length.toLocaleString("en")} of ${data.path.length.toLocaleString("en")} cases`;
    gallery.replaceChildren();
    append();
  }

  // --- the gallery: cards are made as far as it was scrolled, pictures on the screen ---
  const gallery = $("gallery");
  const PAGE = 60;
  const screen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        target.visible = isIntersecting;
        paint(target);
      }
    },
    { rootMargin: "300px" },
  );
  async function paint(card) {
    const canvas = card.firstElementChild;
    if (!card.visible) {
      canvas.width = canvas.height = 0; // lets go of its memory
      return;
    }
    const picture = await load(card.index);
    if (card.visible && card.isConnected) draw(canvas, picture, value("view"));
    picture.close();
  }
  function card(place) {
    const i = shown[place];
    const wrong = error(i);
    const button = make("button", undefined, wrong ? "case error" : "case");
    button.type = "button";
    button.index = i;
    button.place = place;
    button.tabIndex = place ? -1 : 0;
    const p = data.p ? `, p ${number(data.p[i])}` : "";
    const state = wrong || `labelled ${named(data.label[i])}`;
    const canvas = make("canvas");
    canvas.width = canvas.height = 0;
    button.append(
      canvas,
      make("span", `${number(data.score[i])}${p}`, "value"),
      make("span", state, data.label[i] || wrong ? "abnormal" : "state"),
      make("span", short(data.path[i]), "state"),
    );
    button.title = data.path[i];
    screen.observe(button);
    const item = make("li");
    item.append(button);
    return item;
  }
  function append() {
    const first = gallery.childElementCount;
    const last = Math.min(first + PAGE, shown.length);
    const made = [];
    for (let place = first; place < last; place++) made.push(card(place));
    gallery.append(...made);
  }
  const cards = () => Array.from(gallery.children, (item) => item.firstElementChild);
  new IntersectionObserver((entries) => entries[0].isIntersecting && more(), {
    rootMargin: "1200px",
  }).observe($("more"));
  function more() {
    // the end may stay in view, which the observer does not report again
    if (gallery.childElementCount >= shown.length) return;
    append();
    requestAnimationFrame(() => {
      if ($("more").getBoundingClientRect().top < innerHeight + 1200) more();
    });
  }
  filters.elements.text.addEventListener("input", choose);
  filters.addEventListener("change", ({ target }) => {
    if (target.name === "view") cards().forEach((each) => each.visible && paint(each));
    else if (target.name !== "text") choose(); // of which every letter was heard
  });
  filters.addEventListener("submit", (event) => event.preventDefault());

  // --- keys: one stop for Tab, arrows within ---
  function focus(place) {
    while (place >= gallery.childElementCount && gallery.childElementCount < shown.length)
      append();
    const all = cards();
    const target = all[Math.max(0, Math.min(place, all.length - 1))];
    if (!target) return;
    all.forEach((each) => (each.tabIndex = each === target ? 0 : -1));
    target.focus();
  }
  gallery.addEventListener("keydown", (event) => {
    const here = document.activeElement.place;
    if (here === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = getComputedStyle(gallery).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const ends = { Home: 0, End: shown.length - 1 };
    if (event.key in steps) focus(here + steps[event.key]);
    else if (event.key in ends) focus(ends[event.key]);
    else return;
    event.preventDefault();
  });

  // --- one case ---
  const dialog = $("case");
  let open = 0;
  let picture = null;
  async function show(place) {
    open = Math.max(0, Math.min(place, shown.length - 1));
    const i = shown[open];
    $("case-title").textContent = data.path[i];
    $("previous").disabled = open === 0;
    $("next").disabled = open === shown.length - 1;
    const facts = [
      ["Score", number(data.score[i])],
      ["Rank", `${data.rank[i].toLocaleString("en")} of ${data.of.toLocaleString("en")}`],
      ["Label", named(data.label[i])],
    ];
    if (data.p) facts.push(["p-value", number(data.p[i])]);
    if (data.abnormal) facts.push(["Decision", named(data.abnormal[i])]);
    if (error(i)) facts.push(["Error", error(i)]);
    if (data.group) facts.push(["Group", data.group[i]]);
    $("case-facts").replaceChildren(
      ...facts.map(([name, text]) => {
        const pair = make("div");
        const mark = name === "Error" || text === "abnormal" ? "abnormal" : "";
        pair.append(make("dt", name), make("dd", text, mark));
        return pair;
      }),
    );
    $("shares").replaceChildren(
      ...data.layers.flatMap((layer, k) => {
        const meter = make("meter");
        meter.value = data.share[i][k] ?? 0;
        meter.setAttribute("aria-label", `Share of layer ${layer}`);
        const line = make("dd");
        line.append(meter, `${(100 * meter.value).toFixed(1)}%`);
        return [make("dt", layer), line];
      }),
    );
    if (!dialog.open) dialog.showModal();
    const loaded = await load(i);
    if (i !== shown[open]) return loaded.close();
    picture?.close();
    picture = loaded;
    drawViews();
  }
  function drawViews() {
    const strength = $("strength").value / 100;
    const views = ["image", "reconstruction", "map"];
    dialog.querySelectorAll(".views canvas").forEach((canvas, k) => {
      draw(canvas, picture, views[k], strength);
    });
  }
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest(".case");
    if (button) show(button.place);
  });
  $("strength").addEventListener("input", () => picture && drawViews());
  $("previous").addEventListener("click", () => show(open - 1));
  $("next").addEventListener("click", () => show(open + 1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.id === "strength") return;
    if (event.key === "ArrowLeft") show(open - 1);
    if (event.key === "ArrowRight") show(open + 1);
  });
  dialog.addEventListener("close", () => focus(open));

  choose();
})();
