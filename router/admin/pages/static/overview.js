// The overview keeps itself current: htmx fetches the body and morphs it in, a stream brings requests as they happen,
// and the charts read their numbers from the data tables. Words come from the page; this file has none.
"use strict";

(() => {
  const main = document.getElementById("overview");
  if (!main) return;
  const REFRESH = Number(main.dataset.refresh) * 1000;
  const STALE_AFTER = Math.max(3 * REFRESH, 12000);
  const ROWS = 50;

  // --- morphing: what the reader opened, and what a script draws, stays ---------------------------------------------

  const OPENED = new Set(["aria-expanded", "data-open"]);
  let streaming = false; // the stream has said what the live tail shows, and goes on from there
  let paused = false;

  function keeps(node) {
    if (!(node instanceof Element)) return false;
    // The live tail is the stream's once that has said what stands there, and nobody's while it is paused.
    return node.hasAttribute("data-keep") || (node.id === "tail" && (streaming || paused));
  }

  htmx.defineExtension("morph", {
    isInlineSwap: (style) => style === "morph",
    handleSwap(style, target, fragment) {
      if (style !== "morph") return false;
      return Idiomorph.morph(target, fragment.childNodes, {
        morphStyle: "innerHTML",
        callbacks: {
          beforeNodeMorphed: (old) => !keeps(old),
          beforeAttributeUpdated: (name) => !OPENED.has(name),
        },
      });
    },
  });

  // --- live or stale ------------------------------------------------------------------------------------------------

  const live = document.getElementById("live");
  let lastGood = Date.now();
  let failing = false; // the last refresh brought nothing
  let serverStale = false;

  function body() {
    return main.querySelector("[data-as-of]");
  }

  function showState() {
    const late = Date.now() - lastGood > STALE_AFTER;
    const state = late || failing || serverStale ? "stale" : "live";
    if (state === "stale") document.documentElement.dataset.stale = "";
    else delete document.documentElement.dataset.stale;
    const told = live.querySelector("[data-words]");
    const words = state === "live" ? live.dataset.live : live.dataset.stale.replace("{time}", body().dataset.asOf);
    live.dataset.state = state;
    if (told.textContent !== words) told.textContent = words;
  }

  document.body.addEventListener("htmx:afterRequest", (event) => {
    failing = !event.detail.successful;
    if (!failing) lastGood = Date.now();
    showState();
  });
  const build = body().dataset.build;

  document.body.addEventListener("htmx:afterSettle", () => {
    // The router was upgraded: a page on a wall would else run the old scripts for ever.
    if (body().dataset.build !== build) location.reload();
    serverStale = body().dataset.stale === "yes";
    showState();
    drawAll();
  });
  setInterval(showState, 1000);
  setInterval(() => {
    if (failing) refresh(); // more often than usual, until the router is back
  }, 2000);

  function refresh() {
    htmx.trigger(main, "refresh");
  }

  // --- the live tail ------------------------------------------------------------------------------------------------

  let whole = null; // all rows as the stream has told them anew, not shown yet
  const waiting = new Map(); // id: row, what came after them
  const unseen = new Set(); // ids of the calls that came during a pause, also of those that there is no room to show
  const MOST_UNSEEN = 10000;
  let unsaid = 0;
  let backoff = 2000;

  function rows() {
    return document.getElementById("tail-rows");
  }

  function put(row) {
    const list = rows();
    const known = document.getElementById(row.id);
    if (known && list.contains(known)) {
      known.replaceWith(row);
      return;
    }
    list.querySelector(".empty")?.remove();
    const at = Number(row.dataset.at);
    const next = [...list.children].find((other) => !(Number(other.dataset.at) > at)) ?? null;
    row.classList.add("fresh");
    list.insertBefore(row, next);
    unsaid += 1;
  }

  function shows(id) {
    return Boolean(rows()?.contains(document.getElementById(id)));
  }

  function putAll(all) {
    for (const row of all.querySelectorAll("tr[id]")) {
      if (shows(row.id)) continue;
      row.classList.add("fresh");
      unsaid += 1;
    }
    Idiomorph.morph(rows(), all.childNodes, { morphStyle: "innerHTML" });
  }

  function flush() {
    if (paused || !rows()) return;
    if (whole) putAll(whole);
    whole = null;
    if (!waiting.size) return;
    for (const row of waiting.values()) put(row);
    waiting.clear();
    const list = rows();
    while (list.children.length > ROWS) list.lastElementChild.remove();
  }

  function parsed(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    return holder.content;
  }

  function miss(row) {
    if (paused && unseen.size < MOST_UNSEEN && !shows(row.id)) unseen.add(row.id);
  }

  function takeAll(html) {
    whole = parsed(html);
    waiting.clear();
    streaming = true;
    whole.querySelectorAll("tr[id]").forEach(miss);
    if (paused) showPause();
  }

  function take(html) {
    const row = parsed(html).querySelector("tr");
    if (!row) return;
    const known = whole?.getElementById(row.id);
    if (known) {
      known.replaceWith(row);
    } else {
      waiting.delete(row.id);
      waiting.set(row.id, row);
      // The end of a call that stands there is never too much.
      if (waiting.size > ROWS) waiting.delete([...waiting.keys()].find((id) => !shows(id)));
    }
    miss(row);
    if (paused) showPause();
  }

  function showPause() {
    const button = document.getElementById("pause");
    if (!button) return;
    button.setAttribute("aria-pressed", String(paused));
    const note = document.getElementById("pause-note");
    note.textContent = paused ? button.dataset.paused.replace("{n}", String(unseen.size)) : "";
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#pause")) return;
    paused = !paused;
    unseen.clear();
    flush();
    showPause();
  });
  setInterval(flush, 250);
  setInterval(() => {
    // Announced now and then, not row by row: a busy router would never let a screen reader finish.
    const told = document.getElementById("tail-news");
    if (unsaid && told) told.textContent = told.dataset.words.replace("{n}", String(unsaid));
    unsaid = 0;
  }, 10000);

  const SILENT_AFTER = 45000; // the router says every 15 s that it is there
  let stream;
  let again; // the timer of the next attempt
  let heard = 0;

  function hush() {
    clearTimeout(again);
    stream?.close();
    streaming = false;
  }

  function listen() {
    hush();
    // A browser has few connections to one host: pages that nobody sees leave them to those that somebody does.
    if (document.hidden) return;
    heard = Date.now();
    stream = new EventSource(main.dataset.live);
    stream.addEventListener("open", () => {
      heard = Date.now();
      if (failing) refresh();
      backoff = 2000;
    });
    stream.addEventListener("rows", (event) => {
      heard = Date.now();
      takeAll(event.data);
    });
    stream.addEventListener("row", (event) => {
      heard = Date.now();
      take(event.data);
    });
    stream.addEventListener("state", (event) => {
      heard = Date.now();
      serverStale = JSON.parse(event.data).stale === true;
      showState();
    });
    stream.addEventListener("end", (event) => {
      if (event.data !== "signed-out") return; // the router ends, or its store is away: it connects again
      stream.close();
      location.assign(main.dataset.home);
    });
    stream.addEventListener("error", () => {
      if (streaming) refresh(); // is the router gone, or only the stream?
      streaming = false;
      if (stream.readyState !== EventSource.CLOSED) return; // it reconnects by itself
      again = setTimeout(listen, backoff);
      backoff = Math.min(backoff * 2, 30000);
    });
  }

  setInterval(() => {
    const open = stream && stream.readyState !== EventSource.CLOSED;
    if (open && Date.now() - heard > SILENT_AFTER) listen(); // something between here and the router swallows it
  }, 1000);
  document.addEventListener("visibilitychange", () => {
    listen();
    if (!document.hidden) refresh();
  });

  let asked; // the refresh that was sent last
  document.body.addEventListener("htmx:beforeSend", (event) => {
    asked = event.detail.xhr;
  });

  function leave() {
    hush();
    if (!asked) return;
    asked.onabort = null; // htmx would call it a failure, and the page stale
    asked.abort();
  }

  addEventListener("pagehide", leave);
  addEventListener("submit", (event) => {
    // Signing out: what is asked from here on would only be refused.
    if (event.defaultPrevented) return;
    leave();
    document.body.addEventListener("htmx:beforeRequest", (asking) => asking.preventDefault());
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload(); // back from the browser's memory, where time stood still
  });

  // --- charts -------------------------------------------------------------------------------------------------------

  const charts = new Map(); // figure id: {plot, labels}

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function short(number, prefix) {
    for (const [size, mark] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (number >= size) return prefix + Number((number / size).toPrecision(3)) + mark;
    }
    return prefix + Number(number.toPrecision(3));
  }

  function read(figure) {
    const lines = [...figure.querySelectorAll("tbody tr")];
    const colours = [...figure.querySelectorAll("thead th[data-colour]")].map((head) => head.dataset.colour);
    const values = colours.map((_, place) => lines.map((line) => Number(line.cells[place + 1].dataset.v)));
    if (figure.dataset.stacked === "yes") {
      // Drawn from the outside in: the sum in the second colour, and before it what the first one is of it.
      values.reverse();
      colours.reverse();
      values[0] = values[0].map((value, hour) => value + values[1][hour]);
    }
    const labels = lines.map((line) => line.cells[0].textContent.trim());
    return { labels, colours, data: [labels.map((_, hour) => hour), ...values] };
  }

  function tell(figure, index) {
    const readout = figure.querySelector(".readout");
    const line = index === null || index === undefined ? null : figure.querySelectorAll("tbody tr")[index];
    if (!line) {
      readout.textContent = "";
      return;
    }
    const heads = [...figure.querySelectorAll("thead th")];
    readout.textContent = [...line.cells]
      .map((cell, place) => (place ? `${cell.textContent.trim()} ${heads[place].textContent.trim()}` : cell.textContent.trim()))
      .join("  ·  ");
  }

  function make(figure) {
    const place = figure.querySelector(".plot");
    const found = read(figure);
    const chart = { labels: found.labels };
    const prefix = figure.dataset.prefix ?? "";
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const font = `${Math.round(0.75 * rem)}px ${getComputedStyle(document.body).fontFamily}`;
    const grid = { stroke: () => colour("--line"), width: 1 };
    const axis = { stroke: () => colour("--dim"), font, ticks: { show: false } };
    chart.plot = new uPlot(
      {
        width: place.clientWidth,
        height: place.clientHeight,
        padding: [null, 0, null, null],
        legend: { show: false },
        cursor: {
          x: true, y: false, points: { show: false }, drag: { x: false, y: false }, sync: { key: "day" },
        },
        scales: {
          x: { time: false, range: () => [-0.5, chart.labels.length - 0.5] },
          y: { range: (_, __, most) => [0, most > 0 ? most * 1.12 : 1] },
        },
        axes: [
          {
            ...axis, grid: { show: false }, size: 1.6 * rem, gap: 4,
            splits: () => {
              const step = place.clientWidth < 26 * rem ? 6 : 3;
              // The last one's label would be cut off at the edge.
              const shown = (label, index) => parseInt(label, 10) % step === 0 && index < chart.labels.length - 1;
              return chart.labels.flatMap((label, index) => (shown(label, index) ? [index] : []));
            },
            values: (_, splits) => splits.map((index) => chart.labels[index] ?? ""),
          },
          { ...axis, grid, size: 3.1 * rem, gap: 6, space: 2.2 * rem, values: (_, splits) => splits.map((v) => short(v, prefix)) },
        ],
        series: [
          {},
          ...found.colours.map((name) => ({
            fill: () => colour(name), stroke: () => colour(name), width: 0, points: { show: false },
            paths: uPlot.paths.bars({ size: [0.72, 64], radius: 0.12 }),
          })),
        ],
        hooks: { setCursor: [(plot) => tell(figure, plot.cursor.idx)] },
      },
      found.data,
      place,
    );
    new ResizeObserver(() => {
      if (place.clientWidth) chart.plot.setSize({ width: place.clientWidth, height: place.clientHeight });
    }).observe(place);
    return chart;
  }

  function drawAll() {
    for (const figure of main.querySelectorAll("figure[data-chart]")) {
      const chart = charts.get(figure.id);
      if (!chart || !figure.contains(chart.plot.root)) {
        charts.set(figure.id, make(figure));
        continue;
      }
      const found = read(figure);
      chart.labels = found.labels;
      chart.plot.setData(found.data);
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-table]");
    if (!button) return;
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    button.closest("figure").toggleAttribute("data-open", open);
  });

  function redraw() {
    for (const { plot } of charts.values()) plot.redraw(true, true);
  }
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);

  serverStale = body().dataset.stale === "yes";
  showState();
  drawAll();
  listen();
})();
