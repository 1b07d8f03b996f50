// What the views of experiments share: which one is chosen, colours of heads and runs, and what is told of memories.
"use strict";

const Experiments = (() => {
  const QUANTITIES = {
    window_mean: ["Memory window N_t: after how many tokens a memory has faded", "tokens", "log"],
    metaplasticity_mean: ["Metaplasticity ratio: how much harder important entries are to overwrite", "ratio", "log"],
    loss: ["Training loss", "nats", "log"],
  };

  function experimentOf(id, fits) {
    const known = Results.experiments().filter(fits);
    return [known.find((one) => one.id === id) || known[0], known];
  }

  function experimentChoice(known, own, view, options = {}) {
    const go = (id) => (location.hash = Address.write(view, [id], options));
    return choice(
      "Experiment",
      known.map((one) => [one.id, `${one.title} (${one.subtitle}; ${one.source})`]),
      own.id,
      go,
    );
  }

  function palette(place) {
    const looks = Dashboard.get("index").palette;
    return looks[place % looks.length];
  }

  return { find: experimentOf, choice: experimentChoice, palette, QUANTITIES };
})();
