// The data of the page, which comes by script tags: a page of file:// may not fetch.
"use strict";

const Dashboard = (() => {
  const data = new Map();
  const pending = new Map();
  let listener = () => {};

  // What every data file calls.
  function receive(key, value) {
    data.set(key, value);
    listener(key, value);
  }

  // The value of a key, of whose file a script tag is made once; again: also where it has been loaded before.
  function load(key, file, again = false) {
    if (!again && data.has(key)) return Promise.resolve(data.get(key));
    if (pending.has(key)) return pending.get(key);
    const promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = again ? `${file}?${Date.now()}` : file;
      script.onload = () => {
        script.remove();
        resolve(data.get(key));
      };
      script.onerror = () => {
        script.remove();
        reject(new Error(`${file} is missing`));
      };
      document.head.append(script);
    }).finally(() => pending.delete(key));
    pending.set(key, promise);
    return promise;
  }

  // Forgets what belongs to an older build.
  function forget() {
    for (const key of [...data.keys()]) if (key !== "index" && key !== "version") data.delete(key);
  }

  return { receive, load, forget, get: (key) => data.get(key), onReceive: (call) => (listener = call), views: [] };
})();

// What the index says, in the forms that views ask for.
const Results = (() => {
  let runs = [];
  let byId = new Map();

  function refresh() {
    const { columns, rows } = Dashboard.get("index").runs;
    runs = rows.map((row) => Object.fromEntries(columns.map((name, place) => [name, row[place]])));
    byId = new Map(runs.map((run) => [run.id, run]));
  }

  function runName(run) {
    const parts = [run.label];
    if (run.lr !== null) parts.push(`lr ${Numbers.short(run.lr)}`);
    if (run.seed !== null) parts.push(`seed ${run.seed}`);
    if (run.length) parts.push(`length ${run.length}`);
    return parts.join(", ");
  }

  function runPlace(run) {
    return [run.source, run.task, run.scale].filter(Boolean).join(" / ");
  }

  async function details(id) {
    const page = await Dashboard.load(`run ${id}`, `data/runs/${id}.js`);
    const shared = await Dashboard.load(`config ${page.config_group}`, `data/configs/${page.config_group}.js`);
    const config = new Map(shared);
    for (const [key, value] of page.config) {
      if (value === null) config.delete(key);
      else config.set(key, value);
    }
    return { ...page, config };
  }

  return {
    refresh,
    runName,
    runPlace,
    details,
    runs: () => runs,
    run: (id) => byId.get(id),
    experiments: () => Dashboard.get("index").experiments,
  };
})();

const Numbers = {
  short: (value) => (value === null || value === undefined ? "" : String(Number(Number(value).toPrecision(4)))),
  grouped: (value) => (value === null || value === undefined ? "" : Number(value).toLocaleString("en")),
  percent: (value) => (value === null || value === undefined ? "" : `${(100 * value).toFixed(1)} %`),
  mean: (values) => (values.length ? values.reduce((sum, one) => sum + one, 0) / values.length : null),
};

// An address is a view, parts and options: #run/0123 or #runs?search=gla&sort=accuracy.
const Address = {
  read() {
    const [path, query] = location.hash.replace(/^#/, "").split("?");
    const [view, ...parts] = path.split("/").map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
    return { view: view || "overview", parts, options: new URLSearchParams(query || "") };
  },
  write(view, parts = [], options = {}) {
    const query = new URLSearchParams(Object.entries(options).filter(([, value]) => value)).toString();
    return `#${[view, ...parts].map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
  },
  // Without a new drawing of the view, which has drawn itself.
  replace(view, parts, options) {
    history.replaceState(history.state, "", Address.write(view, parts, options));
  },
};
