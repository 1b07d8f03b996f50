// The overview: each experiment's figure, a run behind every dot, and the pictures that no runs stand behind.
"use strict";

(() => {
  function draw() {
    const runs = Results.runs();
    const failed = runs.filter((run) => run.status === "failed" || run.status === "diverged").length;
    const experiments = Results.experiments();
    const { progress } = Dashboard.get("index");
    const counts = facts([
      ["runs", link(Numbers.grouped(runs.length), "#runs")],
      [
        "failed or diverged",
        failed ? link(String(failed), Address.write("runs", [], { status: "failed or diverged" })) : "none",
      ],
      [
        "left in the sweep",
        progress.total ? link(`${progress.total - progress.ended} of ${progress.total}`, "#running") : null,
      ],
      ["experiments", experiments.length],
      [
        "offline W&B runs",
        Dashboard.get("index").wandb.length ? link(String(Dashboard.get("index").wandb.length), "#wandb") : "none",
      ],
      ["built", Dashboard.get("index").built.replace("T", " ").replace("+00:00", " UTC")],
    ]);
    const hasNone = experiments.length === 0;
    return [
      element("h1", {}, "What was trained, and what came out"),
      hasNone ? problemList(null, true) : null,
      element(
        "p",
        { class: "answer" },
        "Which model recalls how much? Each bar is a model's mean, each dot one run: choose " +
          "a dot to see its config, commit and curves.",
      ),
      counts,
      hasNone ? null : problemList(),
      ...experiments.map(card),
      pictures(),
    ];
  }

  function card(experiment) {
    const links = [link("learning rates", Address.write("rates", [experiment.id]))];
    if (experiment.dynamics !== null)
      links.push(link("learning dynamics (Figure 3)", Address.write("dynamics", [experiment.id])));
    links.push(
      link(
        `all ${experiment.num_runs} runs`,
        Address.write("runs", [], { source: experiment.source, task: experiment.task, scale: experiment.scale }),
      ),
    );
    return element(
      "section",
      {},
      element("h2", {}, experiment.title),
      element(
        "p",
        { class: "about" },
        `${experiment.subtitle} · results of ${experiment.source}. `,
        links.flatMap((one, place) => (place ? [" · ", one] : [one])),
      ),
      experiment.notes.length
        ? element(
            "details",
            {},
            element("summary", {}, `${experiment.notes.length} notes`),
            element(
              "ul",
              {},
              experiment.notes.map((note) => element("li", {}, note)),
            ),
          )
        : null,
      experiment.bars.length
        ? barFigure(experiment)
        : element(
            "p",
            {},
            "No run of it has a test accuracy: ",
            link("see its runs", Address.write("runs", [], { task: experiment.task })),
          ),
    );
  }

  function stageName([length, pairs]) {
    return `${length.toLocaleString("en")}<br>${pairs} pairs`;
  }

  // Bars of the means, dots of the runs.
  function barFigure(experiment) {
    const { models, stages, bars, dots } = experiment;
    const width = Math.min(0.2, 0.84 / models.length);
    const shift = (model) => (model - (models.length - 1) / 2) * width;
    const traces = () => {
      const made = models.map((model, entry) => {
        const own = bars.filter((bar) => bar[0] === entry);
        return {
          entry,
          type: "bar",
          x: own.map((bar) => bar[1] + shift(entry)),
          y: own.map((bar) => bar[2]),
          width: 0.9 * width,
          error_y: {
            type: "data",
            array: own.map((bar) => bar[3] || 0),
            color: Plots.color("--text"),
            thickness: 1,
            width: 2,
          },
          marker: {
            color: Plots.lineColor(model),
            pattern: { shape: model.pattern, fgcolor: Plots.color("--panel"), fillmode: "overlay", size: 5 },
          },
          customdata: own.map((bar) => `${bar[5]} seeds, ${bar[6]} failed`),
          hovertemplate: `${Plots.plain(model.label)}, lr ${Numbers.short(model.lr)}<br>mean %{y:.1%}, %{customdata}<extra></extra>`,
        };
      });
      models.forEach((model, entry) => {
        const own = dots.filter((dot) => dot[0] === entry);
        const seeds = [...new Set(own.map((dot) => dot[3]))].sort((a, b) => a - b);
        const spread = (seed) =>
          seeds.length > 1 ? (seeds.indexOf(seed) / (seeds.length - 1) - 0.5) * 0.6 * width : 0;
        made.push({
          entry,
          type: "scatter",
          mode: "markers",
          x: own.map((dot) => dot[1] + shift(entry) + spread(dot[3])),
          y: own.map((dot) => dot[2]),
          customdata: own.map((dot) => dot[4]),
          text: own.map((dot) => `seed ${dot[3]}`),
          marker: { color: Plots.color("--text"), size: 5, line: { color: Plots.color("--panel"), width: 0.7 } },
          hovertemplate: `${Plots.plain(model.label)}, %{text}: %{y:.1%}<br>choose it to see the run<extra></extra>`,
        });
      });
      return made;
    };
    const layout = () => ({
      xaxis: {
        title: { text: "sequence length (tokens)" },
        tickvals: stages.map((_, place) => place),
        ticktext: stages.map(stageName),
        range: [-0.5, stages.length - 0.5],
        showgrid: false,
      },
      yaxis: { title: { text: "test accuracy" }, tickformat: ".0%", range: [0, 1.04] },
      barmode: "overlay",
    });
    const columns = [
      { name: "model", key: "label" },
      { name: "length", key: "length", number: "grouped" },
      { name: "seed", key: "seed", number: true },
      { name: "test accuracy", key: "accuracy", number: true, show: Numbers.percent },
      { name: "run", key: "run", show: (id) => runLink(id, "open") },
    ];
    const rows = () =>
      dots.map((dot) => ({
        label: models[dot[0]].label,
        length: stages[dot[1]][0],
        seed: dot[3],
        accuracy: dot[2],
        run: dot[4],
      }));
    const best = stages.map((stage, place) => {
      const own = bars.filter((bar) => bar[1] === place && bar[2] !== null).sort((a, b) => b[2] - a[2])[0];
      return own ? `${models[own[0]].label} is best at length ${stage[0]} with ${Numbers.percent(own[2])}` : "";
    });
    return Plots.figure({
      title:
        "Figure 2, test accuracy by length: bars are means over seeds at each model's chosen learning rate, " +
        "whiskers one standard deviation",
      describe: `Test accuracy of ${models.length} models at ${stages.length} lengths. ${best.filter(Boolean).join("; ")}. The table below has every run.`,
      height: 360,
      traces,
      layout,
      legend: models.map((model) => ({
        label: `${model.label}, lr ${Numbers.short(model.lr)}`,
        look: model,
        kind: "bar",
      })),
      onClick: (point) =>
        typeof point.customdata === "string" &&
        Results.run(point.customdata) &&
        (location.hash = Address.write("run", [point.customdata])),
      table: { columns, rows, title: `Test accuracy: ${Experiments.name(experiment)}` },
    });
  }

  function pictures() {
    const found = Dashboard.get("index").pictures;
    if (!found.length) return null;
    return element(
      "section",
      {},
      element("h2", {}, "Illustrations"),
      element("p", { class: "about" }, "Computed without training, by make figures."),
      element(
        "div",
        { class: "pictures" },
        found.map((one) =>
          element(
            "a",
            { href: one.file },
            element("img", { src: one.file, alt: `${one.title} (opens alone)`, loading: "lazy" }),
            element("span", {}, one.title),
          ),
        ),
      ),
    );
  }

  Dashboard.views.push({ name: "overview", title: "Overview", draw });
})();
