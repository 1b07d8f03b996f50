// One run's own page: why it ended, where it came from, its stages, curves and config.
"use strict";

const RunPage = (() => {
  async function drawRun({ parts }) {
    const run = Results.run(parts[0]);
    if (!run)
      return [
        element("h1", {}, "No such run"),
        element(
          "p",
          {},
          "This address names a run that the page does not have: it was built of other results. ",
          link("All runs", "#runs"),
        ),
      ];
    const page = await Results.details(run.id);
    const own = Results.runs().filter(
      (one) =>
        one.model === run.model &&
        one.task === run.task &&
        one.scale === run.scale &&
        one.source === run.source &&
        one.id !== run.id,
    );
    return [
      element("h1", {}, Results.runName(run)),
      element(
        "p",
        { class: "answer" },
        `What was this run, and how did it go? ${Results.runPlace(run)}: `,
        element("span", { class: `status ${run.status}` }, run.status),
        run.accuracy === null ? "." : `, test accuracy ${Numbers.percent(run.accuracy)} over its lengths.`,
      ),
      failure(page),
      facts([
        ...page.facts.map(([name, value]) => [
          name,
          typeof value === "number" && name !== "seed" ? Numbers.grouped(value) : value,
        ]),
        ["directory", page.folder],
      ]),
      page.command ? element("p", {}, "Made by ", element("code", { class: "command" }, page.command)) : null,
      stageTable(page),
      ...curveFigures([[run, page]]),
      element(
        "section",
        {},
        element("h2", {}, "Compare it"),
        choice(
          "with",
          [["", "choose a run"], ...own.map((one) => [one.id, Results.runName(one)])],
          "",
          (id) => id && (location.hash = Address.write("compare", [run.id, id])),
        ),
      ),
      element(
        "section",
        {},
        element("h2", {}, "Config"),
        configNote(page),
        sortableTable(
          [
            { name: "key", key: "key" },
            { name: "value", key: "value" },
          ],
          [...page.config].map(([key, value]) => ({ key, value })),
          { caption: "Config", quiet: true, page: 40 },
        ),
      ),
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
      page.traceback
        ? element(
            "details",
            {},
            element("summary", {}, "Traceback"),
            element("pre", { tabindex: "0" }, page.traceback),
          )
        : null,
    );
  }

  function configNote(page) {
    return page.whole_config
      ? null
      : element(
          "p",
          { class: "about" },
          "What runs.csv keeps of it: the hash above is that of the whole config, " +
            "which the command makes at this commit.",
        );
  }

  function stageTable(page) {
    if (!page.stages.length) return null;
    const names = [
      "stage",
      "length",
      "pairs",
      "steps",
      "ended by",
      "left the plateau at step",
      "validation accuracy",
      "test accuracy",
      "by age, oldest last",
      "test loss",
    ];
    const shares = (value) =>
      typeof value === "number"
        ? Numbers.percent(value)
        : value === null
          ? ""
          : value
              .split(";")
              .map((one) => (one ? Numbers.percent(Number(one)) : "-"))
              .join(", ");
    const list = names.map((name, place) => ({
      name,
      key: String(place),
      number: ![4, 8].includes(place),
      ...([6, 7, 8].includes(place) ? { show: shares } : {}),
    }));
    return element(
      "section",
      {},
      element("h2", {}, "Stages"),
      sortableTable(
        list,
        page.stages.map((row) => ({ ...row })),
        { caption: "Stages", quiet: true },
      ),
    );
  }

  // Curves of one run, or of two in one figure each.
  function curveFigures(pairs) {
    const shown = pairs.filter(([, page]) => page.curve);
    if (!shown.length)
      return [
        element(
          "p",
          {},
          pairs.length > 1
            ? "Neither run has curves here."
            : "Its curves are not here: curves.csv keeps those of finished runs at each model's chosen " +
                "learning rate, a run's directory keeps them all.",
        ),
      ];
    const figures = ["loss", "window_mean", "metaplasticity_mean"].map((name) => {
      const [title, unit, scale] = Experiments.QUANTITIES[name];
      const lines = shown
        .filter(([, page]) => page.curve[name] && page.curve[name][0].length)
        .map(([run, page], place) => ({
          label: Results.runName(run),
          look: Experiments.palette(place),
          x: page.curve[name][0],
          y: page.curve[name][1],
        }));
      return lines.length
        ? Plots.lineFigure({
            title,
            x: { title: "training step", scale: "linear" },
            y: { title: unit, scale },
            lines,
            height: 280,
          })
        : null;
    });
    const heads = shown.length === 1 ? headFigures(shown[0][1].curve.heads) : [];
    return [element("h2", {}, "Curves"), ...figures, ...heads].filter(Boolean);
  }

  function headFigures(heads) {
    return [
      ["window/", "window_mean"],
      ["metaplasticity/", "metaplasticity_mean"],
    ].map(([prefix, quantity]) => {
      const lines = heads.names
        .map((name, place) => [name.match(/layer(\d+)\/head(\d+)/), name, heads.values[place]])
        .filter(([found, name]) => found && name.startsWith(prefix))
        .map(([[, layer, index], , values]) => ({
          label: `layer ${layer}, head ${index}`,
          look: {
            ...Experiments.palette(Number(index)),
            dash: ["solid", "dash", "dot", "dashdot"][Number(layer) % 4],
          },
          x: heads.steps,
          y: values,
        }));
      const [title, unit, scale] = Experiments.QUANTITIES[quantity];
      return lines.length
        ? Plots.lineFigure({
            title: `${title.split(":")[0]} of each head`,
            x: { title: "training step", scale: "linear" },
            y: { title: unit, scale },
            lines,
          })
        : null;
    });
  }

  Dashboard.views.push({ name: "run", draw: drawRun });
  return { curveFigures };
})();
