// What the views of experiments share: which one is chosen, colours of heads and runs, and what is told of memories.
"use strict";

const Experiments = (() => {
  const QUANTITIES = {
    window_mean: ["Memory window N_t: after how many tokens a memory has faded", "tokens", "log"],
    metaplasticity_mean: ["Metaplasticity ratio: how much harder important entries are to overwrite", "ratio", "log"],
    loss: ["Training loss", "nats", "log"],
  };

  const name = (experiment) => `${experiment.title} (${experiment.subtitle}; ${experiment.source})`;

  // The experiment that an address names, the first where it names none, undefined where there is none such; and all.
  function experimentOf(id, fits) {
    const known = Results.experiments().filter(fits);
    return [id ? known.find((one) => one.id === id) : known[0], known];
  }

  // What a view shows whose address names an experiment that it does not have.
  function noSuch(known, view) {
    return [
      element("h1", {}, "No such experiment"),
      element(
        "p",
        {},
        "This address names an experiment that the view does not have: the page was built of other results, or the " +
          "experiment has nothing to show here. These are there:",
      ),
      element(
        "ul",
        {},
        known.map((one) => element("li", {}, link(name(one), Address.write(view, [one.id])))),
      ),
    ];
  }

  function experimentChoice(known, own, view, options = {}) {
    const go = (id) => (location.hash = Address.write(view, [id], options));
    return choice(
      "Experiment",
      known.map((one) => [one.id, name(one)]),
      own.id,
      go,
    );
  }

  function palette(place) {
    const looks = Dashboard.get("index").palette;
    return looks[place % looks.length];
  }

  return { find: experimentOf, choice: experimentChoice, name, noSuch, palette, QUANTITIES };
})();
