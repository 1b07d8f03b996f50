// The table of runs, a run's own page, two runs side by side, and the sweep that is at work.
"use strict";

const Runs = (() => {
  const FILTERS = ["source", "task", "scale", "model", "status"];
  const picked = [];

  // ---- the table
  function drawTable({ options }) {
    const state = Object.fromEntries(["search", "sort", ...FILTERS].map((name) => [name, options.get(name) || ""]));
    const runs = Results.runs();
    const place = element("div");
    const count = element("p", { role: "status" });
    const compare = element("p", { class: "about" });

    function matches(run) {
      const text = [run.label, run.model, run.task, run.scale, run.source, run.status, run.error, run.device, run.revision, `lr ${run.lr}`, `seed ${run.seed}`].join(" ").toLowerCase();
      const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (name) => !state[name] || String(run[name]) === state[name] || (name === "status" && state[name] === "not finished" && run.status !== "finished");
      return FILTERS.every(fits) && words.every((word) => text.includes(word));
    }

    function fill() {
      const shown = runs.filter(matches);
      count.textContent = `${shown.length} of ${runs.length} runs`;
      place.replaceChildren(sortableTable(columns(showPicked), shown, { caption: "Runs", quiet: true, sort: state.sort, empty: "No run fits: loosen the search or the filters.", onSort: (sort) => { state.sort = sort; remember(); } }));
    }

    function remember() {
      Address.replace("runs", [], state);
    }

    function showPicked() {
      const names = picked.map((id) => Results.runName(Results.run(id)));
      compare.replaceChildren(...(picked.length === 2 ? [link(`Compare ${names[0]} with ${names[1]}`, Address.write("compare", picked))] : [picked.length ? `Picked: ${names[0]}. Pick one more to compare.` : "Pick two runs to compare them."]));
    }

    const search = element("input", { type: "search", id: "search", value: state.search, oninput: () => { state.search = search.value; fill(); remember(); } });
    const filters = FILTERS.map((name) => {
      const values = [...new Set(runs.map((run) => run[name]).filter((value) => value !== null && value !== ""))].sort();
      const extra = name === "status" ? [["not finished", "not finished"]] : [];
      return choice(name, [["", "any"], ...values.map((value) => [value, value]), ...extra], state[name], (value) => { state[name] = value; fill(); remember(); });
    });
    picked.splice(0, picked.length, ...picked.filter((id) => Results.run(id)));
    fill();
    showPicked();
    return [
      element("h1", {}, "All runs"),
      element("p", { class: "answer" }, "Which runs are there, and how did each end? Sort by a column's name, search for words (press /), and choose a run for its config, commit and curves."),
      problemList("runs"),
      element("div", { class: "choices" }, element("p", { class: "choice" }, element("label", { for: "search" }, "Search"), search), filters),
      compare,
      count,
      place,
    ];
  }

  function columns(onPick) {
    const pick = (id, run) => {
      const box = element("input", { type: "checkbox", "aria-label": `Compare ${Results.runName(run)}`, checked: picked.includes(id) });
      box.checked = picked.includes(id);
      box.addEventListener("change", () => {
        if (!box.checked) picked.splice(picked.indexOf(id), 1);
        else {
          // The oldest of three gives way.
          if (picked.length === 2) picked.shift();
          picked.push(id);
          document.querySelectorAll("main tbody input[type=checkbox]").forEach((other) => (other.checked = other === box || (other.checked && picked.includes(other.dataset.run))));
        }
        onPick();
      });
      box.dataset.run = id;
      return box;
    };
    return [
      { name: "run", key: "label", show: (label, run) => link(label, Address.write("run", [run.id])) },
      { name: "compare", key: "id", show: pick },
      { name: "lr", key: "lr", number: true },
      { name: "seed", key: "seed", number: true },
      { name: "status", key: "status", show: (status, run) => element("span", { class: `status ${["finished", "failed", "diverged", "running"].includes(status) ? status : ""}`, title: run.error || null }, status) },
      { name: "test accuracy", key: "accuracy", number: true, show: Numbers.percent },
      { name: "validation accuracy", key: "validation", number: true, wide: true, show: Numbers.percent },
      { name: "loss", key: "loss", number: true, wide: true },
      { name: "steps", key: "steps", number: "grouped" },
      { name: "seconds", key: "seconds", number: "grouped", wide: true },
      { name: "task", key: "task" },
      { name: "scale", key: "scale" },
      { name: "source", key: "source", wide: true },
      { name: "started", key: "started", wide: true, nowrap: true, show: (time) => (time || "").slice(0, 16).replace("T", " ") },
      { name: "commit", key: "revision", wide: true, show: (revision) => (revision || "").slice(0, 10) },
    ];
  }

  // ---- one run
  async function drawRun({ parts }) {
    const run = Results.run(parts[0]);
    if (!run) return [element("h1", {}, "No such run"), element("p", {}, "This address names a run that the page does not have: it was built of other results. ", link("All runs", "#runs"))];
    const page = await Results.details(run.id);
    const own = Results.runs().filter((one) => one.model === run.model && one.task === run.task && one.scale === run.scale && one.source === run.source && one.id !== run.id);
    return [
      element("h1", {}, Results.runName(run)),
      element("p", { class: "answer" }, `What was this run, and how did it go? ${Results.runPlace(run)}: `, element("span", { class: `status ${run.status}` }, run.status), run.accuracy === null ? "." : `, test accuracy ${Numbers.percent(run.accuracy)} over its lengths.`),
      failure(page),
      facts([...page.facts.map(([name, value]) => [name, typeof value === "number" && name !== "seed" ? Numbers.grouped(value) : value]), ["directory", page.folder]]),
      page.command ? element("p", {}, "Made by ", element("code", { class: "command" }, page.command)) : null,
      stageTable(page),
      ...curveFigures([[run, page]]),
      element("section", {}, element("h2", {}, "Compare it"), choice("with", [["", "choose a run"], ...own.map((one) => [one.id, Results.runName(one)])], "", (id) => id && (location.hash = Address.write("compare", [run.id, id])))),
      element("section", {}, element("h2", {}, "Config"), configNote(page), sortableTable([{ name: "key", key: "key" }, { name: "value", key: "value" }], [...page.config].map(([key, value]) => ({ key, value })), { caption: "Config", quiet: true, page: 40 })),
      page.versions ? element("p", { class: "about" }, `Versions: ${page.versions.replaceAll(";", ", ")}`) : null,
    ];
  }

  function failure(page) {
    if (!page.error && !page.notes.length) return null;
    return element(
      "div",
      { class: "problems" },
      page.error ? element("p", {}, element("strong", {}, "Why it ended: "), page.error) : null,
      page.notes.map((note) => element("p", {}, note)),
      page.traceback ? element("details", {}, element("summary", {}, "Traceback"), element("pre", { tabindex: "0" }, page.traceback)) : null,
    );
  }

  function configNote(page) {
    return page.whole_config ? null : element("p", { class: "about" }, "What runs.csv keeps of it: the hash above is that of the whole config, which the command makes at this commit.");
  }

  function stageTable(page) {
    if (!page.stages.length) return null;
    const names = ["stage", "length", "pairs", "steps", "ended by", "left the plateau at step", "validation accuracy", "test accuracy", "by age, oldest last", "test loss"];
    const shares = (value) => (typeof value === "number" ? Numbers.percent(value) : value === null ? "" : value.split(";").map((one) => (one ? Numbers.percent(Number(one)) : "-")).join(", "));
    const list = names.map((name, place) => ({ name, key: String(place), number: ![4, 8].includes(place), ...([6, 7, 8].includes(place) ? { show: shares } : {}) }));
    return element("section", {}, element("h2", {}, "Stages"), sortableTable(list, page.stages.map((row) => ({ ...row })), { caption: "Stages", quiet: true }));
  }

  // Curves of one run, or of two in one figure each.
  function curveFigures(pairs) {
    const shown = pairs.filter(([, page]) => page.curve);
    if (!shown.length) return [element("p", {}, pairs.length > 1 ? "Neither run has curves here." : "Its curves are not here: curves.csv keeps those of finished runs at each model's chosen learning rate, a run's directory keeps them all.")];
    const figures = ["loss", "window_mean", "metaplasticity_mean"].map((name) => {
      const [title, unit, scale] = Learning.QUANTITIES[name];
      const lines = shown.filter(([, page]) => page.curve[name] && page.curve[name][0].length).map(([run, page], place) => ({ label: Results.runName(run), look: Learning.palette(place), x: page.curve[name][0], y: page.curve[name][1] }));
      return lines.length ? Plots.lineFigure({ title, x: { title: "training step", scale: "linear" }, y: { title: unit, scale }, lines, height: 280 }) : null;
    });
    const heads = shown.length === 1 ? headFigures(shown[0][1].curve.heads) : [];
    return [element("h2", {}, "Curves"), ...figures, ...heads].filter(Boolean);
  }

  function headFigures(heads) {
    return [["window/", "window_mean"], ["metaplasticity/", "metaplasticity_mean"]].map(([prefix, quantity]) => {
      const lines = heads.names
        .map((name, place) => [name.match(/layer(\d+)\/head(\d+)/), name, heads.values[place]])
        .filter(([found, name]) => found && name.startsWith(prefix))
        .map(([[, layer, index], , values]) => ({ label: `layer ${layer}, head ${index}`, look: { ...Learning.palette(Number(index)), dash: ["solid", "dash", "dot", "dashdot"][Number(layer) % 4] }, x: heads.steps, y: values }));
      const [title, unit, scale] = Learning.QUANTITIES[quantity];
      return lines.length ? Plots.lineFigure({ title: `${title.split(":")[0]} of each head`, x: { title: "training step", scale: "linear" }, y: { title: unit, scale }, lines }) : null;
    });
  }

  // ---- two runs
  async function drawCompare({ parts }) {
    const [one, other] = parts.map((id) => Results.run(id));
    const runs = Results.runs();
    const choices = [["", "choose a run"], ...runs.map((run) => [run.id, `${Results.runName(run)} (${Results.runPlace(run)})`])];
    const go = (place) => (id) => {
      const next = [parts[0] || "", parts[1] || ""];
      next[place] = id;
      location.hash = Address.write("compare", next);
    };
    const head = [
      element("h1", {}, "Two runs side by side"),
      element("p", { class: "answer" }, "What did two runs do differently, and what came of it? Below are the keys in which their configs differ, their results and their curves."),
      element("div", { class: "choices" }, choice("First run", choices, one ? one.id : "", go(0)), choice("Second run", choices, other ? other.id : "", go(1))),
    ];
    if (!one || !other) return [...head, element("p", {}, "Choose two runs.")];
    const pages = await Promise.all([Results.details(one.id), Results.details(other.id)]);
    const keys = [...new Set([...pages[0].config.keys(), ...pages[1].config.keys()])].sort();
    const value = (page, key) => (page.config.has(key) ? page.config.get(key) : "(no such key)");
    const rows = keys.map((key) => ({ key, one: value(pages[0], key), other: value(pages[1], key) }));
    const differing = rows.filter((row) => row.one !== row.other);
    const names = [one, other].map((run, place) => `${place ? "second" : "first"}: ${Results.runName(run)}`);
    const list = [{ name: "key", key: "key" }, { name: names[0], key: "one" }, { name: names[1], key: "other" }];
    const outcomes = [["status", "status"], ["test accuracy", "accuracy", Numbers.percent], ["validation accuracy", "validation", Numbers.percent], ["loss", "loss", Numbers.short], ["steps", "steps", Numbers.grouped], ["seconds", "seconds", Numbers.grouped], ["parameters", "parameters", Numbers.grouped], ["device", "device"], ["commit", "revision"], ["why it ended", "error"]];
    const results = outcomes.map(([name, key, show = (own) => own ?? ""]) => ({ key: name, one: show(one[key]), other: show(other[key]) }));
    return [
      ...head,
      element("p", {}, link("first run", Address.write("run", [one.id])), " · ", link("second run", Address.write("run", [other.id])), " · ", link("exchange them", Address.write("compare", [other.id, one.id]))),
      pages[0].whole_config === pages[1].whole_config ? null : element("p", { class: "about" }, "Of one of them only runs.csv is left, so keys that it does not keep count as differences."),
      element("h2", {}, `${differing.length} of ${rows.length} keys differ`),
      sortableTable(list, differing, { caption: "Keys that differ", quiet: true, empty: "Their configs are equal.", page: 60 }),
      element("h2", {}, "Results"),
      sortableTable(list.map((column, place) => (place ? column : { ...column, name: "result" })), results.filter((row) => row.one !== "" || row.other !== ""), { caption: "Results", quiet: true }),
      ...curveFigures([[one, pages[0]], [other, pages[1]]]),
    ];
  }

  Dashboard.views.push({ name: "runs", title: "Runs", draw: drawTable });
  Dashboard.views.push({ name: "run", draw: drawRun });
  Dashboard.views.push({ name: "compare", title: "Compare", draw: drawCompare });
  return { curveFigures };
})();
