// The table of runs: sorted, filtered, searched, and two of them picked to be compared.
"use strict";

(() => {
  const FILTERS = ["source", "task", "scale", "model", "status"];
  // Several statuses under one name.
  const STATUSES = {
    "not finished": (status) => status !== "finished",
    "failed or diverged": (status) => status === "failed" || status === "diverged",
  };
  const picked = [];

  function drawTable({ options }) {
    const state = Object.fromEntries(["search", "sort", ...FILTERS].map((name) => [name, options.get(name) || ""]));
    const runs = Results.runs();
    const place = element("div");
    const count = element("p", { role: "status" });
    const compare = element("p", { class: "about" });

    function matches(run) {
      const text = [
        run.label,
        run.model,
        run.task,
        run.scale,
        run.source,
        run.status,
        run.error,
        run.device,
        run.revision,
        `lr ${run.lr}`,
        `seed ${run.seed}`,
      ]
        .join(" ")
        .toLowerCase();
      const words = state.search
        .toLowerCase()
        .replace(/\b(lr|seed)[\s=]+(?=\S)/g, "$1=")
        .split(/\s+/)
        .filter(Boolean);
      // A number is meant whole: seed 1 is not seed 12.
      const isIn = (word) => {
        const [, name, value] = word.match(/^(lr|seed)=(.+)$/) || [];
        return name ? Numbers.short(run[name]) === Numbers.short(value) : text.includes(word);
      };
      const fits = (name) =>
        !state[name] ||
        String(run[name]) === state[name] ||
        (name === "status" && Object.hasOwn(STATUSES, state.status) && STATUSES[state.status](run.status));
      return FILTERS.every(fits) && words.every(isIn);
    }

    function fill() {
      const shown = runs.filter(matches);
      count.textContent = `${shown.length} of ${runs.length} runs`;
      place.replaceChildren(
        sortableTable(columns(showPicked), shown, {
          caption: "Runs",
          quiet: true,
          sort: state.sort,
          empty: "No run fits: loosen the search or the filters.",
          onSort: (sort) => {
            state.sort = sort;
            remember();
          },
        }),
      );
    }

    function remember() {
      Address.replace("runs", [], state);
    }

    function showPicked() {
      const names = picked.map((id) => Results.runName(Results.run(id)));
      compare.replaceChildren(
        ...(picked.length === 2
          ? [link(`Compare ${names[0]} with ${names[1]}`, Address.write("compare", picked))]
          : [picked.length ? `Picked: ${names[0]}. Pick one more to compare.` : "Pick two runs to compare them."]),
      );
    }

    const search = element("input", {
      type: "search",
      id: "search",
      value: state.search,
      oninput: () => {
        state.search = search.value;
        fill();
        remember();
      },
    });
    const filters = FILTERS.map((name) => {
      const values = [
        ...new Set(runs.map((run) => run[name]).filter((value) => value !== null && value !== "")),
      ].sort();
      const extra = name === "status" ? Object.keys(STATUSES).map((one) => [one, one]) : [];
      // What an address asks for, and no run has.
      const known = [...values, ...extra.map(([value]) => value), ""];
      if (!known.includes(state[name])) extra.push([state[name], `${state[name]} (no run)`]);
      return choice(name, [["", "any"], ...values.map((value) => [value, value]), ...extra], state[name], (value) => {
        state[name] = value;
        fill();
        remember();
      });
    });
    picked.splice(0, picked.length, ...picked.filter((id) => Results.run(id)));
    fill();
    showPicked();
    return [
      element("h1", {}, "All runs"),
      element(
        "p",
        { class: "answer" },
        "Which runs are there, and how did each end? Sort by a column's name, search for words (press " +
          "/), and choose a run for its config, commit and curves.",
      ),
      problemList("runs"),
      element(
        "div",
        { class: "choices" },
        element("p", { class: "choice" }, element("label", { for: "search" }, "Search"), search),
        filters,
      ),
      compare,
      count,
      place,
    ];
  }

  function columns(onPick) {
    const pick = (id, run) => {
      const box = element("input", {
        type: "checkbox",
        "aria-label": `Compare ${Results.runName(run)}`,
        checked: picked.includes(id),
      });
      box.checked = picked.includes(id);
      box.addEventListener("change", () => {
        if (!box.checked) picked.splice(picked.indexOf(id), 1);
        else {
          // The oldest of three gives way.
          if (picked.length === 2) picked.shift();
          picked.push(id);
          document
            .querySelectorAll("main tbody input[type=checkbox]")
            .forEach(
              (other) => (other.checked = other === box || (other.checked && picked.includes(other.dataset.run))),
            );
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
      {
        name: "status",
        key: "status",
        show: (status, run) =>
          element(
            "span",
            {
              class: `status ${["finished", "failed", "diverged", "running"].includes(status) ? status : ""}`,
              title: run.error || null,
            },
            status,
          ),
      },
      { name: "test accuracy", key: "accuracy", number: true, show: Numbers.percent },
      { name: "validation accuracy", key: "validation", number: true, wide: true, show: Numbers.percent },
      { name: "loss", key: "loss", number: true, wide: true },
      { name: "steps", key: "steps", number: "grouped" },
      { name: "seconds", key: "seconds", number: "grouped", wide: true },
      { name: "task", key: "task" },
      { name: "scale", key: "scale" },
      { name: "source", key: "source", wide: true },
      {
        name: "started",
        key: "started",
        wide: true,
        nowrap: true,
        show: (time) => (time || "").slice(0, 16).replace("T", " "),
      },
      { name: "commit", key: "revision", wide: true, show: (revision) => (revision || "").slice(0, 10) },
    ];
  }

  Dashboard.views.push({ name: "runs", title: "Runs", draw: drawTable });
})();
