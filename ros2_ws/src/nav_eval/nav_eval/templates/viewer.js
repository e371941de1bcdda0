// The flight viewer: one flight's view (nav_eval.flight_view) in an element, on a slider of time.
"use strict";
// Of every map; flight_view.GROUND.
const GROUND = { plot_bgcolor: "#c3d3b8" }, GRID = { zeroline: false, gridcolor: "#aebfa2" };
// Of every other plot.
const LINES = { gridcolor: "#8884" };
function showFlight(root, view) {
  const make = (tag, name, parent = root) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    parent.append(element);
    return element;
  };
  const last = (rows, t, time) => {
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (time(rows[middle]) <= t) low = middle + 1; else high = middle;
    }
    return low - 1;
  };
  root.replaceChildren();
  root.classList.add("flight");
  const bar = make("div", "bar");
  const play = make("button", "", bar);
  play.type = "button";
  play.textContent = "play";
  const slider = make("input", "", bar);
  Object.assign(slider, { type: "range", min: 0, max: view.duration_s, step: 0.1, value: 0 });
  slider.setAttribute("aria-label", "time in the flight");
  const clock = make("output", "", bar);
  const panes = make("div", "panes");
  const picture = make("img", "picture", panes);
  picture.alt = "what the drone sees";
  const map = make("div", "map", panes);
  const words = make("div", "words", panes);
  const call = make("div", "call", words);
  const result = make("div", "result", words);
  const detail = make("div", "small", words);
  const into = make("div", "small", words);
  const list = make("ol", "decisions", words);
  const active = view.active_frames && view.active_frames.length ? make("div", "active") : null;
  const strip = make("div", "strip");
  const examined = view.decisions.some((d) => d.xray);
  const xray = examined ? make("div", "strip") : null;
  const cause = examined ? make("div", "small") : null;

  for (const decision of view.decisions) {
    const item = make("li", "", list);
    const jump = make("button", "", item);
    jump.type = "button";
    jump.textContent = `${decision.t.toFixed(1)} s  ${decision.call}`;
    jump.onclick = () => { slider.value = decision.t; show(decision.t); };
  }

  const ink = getComputedStyle(document.body).color;
  const plain = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 11 }, showlegend: false };
  const options = { displaylogo: false, responsive: true, displayModeBar: false };
  const decided = view.decisions.map((d) => view.track[Math.max(0, last(view.track, d.t, (row) => row[0]))]).filter(Boolean);
  Plotly.newPlot(map, [
    { x: view.track.map((r) => r[1]), y: view.track.map((r) => r[2]), mode: "lines", line: { color: "#c63" }, hoverinfo: "skip" },
    { x: decided.map((r) => r[1]), y: decided.map((r) => r[2]), mode: "markers", marker: { color: "#c63", size: 5 },
      text: view.decisions.map((d) => d.call), hoverinfo: "text" },
    { x: [0], y: [0], mode: "markers", marker: { color: "#36c", size: 12, symbol: "diamond" }, hoverinfo: "skip" },
    { x: view.objects.map((o) => o.x), y: view.objects.map((o) => o.y), mode: "markers", marker: { opacity: 0 },
      text: view.objects.map((o) => o.name), hoverinfo: "text" },
  ], {
    ...plain, ...GROUND, shapes: view.shapes, margin: { l: 36, r: 8, t: 8, b: 32 },
    xaxis: { title: { text: "east, m" }, ...GRID }, yaxis: { title: { text: "north, m" }, scaleanchor: "x", ...GRID },
  }, options);

  const rows = view.cache.rows;
  const seconds = rows.map((r) => r[0]);
  Plotly.newPlot(strip, [
    { x: seconds, y: rows.map((r) => r[1]), stackgroup: "cache", name: "sink", line: { width: 0 }, fillcolor: "#777" },
    { x: seconds, y: rows.map((r) => r[2]), stackgroup: "cache", name: "window", line: { width: 0 }, fillcolor: "#48c" },
    { x: seconds, y: rows.map((r) => r[3]), yaxis: "y2", name: "chunks evicted", line: { shape: "hv", color: "#c33", width: 1 } },
  ], {
    ...plain, showlegend: true, legend: { orientation: "h", y: 1.2 }, margin: { l: 48, r: 40, t: 8, b: 32 },
    xaxis: { range: [0, view.duration_s], title: { text: "s" }, ...LINES },
    yaxis: { range: [0, view.cache.budget || null], title: { text: "tokens" }, ...LINES },
    yaxis2: { overlaying: "y", side: "right", range: [0, Math.max(4, ...rows.map((r) => r[3]))], tickformat: "d", showgrid: false },
    shapes: [{ type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: "#c63", width: 2 } }],
  }, options);

  // The chunks left out one at a time at a decision: how far its call's log-probability falls, and whether it changes.
  function showXray(decision) {
    const found = decision && decision.xray;
    cause.replaceChildren();
    if (!found) {
      Plotly.react(xray, [], { ...plain, margin: { l: 48, r: 40, t: 8, b: 32 }, xaxis: { range: [0, view.duration_s] },
        annotations: [{ text: "this decision was not X-rayed", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false }] }, options);
      return;
    }
    const changes = (one) => one.chosen !== found.chosen;
    const bars = (name, colour, some) => ({
      type: "bar", name, x: some.map((one) => one.t), y: some.map((one) => one.drop), marker: { color: colour },
      width: some.map(() => Math.max(view.duration_s / 150, 0.2)), hoverinfo: "text",
      text: some.map((one) => `without the picture of ${one.t.toFixed(1)} s: ${one.chosen} (log-probability ${(-one.drop).toFixed(2)})`),
    });
    Plotly.react(xray, [
      bars("left out: another call", "#c33", found.without.filter(changes)),
      bars("left out: the same call", "#48c", found.without.filter((one) => !changes(one))),
    ], {
      ...plain, showlegend: true, barmode: "overlay", legend: { orientation: "h", y: 1.2 }, margin: { l: 48, r: 40, t: 8, b: 32 },
      xaxis: { range: [0, view.duration_s], title: { text: "s" }, ...LINES },
      yaxis: { title: { text: "speaks for it, nats" }, rangemode: "tozero", zeroline: true, ...LINES },
      shapes: [{ type: "line", x0: decision.t, x1: decision.t, y0: 0, y1: 1, yref: "paper", line: { color: "#c63", width: 2 } }],
    }, options);
    if (found.chosen !== found.call) cause.append(`Asked anew, without what had left the memory: ${found.chosen}. `);
    if (found.cause_s === null) { cause.append(`No single picture of ${found.without.length} caused ${found.chosen}.`); return; }
    const without = found.without.find((one) => one.t === found.cause_s);
    cause.append(`${found.chosen} was caused by the picture of `);
    const jump = make("button", "", cause);
    jump.type = "button";
    jump.textContent = `${found.cause_s.toFixed(1)} s`;
    jump.onclick = () => showPicture(found.cause_s);
    cause.append(changes(without) ? `; without it: ${without.chosen}.` : "; it would be chosen without it too, but is less likely.");
  }

  // What else can be found out about a decision: its fork, or how to make one.
  function showInto(decision) {
    into.replaceChildren();
    if (!decision || !decision.number) return;
    if (decision.fork) {
      const link = make("a", "", into);
      link.href = decision.fork.page;
      link.textContent = "fork: every other call flown";
      const ends = Object.entries(decision.fork.outcomes).map(([name, count]) => `${count} ${name}`).join(", ");
      into.append(`: ${ends}; best ${decision.fork.best}, regret ${decision.fork.regret_spl} of SPL, ${decision.fork.regret_m} m. `);
    }
    for (const command of [...(decision.fork ? [] : ["fork"]), ...(decision.xray ? [] : ["xray"])]) {
      if (view.again) make("code", "command", into).textContent = `python -m nav_eval ${command} ${view.again} --at ${decision.number}`;
    }
  }

  function showPicture(t) {
    const frame = view.pictures[Math.max(0, last(view.pictures, t, (row) => row.t))];
    if (frame) picture.src = "data:image/jpeg;base64," + frame.jpeg;
  }

  // What the memory bank held active then: frames with the entities they show; those that came back have a rim.
  const pictureOf = (stamp) => view.pictures[Math.max(0, last(view.pictures, stamp + 1e-6, (row) => row.stamp_s))];
  let remembered = null;
  function showActive(t) {
    const index = last(view.active_frames, t, (row) => row.t);
    if (index === remembered) return;
    remembered = index;
    const now = view.active_frames[index];
    active.replaceChildren();
    make("div", "small", active).textContent = now ? `remembered: ${now.frames.length} active, ${now.archived} archived, ` +
      `${now.retrievals} brought back so far` : "nothing remembered yet";
    for (const frame of now ? now.frames : []) {
      const figure = make("figure", frame.recalled ? "recalled" : "", active);
      const found = pictureOf(frame.stamp_s);
      if (found) Object.assign(make("img", "", figure), { src: "data:image/jpeg;base64," + found.jpeg, alt: `frame ${frame.name}` });
      make("figcaption", "", figure).textContent =
        `${frame.entities.split(",").join(", ")}  ${frame.name}${frame.recalled ? ", brought back" : ""}`;
    }
  }

  let shown = null;
  function show(t) {
    clock.textContent = `${t.toFixed(1)} s of ${view.duration_s.toFixed(1)} s`;
    showPicture(t);
    if (active) showActive(t);
    const index = last(view.decisions, t, (row) => row.t);
    const decision = view.decisions[index];
    call.textContent = decision ? `${decision.step}  ${decision.call}` : "no decision yet";
    result.textContent = decision && (decision.result || decision.message) || "";
    detail.textContent = decision ? `"${decision.instruction}"  ${decision.total_ms.toFixed(0)} ms (` +
      Object.entries(decision.parts_ms).map(([name, ms]) => `${name} ${ms.toFixed(0)}`).join(", ") +
      `), ${decision.cached_tokens} tokens in the cache` : "";
    if (index !== shown) {
      shown = index;
      showInto(decision);
      if (examined) showXray(decision);
    }
    [...list.children].forEach((item, number) => item.classList.toggle("now", number === index));
    const at = view.track[last(view.track, t, (row) => row[0])];
    if (at) Plotly.restyle(map, { x: [[at[1]]], y: [[at[2]]] }, [2]);
    Plotly.relayout(strip, { "shapes[0].x0": t, "shapes[0].x1": t });
  }
  slider.oninput = () => show(Number(slider.value));
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "play"; };
  play.onclick = () => {
    if (timer !== null) return stop();
    if (Number(slider.value) >= view.duration_s) slider.value = 0;
    play.textContent = "pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 0.2;
      show(Number(slider.value));
      if (Number(slider.value) >= view.duration_s - 0.05) stop();
    }, 100);
  };
  show(0);
}

