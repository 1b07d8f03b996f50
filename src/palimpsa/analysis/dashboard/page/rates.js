// Learning rates: a map a length, and every run.
"use strict";

(() => {
  const MEASURES = { test: ["test accuracy", 2], validation: ["validation accuracy", 1] };

  function drawRates({ parts, options }) {
    const [own, known] = Experiments.find(parts[0], (one) => one.cells.length || one.losses.length);
    if (!own && known.length) return Experiments.noSuch(known, "rates");
    const head = [
      element("h1", {}, "Learning rates"),
      element(
        "p",
        { class: "answer" },
        "Which learning rate does each model want, and how much does it matter? Each field " +
          "is a mean over seeds; choose one for its runs.",
      ),
      problemList("rates"),
    ];
    if (!own)
      return [
        ...head,
        element("p", {}, "No experiment with runs yet: ", element("code", {}, "make mqar"), " trains one."),
      ];
    const measure = Object.hasOwn(MEASURES, options.get("measure")) ? options.get("measure") : "test";
    const change = (value) => (location.hash = Address.write("rates", [own.id], { measure: value }));
    const runs = element("div", { "aria-live": "polite" });
    const maps = own.stages.map((stage, place) =>
      rateMap(own, stage, place, measure, (cell) => showRuns(own, stage, cell, runs)),
    );
    return [
      ...head,
      element(
        "div",
        { class: "choices" },
        Experiments.choice(known, own, "rates", { measure }),
        own.stages.length
          ? choice(
              "Measure",
              [
                ["test", "test accuracy"],
                ["validation", "validation accuracy"],
              ],
              measure,
              change,
            )
          : null,
      ),
      element("div", { class: "grid" }, maps, own.losses.length ? lossMap(own) : null),
      runs,
      ...own.stages.map((stage, place) => everyRun(own, stage, place, measure)),
    ];
  }

  function rateMap(own, [length, pairs], place, measure, choose) {
    const [words, column] = MEASURES[measure];
    const cells = own.cells.filter((cell) => cell[2] === place);
    const rates = [...new Set(cells.map((cell) => cell[1]))].sort((a, b) => a - b);
    const models = [...own.models.keys()].reverse();
    const find = (model, rate) => cells.find((cell) => cell[0] === model && cell[1] === rate);
    const mean = (cell) => cell && Numbers.mean(cell[3].map((run) => run[column]).filter((value) => value !== null));
    const failed = (cell) => cell[3].filter((run) => run[column] === null).length;
    const values = models.map((model) => rates.map((rate) => mean(find(model, rate)) ?? null));
    const traces = () => [
      {
        type: "heatmap",
        z: values,
        x: rates.map((_, index) => index),
        y: models.map((_, index) => index),
        zmin: 0,
        zmax: 1,
        colorscale: "Cividis",
        showscale: false,
        xgap: 2,
        ygap: 2,
        texttemplate: "%{text}",
        text: values.map((row) => row.map((value) => (value === null ? "" : (100 * value).toFixed(0)))),
        customdata: models.map((model) => rates.map((rate) => [model, rate])),
        hovertext: models.map((model) =>
          rates.map((rate) => {
            const cell = find(model, rate);
            const chosen = own.models[model].lr === rate ? "<br>the chosen rate" : "";
            return cell
              ? `${Plots.plain(own.models[model].label)}, lr ${Numbers.short(rate)}<br>${Numbers.percent(mean(cell)) || "no finished run"}, ${cell[3].length} seeds, ${failed(cell)} without a value${chosen}`
              : "not run";
          }),
        ),
        hoverinfo: "text",
      },
    ];
    // The rate that figures show.
    const marks = () =>
      models.flatMap((model, y) => {
        const x = rates.indexOf(own.models[model].lr);
        return x < 0
          ? []
          : [
              {
                type: "rect",
                x0: x - 0.47,
                x1: x + 0.47,
                y0: y - 0.47,
                y1: y + 0.47,
                line: { color: Plots.color("--mark"), width: 2.5 },
              },
            ];
      });
    const layout = () => ({
      xaxis: {
        title: { text: "learning rate" },
        tickvals: rates.map((_, index) => index),
        ticktext: rates.map(Numbers.short),
        showgrid: false,
        tickangle: rates.length > 5 ? -45 : 0,
      },
      yaxis: {
        tickvals: models.map((_, index) => index),
        ticktext: models.map((model) => Plots.wrapped(own.models[model].label, 16)),
        showgrid: false,
        tickfont: { size: 11 },
      },
      shapes: marks(),
    });
    const columns = [
      { name: "model", key: "label" },
      { name: "learning rate", key: "rate", number: true },
      { name: words, key: "value", number: true, show: Numbers.percent },
      { name: "seeds", key: "seeds", number: true },
      { name: "chosen", key: "chosen" },
      {
        name: "runs",
        key: "runs",
        show: (ids) => ids.filter(Boolean).flatMap((id) => [runLink(id, `seed ${Results.run(id).seed}`), " "]),
      },
    ];
    const rows = () =>
      cells.map((cell) => ({
        label: own.models[cell[0]].label,
        rate: cell[1],
        value: mean(cell),
        seeds: cell[3].length,
        chosen: own.models[cell[0]].lr === cell[1] ? "yes" : "",
        runs: cell[3].map((run) => run[3]),
      }));
    return Plots.figure({
      title: `Length ${length.toLocaleString("en")}, ${pairs} pairs: ${words} in %, framed where the rate was chosen`,
      describe: `Heat map of ${words} by model and learning rate at length ${length}. The table below has its numbers.`,
      height: 90 + 34 * models.length,
      traces,
      layout,
      onClick: (point) => {
        const cell = point.customdata && find(...point.customdata);
        if (cell) choose(cell);
      },
      table: { columns, rows },
    });
  }

  function showRuns(own, [length], cell, place) {
    const [model, rate, , runs] = cell;
    place.replaceChildren(
      element(
        "h2",
        {},
        `${own.models[model].label}, learning rate ${Numbers.short(rate)}, length ${length.toLocaleString("en")}`,
      ),
      element(
        "ul",
        {},
        runs.map(([seed, validation, test, id]) =>
          element(
            "li",
            {},
            runLink(id, `seed ${seed}`),
            test === null
              ? ": no accuracy (failed, or did not come so far)"
              : `: test ${Numbers.percent(test)}, validation ${Numbers.percent(validation)}`,
          ),
        ),
      ),
    );
    place.scrollIntoView({ block: "nearest" });
  }

  function everyRun(own, [length], place, measure) {
    const [words, column] = MEASURES[measure];
    const cells = own.cells.filter((cell) => cell[2] === place);
    const rates = [...new Set(cells.map((cell) => cell[1]))];
    const traces = () =>
      own.models.map((model, entry) => {
        const runs = cells
          .filter((cell) => cell[0] === entry)
          .flatMap((cell) => cell[3].filter((run) => run[column] !== null).map((run) => [cell[1], run]));
        // Runs of one rate side by side.
        const spread = Math.pow(1.04, entry - own.models.length / 2);
        return {
          entry,
          type: "scatter",
          mode: "markers",
          x: runs.map(([rate]) => rate * spread),
          y: runs.map(([, run]) => run[column]),
          customdata: runs.map(([, run]) => run[3]),
          text: runs.map(([rate, run]) => `lr ${Numbers.short(rate)}, seed ${run[0]}`),
          marker: {
            color: Plots.lineColor(model),
            size: 7,
            symbol: entry % 8,
            line: { color: Plots.color("--panel"), width: 0.5 },
          },
          hovertemplate: `${Plots.plain(model.label)}, %{text}: %{y:.1%}<extra></extra>`,
        };
      });
    return Plots.figure({
      title: `Every run at length ${length.toLocaleString("en")}: ${words} by learning rate`,
      describe: `Every run at length ${length}, ${words} against learning rate; the maps' tables have the same runs.`,
      traces,
      layout: () => ({
        xaxis: { type: "log", title: { text: "learning rate" }, tickvals: rates, ticktext: rates.map(Numbers.short) },
        yaxis: { tickformat: ".0%", title: { text: words } },
      }),
      legend: own.models.map((model) => ({ label: model.label, look: model, kind: "bar" })),
      onClick: (point) => Results.run(point.customdata) && (location.hash = Address.write("run", [point.customdata])),
    });
  }

  function lossMap(own) {
    const lines = own.losses.map((one, place) => ({
      label: one.label,
      look: Experiments.palette(place),
      x: one.rates.map((rate) => rate[0]),
      y: one.rates.map((rate) => rate[1]),
    }));
    return Plots.lineFigure({
      title: "Validation loss by learning rate",
      x: { title: "learning rate", scale: "log" },
      y: { title: "nats a token", scale: "linear" },
      lines,
    });
  }

  Dashboard.views.push({ name: "rates", title: "Learning rates", draw: drawRates });
})();
