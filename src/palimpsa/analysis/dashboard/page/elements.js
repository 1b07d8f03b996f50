// Elements of the page. Texts become text nodes, never HTML.
"use strict";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function link(text, address) {
  return element("a", { href: address }, text);
}

function runLink(id, text) {
  const run = Results.run(id);
  return run ? link(text || Results.runName(run), Address.write("run", [id])) : text || "";
}

// Where somebody is on a page that is drawn anew: which element has the focus, the cursor in it, what is unfolded, and
// how far tables are scrolled.
const Place = (() => {
  const FOCUSED = "a, button, input, select, summary, [tabindex]";
  const OPEN = "details > summary";

  // What an element is called, and which one of several of that name it is.
  const nameOf = (node) =>
    node.id || [node.tagName, node.getAttribute("href"), node.getAttribute("aria-label"), node.textContent].join(" ");
  const named = (main, selector) => {
    const found = new Map();
    const counts = new Map();
    for (const node of main.querySelectorAll(selector)) {
      const name = nameOf(node);
      counts.set(name, (counts.get(name) || 0) + 1);
      found.set(`${name} ${counts.get(name)}`, node);
    }
    return found;
  };

  function read(main) {
    const active = document.activeElement || document.body;
    const focused = [...named(main, FOCUSED)].find(([, node]) => node === active);
    return {
      focused: focused && focused[0],
      cursor: active.type === "search" ? [active.selectionStart, active.selectionEnd] : null,
      open: [...named(main, OPEN)].map(([name, node]) => [name, node.parentElement.open]),
      scrolled: [...main.querySelectorAll(".scroll")].map((node) => [
        node.getAttribute("aria-label"),
        [node.scrollLeft, node.scrollTop],
      ]),
    };
  }

  function restore(main, { focused, cursor, open, scrolled }) {
    const folded = named(main, OPEN);
    for (const [name, isOpen] of open) {
      if (!folded.has(name)) continue;
      const details = folded.get(name).parentElement;
      details.open = isOpen;
      // The browser tells of it later: what is drawn once it is unfolded is needed now.
      details.dispatchEvent(new Event("toggle"));
    }
    const offsets = new Map(scrolled);
    for (const node of main.querySelectorAll(".scroll"))
      node.scrollTo(...(offsets.get(node.getAttribute("aria-label")) || [0, 0]));
    const node = focused && named(main, FOCUSED).get(focused);
    if (!node) return;
    node.focus({ preventScroll: true });
    if (cursor) node.setSelectionRange(...cursor);
  }

  return { read, restore };
})();

// A select with its label, by which it is found when its view is drawn anew. choices: [value, text].
function choice(label, choices, value, onChange) {
  const id = `choice-${label.toLowerCase().replaceAll(" ", "-")}`;
  const select = element(
    "select",
    { id, onchange: () => onChange(select.value) },
    choices.map(([own, text]) => element("option", { value: own, selected: own === value }, text)),
  );
  return element("p", { class: "choice" }, element("label", { for: id }, label), select);
}

function facts(pairs) {
  return element(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value instanceof Node ? value : String(value))),
      ),
  );
}

// What is missing or could not be read, of one view or of all; of all it is folded unless isOpen.
function problemList(view = null, isOpen = false) {
  const rows = Dashboard.get("index").problems.filter(([own]) => view === null || own === view);
  if (!rows.length) return null;
  const items = rows.map(([, what, command]) =>
    element("li", {}, what, command ? [". ", element("code", {}, command), " makes it."] : null),
  );
  if (view !== null)
    return element(
      "div",
      { class: "problems" },
      element("h2", {}, "Missing or not readable"),
      element("ul", {}, items),
    );
  return element(
    "details",
    { class: "problems", open: isOpen },
    element(
      "summary",
      {},
      `${rows.length} ${rows.length === 1 ? "thing is" : "things are"} missing or could not be read`,
    ),
    element("ul", {}, items),
  );
}

