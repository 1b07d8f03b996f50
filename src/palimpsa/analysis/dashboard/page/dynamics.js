// How loss and memories change in training: by model, then by layer and head.
"use strict";

(() => {
  async function drawDynamics({ parts, options }) {
    const [own, known] = Experiments.find(parts[0], (one) => one.dynamics !== null);
    if (!own && known.length) return Experiments.noSuch(known, "dynamics");
    const head = [
      element("h1", {}, "Learning dynamics"),
      element(
        "p",
        { class: "answer" },
        "How do memories change while a model learns? Windows grow where it learns to keep, ratios where it " +
          "learns what is important; each head can be looked at alone.",
      ),
      problemList("dynamics"),
    ];
    if (!own)
      return [
        ...head,
        element(
          "p",
          {},
          "No learning curve has been collected yet: ",
          element("code", {}, "make mqar"),
          " trains and collects.",
        ),
      ];
    const models = await Dashboard.load(`dynamics ${own.dynamics}`, `data/dynamics/${own.dynamics}.js`);
    const look = (entry) => own.models[entry.model];
    const figures = Object.entries(Experiments.QUANTITIES).map(([name, [title, unit, scale]]) => {
      const lines = models
        .filter((entry) => entry[name])
        .map((entry) => ({
          label: look(entry).label,
          look: look(entry),
          x: entry[name][0],
          y: entry[name][1],
          low: entry[name][2],
          high: entry[name][3],
        }));
      return lines.length
        ? Plots.lineFigure({
            title: `${title}; mean over seeds${name === "loss" ? "" : ", band of one standard deviation"}`,
            x: { title: "training step", scale: "linear" },
            y: { title: unit, scale },
            lines,
          })
        : null;
    });
    const withHeads = models.filter((entry) => Object.keys(entry.heads).length);
    const chosen = withHeads.find((entry) => look(entry).model === options.get("model")) || withHeads[0];
    return [
      ...head,
      element("div", { class: "choices" }, Experiments.choice(known, own, "dynamics")),
      ...figures,
      chosen ? headSection(own, withHeads, chosen, options) : element("p", {}, "Single heads were not recorded."),
      element(
        "p",
        {},
        link(
          "The runs behind these curves",
          Address.write("runs", [], { source: own.source, task: own.task, scale: own.scale, status: "finished" }),
        ),
      ),
    ];
  }

  function headSection(own, models, chosen, options) {
    const names = Object.keys(chosen.heads).map((name) => [name, ...name.match(/layer(\d+)\/head(\d+)/).slice(1)]);
    const distinct = (place) => [...new Set(names.map((name) => name[place]))];
    // An address may name what this model does not have.
    const asked = (name, place) => (distinct(place).includes(options.get(name)) ? options.get(name) : "all");
    const state = { model: own.models[chosen.model].model, layer: asked("layer", 1), head: asked("head", 2) };
    const go = (changes) => (location.hash = Address.write("dynamics", [own.id], { ...state, ...changes }));
    const shown = names.filter(
      ([, layer, index]) => [layer, "all"].includes(state.layer) && [index, "all"].includes(state.head),
    );
    const label = own.models[chosen.model].label;
    const draw = ([prefix, quantity]) => {
      const lines = shown
        .filter(([name]) => name.startsWith(prefix))
        .map(([name, layer, index]) => ({
          label: `layer ${layer}, head ${index}`,
          look: {
            ...Experiments.palette(Number(index)),
            dash: ["solid", "dash", "dot", "dashdot"][Number(layer) % 4],
          },
          x: chosen.heads[name][0],
          y: chosen.heads[name][1],
        }));
      const [title, unit, scale] = Experiments.QUANTITIES[quantity];
      return lines.length
        ? Plots.lineFigure({
            title: `${label}: ${title.split(":")[0]} of each head, geometric mean over seeds`,
            x: { title: "training step", scale: "linear" },
            y: { title: unit, scale },
            lines,
          })
        : null;
    };
    return element(
      "section",
      {},
      element("h2", {}, "Layer by layer, head by head"),
      element(
        "div",
        { class: "choices" },
        choice(
          "Model",
          models.map((entry) => [own.models[entry.model].model, own.models[entry.model].label]),
          state.model,
          (model) => go({ model }),
        ),
        choice("Layer", [["all", "all"], ...distinct(1).map((one) => [one, one])], state.layer, (layer) =>
          go({ layer }),
        ),
        choice("Head", [["all", "all"], ...distinct(2).map((one) => [one, one])], state.head, (index) =>
          go({ head: index }),
        ),
      ),
      [
        ["window/", "window_mean"],
        ["metaplasticity/", "metaplasticity_mean"],
      ].map(draw),
    );
  }

  Dashboard.views.push({ name: "dynamics", title: "Dynamics", draw: drawDynamics });
})();
