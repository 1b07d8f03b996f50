// Figures: drawn when they come into sight, each with a legend of buttons and the same numbers as a table.
"use strict";

const Plots = (() => {
  const drawn = new Set();
  let observer = null;
  let plotly = null;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => color("--is-dark") === "1";
  const lineColor = (look) => (isDark() ? look.dark : look.color);

  // plotly reads a little HTML in texts: all of it is shown as it is.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // A label in lines of about so many characters.
  function wrapped(text, width) {
    const lines = [""];
    for (const word of String(text).split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length >= width) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.map(plain).join("<br>");
  }

  // The script of plotly, 5 MB of it, is read once the first figure is in sight.
  function loadPlotly() {
    plotly =
      plotly ||
      new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = "plotly.min.js";
        script.onload = () => resolve(window.Plotly);
        script.onerror = () => reject(new Error("plotly.min.js is missing beside this page"));
        document.head.append(script);
      });
    return plotly;
  }

  function watch(node, draw) {
    observer =
      observer ||
      new IntersectionObserver(
        (entries) => {
          for (const entry of entries) {
            if (entry.isIntersecting) {
              observer.unobserve(entry.target);
              entry.target.drawWhenSeen();
            }
          }
        },
        { rootMargin: "150px" },
      );
    node.drawWhenSeen = draw;
    observer.observe(node);
  }

  function axis(own = {}) {
    const grid = color("--line");
    return { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, ...own };
  }

  function layoutOf(own, height) {
    const axes = Object.fromEntries(
      Object.entries(own)
        .filter(([key]) => /^[xy]axis/.test(key))
        .map(([key, value]) => [key, axis(value)]),
    );
    return {
      height,
      margin: { l: 48, r: 12, t: 10, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--text"), size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: color("--panel"), bordercolor: color("--line"), font: { color: color("--text") } },
      showlegend: false,
      dragmode: false,
      hovermode: "closest",
      ...own,
      ...axes,
    };
  }

  // options: title, describe (a sentence for who cannot see it), height, traces() and layout(), made anew for each theme;
  // legend: [{ label, look, kind }] whose place is the `entry` of traces; onClick(point);
  // table: { columns, rows(), title }, whose title is the figure's unless it has one.
  function figure(options) {
    const area = element("div", { class: "plot", style: `min-height:${options.height || 340}px` });
    area.setAttribute("role", "img");
    area.setAttribute("aria-label", options.describe || options.title);
    const hidden = new Set();
    const note = element("p", { class: "error", hidden: true });
    const legend =
      options.legend && options.legend.length > 0 ? legendList(options.legend, hidden, () => redraw()) : null;
    const made = element(
      "figure",
      {},
      element("figcaption", {}, options.title),
      area,
      note,
      legend,
      asTable(options.table, options.title),
    );

    async function redraw() {
      if (!area.isConnected) return;
      try {
        const Plotly = await loadPlotly();
        if (!area.isConnected) return;
        const traces = options.traces().filter((trace) => !hidden.has(trace.entry));
        traces.forEach((trace) => delete trace.entry);
        await Plotly.react(area, traces, layoutOf(options.layout(), options.height || 340), {
          displayModeBar: false,
          responsive: true,
          scrollZoom: false,
        });
        if (!drawn.has(area)) {
          drawn.add(area);
          area.redraw = redraw;
          if (options.onClick) area.on("plotly_click", (event) => options.onClick(event.points[0]));
          area.dataset.drawn = "true";
        }
      } catch (error) {
        note.hidden = false;
        note.textContent = error.message;
      }
    }
    watch(area, redraw);
    return made;
  }

  function swatch({ look, kind }) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    for (const [key, value] of Object.entries({ width: 22, height: 12, "aria-hidden": "true", focusable: "false" }))
      svg.setAttribute(key, value);
    const line = document.createElementNS(space, "line");
    const dashes = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2" };
    const own = { x1: 0, x2: 22, y1: 6, y2: 6, stroke: lineColor(look), "stroke-width": kind === "bar" ? 10 : 2.5 };
    for (const [key, value] of Object.entries(own)) line.setAttribute(key, value);
    const dash = dashes[look.dash] ?? look.dash.replaceAll("px", "").replaceAll(",", " ");
    if (dash && kind !== "bar") line.setAttribute("stroke-dasharray", dash);
    svg.append(line);
    return svg;
  }

  function legendList(entries, hidden, redraw) {
    const list = element("ul", { class: "legend", "aria-label": "Shown in the figure" });
    entries.forEach((entry, place) => {
      const button = element("button", { type: "button", "aria-pressed": "true" }, swatch(entry), ` ${entry.label}`);
      button.addEventListener("click", () => {
        if (hidden.has(place)) hidden.delete(place);
        else hidden.add(place);
        button.setAttribute("aria-pressed", String(!hidden.has(place)));
        redraw();
      });
      list.append(element("li", {}, button));
    });
    list.refresh = () =>
      [...list.querySelectorAll("button")].forEach((button, place) =>
        button.firstChild.replaceWith(swatch(entries[place])),
      );
    return list;
  }

  function asTable(table, title) {
    if (!table) return null;
    const details = element("details", { class: "numbers" }, element("summary", {}, "The numbers as a table"));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1)
        details.append(sortableTable(table.columns, table.rows(), { caption: table.title || title, page: 50 }));
    });
    return details;
  }

  // Ticks in plain numbers of a logarithmic axis of up to three decades; plotly's powers of ten of more.
  function logTicks(all) {
    const values = all.filter((value) => value > 0);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (!values.length || high > 1000 * low) return {};
    const steps = high > 10 * low ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const tickvals = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)); power += 1) {
      tickvals.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
    }
    // Without a letter for thousands: an axis may count in thousands itself.
    return { tickvals, ticktext: tickvals.map((value) => (value >= 1e3 ? Numbers.grouped(value) : String(value))) };
  }

  // Lines: [{ label, look, x, y, low, high, text, id, entry }]; axes: { title, scale };
  // tableTitle: of the table of its numbers, the figure's title unless given.
  function lineFigure({ title, x, y, lines, height, describe, onClick, tableTitle }) {
    const scale = {
      log2: { type: "log" },
      log: { type: "log", exponentformat: "power" },
      linear: {},
      category: { type: "category" },
      percent: { tickformat: ".0%" },
    };
    const ticks = () => {
      if (x.scale !== "log2") return {};
      const values = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      const text = values.map((value) => (value >= 1024 && value % 1024 === 0 ? `${value / 1024}k` : String(value)));
      return { tickvals: values, ticktext: text };
    };
    const mode = Math.max(...lines.map((line) => line.x.length)) > 30 ? "lines" : "lines+markers";
    const traces = () =>
      lines.flatMap((line, entry) => {
        const own = lineColor(line.look);
        const main = {
          entry,
          type: "scatter",
          mode,
          x: line.x,
          y: line.y,
          name: plain(line.label),
          line: { color: own, dash: line.look.dash, width: 2 },
          marker: { size: 5 },
          customdata: line.x.map(() => line.id || null),
          hovertemplate: `${plain(line.label)}<br>%{x}: %{y:.4~g}<extra></extra>`,
        };
        if (!line.low) return [main];
        const seen = line.x
          .map((_, place) => place)
          .filter((place) => line.low[place] !== null && line.high[place] !== null);
        const band = (values, fill) => ({
          entry,
          type: "scatter",
          mode: "lines",
          x: seen.map((place) => line.x[place]),
          y: seen.map((place) => values[place]),
          line: { width: 0 },
          hoverinfo: "skip",
          ...fill,
        });
        return [band(line.low, {}), band(line.high, { fill: "tonexty", fillcolor: `${own}26` }), main];
      });
    const steps = y.scale === "log" ? logTicks(lines.flatMap((line) => line.y)) : {};
    const layout = () => ({
      xaxis: { title: { text: plain(x.title) }, ...scale[x.scale], ...ticks() },
      yaxis: { title: { text: plain(y.title), standoff: 12 }, ...scale[y.scale], ...steps },
    });
    const columns = [
      { name: "line", key: "label" },
      { name: x.title, key: "x", number: true },
      { name: y.title, key: "y", number: true },
    ];
    const rows = () =>
      lines.flatMap((line) => line.x.map((value, place) => ({ label: line.label, x: value, y: line.y[place] })));
    const ends = lines.map((line) => `${line.label} ends at ${Numbers.short(line.y[line.y.length - 1])}`).join("; ");
    return figure({
      title,
      height,
      traces,
      layout,
      onClick,
      legend: lines.length > 1 ? lines.map((line) => ({ label: line.label, look: line.look })) : [],
      describe: describe || `${title}: ${y.title} against ${x.title}. ${ends}.`.slice(0, 600),
      table: { columns, rows, title: tableTitle },
    });
  }

  // A chart of the index, whose lines carry their looks.
  function indexChart(chart) {
    return lineFigure({ ...chart, lines: chart.lines.map((line) => ({ ...line, look: line })) });
  }

  // Lets go of the figures of a view that was left.
  function clear() {
    for (const area of [...drawn].filter((one) => !one.isConnected)) {
      window.Plotly.purge(area);
      drawn.delete(area);
    }
  }

  function changeTheme() {
    for (const area of drawn) area.redraw();
    for (const list of document.querySelectorAll(".legend")) list.refresh();
  }

  return {
    figure,
    lineFigure,
    indexChart,
    clear,
    changeTheme,
    plain,
    wrapped,
    color,
    lineColor,
    isDark,
    numDrawn: () => drawn.size,
  };
})();