// Tables whose rows are all shown, by their view and columns: they stay so where new data are drawn.
const shownWhole = new Set();

// A table that sorts by any column: a button in each header, the arrow keys from row to row.
// columns: { name, key, number (right-aligned, sorted as numbers), show (value, row -> text or node), wide }.
// options: caption, quiet (a heading above says the same), sort ("key" or "-key"), onSort, page (rows at first), empty (text).
function sortableTable(columns, rows, options = {}) {
  const place = [location.hash.split("?")[0], ...columns.map((column) => column.key)].join(" ");
  let { sort = "", page = 100 } = options;
  if (shownWhole.has(place)) page = Infinity;
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more", onclick: showWhole });
  const heads = columns.map((column) => {
    const button = element("button", { type: "button", onclick: () => change(column) }, column.name);
    return element("th", { scope: "col", class: cellClass(column) }, button);
  });
  const table = element(
    "table",
    {},
    element("caption", { class: options.quiet ? "quiet" : null }, options.caption),
    element("thead", {}, element("tr", {}, heads)),
    body,
  );
  const region = element(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": options.caption },
    table,
  );

  function showWhole() {
    shownWhole.add(place);
    page = Infinity;
    fill();
  }

  function cellClass(column) {
    return (
      [column.number && "number", column.wide && "wide", column.nowrap && "nowrap"].filter(Boolean).join(" ") || null
    );
  }

  function change(column) {
    const ascending = sort === column.key ? false : sort === `-${column.key}` ? true : !column.number;
    sort = (ascending ? "" : "-") + column.key;
    fill();
    if (options.onSort) options.onSort(sort);
  }

  function sorted() {
    const key = sort.replace(/^-/, "");
    const column = columns.find((one) => one.key === key);
    if (!column) return rows;
    const sign = sort.startsWith("-") ? -1 : 1;
    const isMissing = (value) => value === null || value === undefined || value === "";
    return [...rows].sort((one, other) => {
      const [a, b] = [one[key], other[key]];
      // What is missing comes last either way.
      if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * String(a).localeCompare(String(b), "en", { numeric: true });
    });
  }

  function fill() {
    const shown = sorted().slice(0, page);
    body.replaceChildren(
      ...shown.map((row) =>
        element(
          "tr",
          {},
          columns.map((column, place) => {
            const value = column.show ? column.show(row[column.key], row) : cellText(row[column.key], column);
            const attributes = { class: cellClass(column) };
            if (place === 0) return element("th", { ...attributes, scope: "row" }, value);
            return element("td", attributes, value);
          }),
        ),
      ),
    );
    if (!rows.length) {
      body.append(
        element("tr", {}, element("td", { colspan: String(columns.length) }, options.empty || "Nothing to show.")),
      );
    }
    heads.forEach((head, place) => {
      const key = columns[place].key;
      head.setAttribute("aria-sort", sort === key ? "ascending" : sort === `-${key}` ? "descending" : "none");
    });
    more.hidden = rows.length <= page;
    more.textContent = `Show all ${rows.length}`;
  }

  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const row = event.target.closest("tr");
    const next = step && row && row[step];
    const cell = event.target.closest("td, th");
    const target = next && next.children[[...row.children].indexOf(cell)].querySelector("a, input, button");
    if (target) {
      event.preventDefault();
      target.focus();
    }
  });
  fill();
  return element("div", { class: "table" }, region, more);
}

function cellText(value, column) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return column.number === "grouped" ? Numbers.grouped(value) : Numbers.short(value);
  return String(value);
}

// A table of the index: title, columns, rows of lists.
function plainTable({ title, columns, rows }) {
  const isNumber = (place) => rows.some((row) => typeof row[place] === "number");
  return sortableTable(
    columns.map((name, place) => ({ name, key: String(place), number: isNumber(place) })),
    rows.map((row) => ({ ...row })),
    { caption: title, page: 30 },
  );
}
