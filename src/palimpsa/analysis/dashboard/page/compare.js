// Two runs side by side: the keys in which their configs differ, their results and their curves.
"use strict";

(() => {
  async function drawCompare({ parts }) {
    const [one, other] = parts.map((id) => Results.run(id));
    const runs = Results.runs();
    const choices = [
      ["", "choose a run"],
      ...runs.map((run) => [run.id, `${Results.runName(run)} (${Results.runPlace(run)})`]),
    ];
    const go = (place) => (id) => {
      const next = [parts[0] || "", parts[1] || ""];
      next[place] = id;
      location.hash = Address.write("compare", next);
    };
    const head = [
      element("h1", {}, "Two runs side by side"),
      element(
        "p",
        { class: "answer" },
        "What did two runs do differently, and what came of it? Below are the keys in which " +
          "their configs differ, their results and their curves.",
      ),
      element(
        "div",
        { class: "choices" },
        choice("First run", choices, one ? one.id : "", go(0)),
        choice("Second run", choices, other ? other.id : "", go(1)),
      ),
    ];
    if (!one || !other) {
      const isGone = (parts[0] && !one) || (parts[1] && !other);
      const gone = "This address names a run that the page does not have: it was built of other results. ";
      return [...head, element("p", {}, isGone ? gone : "", "Choose two runs.")];
    }
    const pages = await Promise.all([Results.details(one.id), Results.details(other.id)]);
    const keys = [...new Set([...pages[0].config.keys(), ...pages[1].config.keys()])].sort(
      // What the config says comes before what the command and the versions do.
      (a, b) => /^(command: |version of )/.test(a) - /^(command: |version of )/.test(b) || (a < b ? -1 : 1),
    );
    // Of a run that only runs.csv tells of, most keys are not known.
    const isAlike = pages[0].whole_config === pages[1].whole_config;
    const isKnown = (key) => isAlike || pages.every((page) => page.config.has(key));
    const value = (page, key) => (page.config.has(key) ? page.config.get(key) : "(no such key)");
    const rows = keys.filter(isKnown).map((key) => ({ key, one: value(pages[0], key), other: value(pages[1], key) }));
    const differing = rows.filter((row) => row.one !== row.other);
    const kept = pages.filter((page) => !page.whole_config).length;
    const unknown = keys.length - rows.length;
    const names = [one, other].map((run, place) => `${place ? "second" : "first"}: ${Results.runName(run)}`);
    const list = [
      { name: "key", key: "key" },
      { name: names[0], key: "one" },
      { name: names[1], key: "other" },
    ];
    const outcomes = [
      ["status", "status"],
      ["test accuracy", "accuracy", Numbers.percent],
      ["validation accuracy", "validation", Numbers.percent],
      ["loss", "loss", Numbers.short],
      ["steps", "steps", Numbers.grouped],
      ["seconds", "seconds", Numbers.grouped],
      ["parameters", "parameters", Numbers.grouped],
      ["device", "device"],
      ["commit", "revision"],
      ["why it ended", "error"],
    ];
    const results = outcomes.map(([name, key, show = (own) => own ?? ""]) => ({
      key: name,
      one: show(one[key]),
      other: show(other[key]),
    }));
    return [
      ...head,
      element(
        "p",
        {},
        link("first run", Address.write("run", [one.id])),
        " · ",
        link("second run", Address.write("run", [other.id])),
        " · ",
        link("exchange them", Address.write("compare", [other.id, one.id])),
      ),
      kept
        ? element(
            "p",
            { class: "about" },
            `Of ${kept === 2 ? "both" : "one of them"} only runs.csv is left, which keeps few keys and the command. ` +
              (unknown ? `${unknown} keys are known of one run alone and are not compared. ` : "") +
              "More may differ: what a model's name stands for is in configs/model.",
          )
        : null,
      element("h2", {}, `${differing.length} of ${rows.length} keys differ`),
      sortableTable(list, differing, {
        caption: "Keys that differ",
        quiet: true,
        empty: kept ? "What is known of both is equal." : "Their configs are equal.",
        page: 60,
      }),
      element("h2", {}, "Results"),
      sortableTable(
        list.map((column, place) => (place ? column : { ...column, name: "result" })),
        results.filter((row) => row.one !== "" || row.other !== ""),
        { caption: "Results", quiet: true },
      ),
      ...RunPage.curveFigures([
        [one, pages[0]],
        [other, pages[1]],
      ]),
    ];
  }

  Dashboard.views.push({ name: "compare", title: "Compare", draw: drawCompare });
})();