// A figure (JSON in the element `id`-figure) in the element `id`.
function showFigure(id) {
  const figure = JSON.parse(document.getElementById(`${id}-figure`).textContent);
  figure.layout.font = { color: getComputedStyle(document.body).color };
  Plotly.newPlot(id, figure.data, figure.layout, { displaylogo: false, displayModeBar: false, responsive: true });
}

// Paths over their maps in the element `id`, data from `id`-data; the element `id`-map chooses one map, or all in one.
function showPaths(id) {
  const data = JSON.parse(document.getElementById(`${id}-data`).textContent);
  const choice = document.getElementById(`${id}-map`);
  const ink = getComputedStyle(document.body).color;
  const draw = () => {
    const one = data.maps[choice.value];
    const maps = one ? [one] : data.maps;
    const paths = maps.flatMap((map) => map.paths);
    const traces = Object.entries(data.outcomes).map(([outcome, colour]) => {
      const some = paths.filter((path) => path.outcome === outcome);
      return {
        name: outcome, mode: "lines", line: { color: colour, width: one ? 2 : 1 }, hoverinfo: "text",
        x: some.flatMap((path) => [...path.x, null]), y: some.flatMap((path) => [...path.y, null]),
        text: some.flatMap((path) => [...path.x.map(() => path.label), ""]),
      };
    }).filter((trace) => trace.x.length);
    const opacity = one ? 1 : Math.max(0.06, Math.min(1, 3 / maps.length));
    Plotly.react(id, traces, {
      paper_bgcolor: "rgba(0,0,0,0)", ...GROUND, font: { color: ink }, showlegend: true,
      legend: { orientation: "h", y: 1.05 }, margin: { l: 40, r: 8, t: 8, b: 36 },
      shapes: maps.flatMap((map) => map.shapes.map((shape) => ({ ...shape, opacity, layer: "below" }))),
      xaxis: { title: { text: "east, m" }, ...GRID }, yaxis: { title: { text: "north, m" }, scaleanchor: "x", ...GRID },
    }, { displaylogo: false, displayModeBar: false, responsive: true });
  };
  choice.onchange = draw;
  draw();
}

// Each <details data-episode> shows its flight (from the JSON in the element `views`) once it is opened.
function showFlightsWhenOpened() {
  let views = null;
  for (const episode of document.querySelectorAll("details[data-episode]")) {
    episode.addEventListener("toggle", () => {
      const place = episode.querySelector(".viewer");
      if (!episode.open || !place || place.firstChild) return;
      views ??= JSON.parse(document.getElementById("views").textContent);
      showFlight(place, views[episode.dataset.episode]);
    });
  }
}
