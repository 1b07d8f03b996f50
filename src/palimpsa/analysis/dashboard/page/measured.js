// The sweep that is at work, benchmarks, language models, memories, and W&B's runs.
"use strict";

(() => {
  // ---- the sweep that is at work
  async function drawRunning() {
    const {
      total,
      ended,
      jobs,
      failed,
      statuses,
      not_ended: notEnded,
      not_finished: notFinished,
    } = Dashboard.get("index").progress;
    const bar = (name, value, most, note) =>
      element(
        "li",
        {},
        element("span", {}, name),
        element("progress", { value: String(value), max: String(Math.max(most, 1)), "aria-label": name }),
        element(
          "span",
          { class: "about" },
          `${Numbers.grouped(value)} of ${Numbers.grouped(most)}${note ? `: ${note}` : ""}`,
        ),
      );
    const growing = notEnded
      .map((id) => Results.run(id))
      .filter((run) => run && run.curve)
      .slice(0, 12);
    const pages = await Promise.all(growing.map((run) => Results.details(run.id)));
    const lines = growing
      .map((run, place) => ({
        label: Results.runName(run),
        look: Experiments.palette(place),
        curve: pages[place].curve.loss,
      }))
      .filter((line) => line.curve && line.curve[0].length);
    const reasons = [
      ...failed.map(([name, reason]) => [name, reason]),
      ...notFinished.map((id) => [runLink(id), (Results.run(id) || {}).error || ""]),
    ];
    return [
      element("h1", {}, "Running now"),
      element(
        "p",
        { class: "answer" },
        "How far is the sweep, and which run failed and why? ",
        element("code", {}, "make dashboard WATCH=1"),
        " keeps this page up to date while runs go.",
      ),
      problemList("running"),
      element(
        "section",
        {},
        element("h2", {}, "The sweep"),
        total
          ? element(
              "ul",
              { class: "bars" },
              bar("all runs", ended, total),
              jobs.map((job) => bar(job.name, job.step, job.total, job.note)),
            )
          : element("p", {}, "No sweep is at work in these run directories."),
        total > ended && !jobs.length && !statuses.some(([status]) => status === "running")
          ? element("p", {}, "No run is at work now. A sweep that was killed goes on by its same command.")
          : null,
      ),
      statuses.length
        ? element(
            "section",
            {},
            element("h2", {}, "Run directories"),
            facts(statuses.map(([status, count]) => [status, count])),
          )
        : null,
      notEnded.length
        ? element(
            "p",
            {},
            "Not ended: ",
            notEnded.slice(0, 30).flatMap((id, place) => [place ? ", " : "", runLink(id)]),
          )
        : null,
      element(
        "section",
        {},
        element("h2", {}, "What failed, and why"),
        reasons.length
          ? element(
              "ul",
              {},
              reasons.map(([name, reason]) => element("li", {}, name, ": ", reason)),
            )
          : element("p", {}, "Nothing."),
      ),
      lines.length
        ? Plots.lineFigure({
            title: "Training loss of runs that have not ended",
            x: { title: "training step", scale: "linear" },
            y: { title: "nats", scale: "log" },
            lines: lines.map(({ label, look, curve }) => ({ label, look, x: curve[0], y: curve[1] })),
          })
        : notEnded.length
          ? element(
              "p",
              {},
              "No run that has not ended has a curve here yet. A run's curve comes from its history.csv, and from its " +
                "offline W&B files as long as it has none.",
            )
          : null,
    ];
  }

  function entries(list) {
    const named = (entry, title) => `${title}, ${entry.subtitle}`;
    return list.map((entry) =>
      element(
        "section",
        {},
        element("h2", {}, entry.title),
        element("p", { class: "about" }, entry.subtitle),
        element(
          "div",
          { class: "grid" },
          entry.charts.map((chart) => Plots.indexChart({ ...chart, tableTitle: named(entry, chart.title) })),
        ),
        entry.tables.map((table) => folded(table, named(entry, table.title))),
      ),
    );
  }

  // Of several devices each has a table of the same title.
  function folded(table, caption) {
    return element(
      "details",
      { class: "numbers" },
      element("summary", {}, `${table.title}: the whole table`),
      plainTable({ ...table, title: caption }),
    );
  }

  function drawSpeed() {
    return [
      element("h1", {}, "Speed"),
      element(
        "p",
        { class: "answer" },
        "What does each operator and each training step cost, and how does it grow with the " +
          "sequence? Lower is faster, except for throughput.",
      ),
      problemList("speed"),
      ...entries(Dashboard.get("index").speed),
    ];
  }

  function drawLanguage() {
    const { caption, table, charts } = Dashboard.get("index").language;
    return [
      element("h1", {}, "Language models"),
      element(
        "p",
        { class: "answer" },
        "How good are the language models at tasks they were not trained for, and at using what " +
          "they read long ago? Published numbers stand beside ours.",
      ),
      problemList("language"),
      plainTable(table),
      caption ? element("p", { class: "about" }, caption) : null,
      element(
        "div",
        { class: "grid" },
        charts.map((chart) => Plots.indexChart(chart)),
      ),
    ];
  }

  function drawFinetuning() {
    const { table, charts } = Dashboard.get("index").finetuning;
    return [
      element("h1", {}, "Fine-tuning"),
      element(
        "p",
        { class: "answer" },
        "Does a trained model gain when it is made metaplastic and trained on, compared with the same model trained " +
          "on as it was? The table has the differences, and how sure they are.",
      ),
      problemList("finetuning"),
      table.rows.length ? plainTable(table) : null,
      element(
        "div",
        { class: "grid" },
        charts.map((chart) => Plots.indexChart(chart)),
      ),
    ];
  }

  function drawMemory() {
    const inspections = Dashboard.get("index").memory;
    return [
      element("h1", {}, "Memories"),
      element(
        "p",
        { class: "answer" },
        "What did a head keep of a real sequence, and what does a query read from which " +
          "token? Each inspection has a page of its own.",
      ),
      problemList("memory"),
      inspections.length
        ? null
        : element(
            "p",
            {},
            "A finished run of text keeps its checkpoint. Any other keeps it where it was started with ",
            element("code", {}, "trainer.keep_final=true"),
            ".",
          ),
      element(
        "div",
        { class: "pictures" },
        inspections.map((one) => {
          const inner = [
            one.picture ? element("img", { src: one.picture, alt: `What ${one.name} kept`, loading: "lazy" }) : null,
            element("span", {}, one.name),
          ];
          return one.page || one.picture
            ? element("a", { href: one.page || one.picture }, inner)
            : element("p", {}, `${one.name}: inspection.json without a picture`);
        }),
      ),
    ];
  }

  function drawWandb() {
    const columns = [
      { name: "run", key: "name" },
      { name: "id", key: "id", show: (id) => element("code", {}, id) },
      { name: "project", key: "project" },
      { name: "group", key: "group" },
      { name: "files", key: "files", number: true },
      { name: "rows", key: "rows", number: "grouped" },
      { name: "ended", key: "ended", show: (ended) => (ended ? "yes" : "no") },
      { name: "uploaded by", key: "line", show: (line) => (line ? element("code", { class: "command" }, line) : "done") },
    ];
    const names = ["id", "name", "project", "group", "files", "rows", "ended", "line"];
    const rows = Dashboard.get("index").wandb.map((row) =>
      Object.fromEntries(names.map((name, place) => [name, row[place]])),
    );
    return [
      element("h1", {}, "Offline W&B runs"),
      element(
        "p",
        { class: "answer" },
        "Which runs has Weights & Biases recorded on this machine without uploading them, and which command " +
          "uploads each? A resumed run has several files and one line.",
      ),
      problemList("wandb"),
      sortableTable(columns, rows, {
        caption: "Offline W&B runs",
        quiet: true,
        empty: "None was found. Runs are recorded so with logger=wandb, the default.",
      }),
    ];
  }

  Dashboard.views.push({ name: "running", title: "Running", draw: drawRunning });
  Dashboard.views.push({ name: "speed", title: "Speed", draw: drawSpeed });
  Dashboard.views.push({ name: "language", title: "Language", draw: drawLanguage });
  Dashboard.views.push({ name: "finetuning", title: "Fine-tuning", draw: drawFinetuning });
  Dashboard.views.push({ name: "memory", title: "Memories", draw: drawMemory });
  Dashboard.views.push({ name: "wandb", title: "W&B", draw: drawWandb });
})();
