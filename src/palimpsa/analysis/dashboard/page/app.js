// Which view is shown, in which theme, and whether there is new data.
"use strict";

(() => {
  const POLL_MS = 3000;
  const main = document.getElementById("main");
  const state = document.getElementById("state");
  const themeButton = document.getElementById("theme");
  let numShown = 0;
  let built = null;
  // How the view that is to be shown was come to; null: it is shown already, and drawn anew.
  let arrival = null;

  function listViews() {
    const items = Dashboard.views
      .filter((view) => view.title)
      .map((view) => element("li", {}, element("a", { href: `#${view.name}`, "data-view": view.name }, view.title)));
    document.getElementById("views").replaceChildren(...items);
  }

  async function show() {
    numShown += 1;
    const own = numShown;
    const address = Address.read();
    const view = Dashboard.views.find((one) => one.name === address.view);
    for (const item of document.querySelectorAll("#views a")) {
      if (item.dataset.view === address.view) item.setAttribute("aria-current", "page");
      else item.removeAttribute("aria-current");
    }
    let content;
    try {
      content = view
        ? await view.draw(address)
        : [element("h1", {}, "No such view"), element("p", {}, link("Overview", "#overview"))];
    } catch (error) {
      console.error(error);
      content = [
        element("h1", {}, "This view cannot be drawn"),
        element(
          "p",
          { class: "problems" },
          `${error.message}. `,
          "Build the dashboard again: ",
          element("code", {}, "make dashboard"),
        ),
      ];
    }
    // Another view was asked for meanwhile.
    if (own !== numShown) return;
    const came = arrival;
    arrival = null;
    // A choice of the view that is shown draws it anew, too.
    const isChosen = main.dataset.view === address.view && main.querySelector(".choices :focus") !== null;
    const keeps = !came || (isChosen && !came.place);
    const place = keeps ? { ...Place.read(main), height: main.offsetHeight } : came.place;
    const height = keeps ? main.style.minHeight : "";
    main.style.minHeight = place ? `${place.height}px` : "";
    main.replaceChildren(...content.flat().filter(Boolean));
    Plots.clear();
    const heading = main.querySelector("h1");
    if (heading) heading.tabIndex = -1;
    if (place) Place.restore(main, place);
    document.title = `${heading ? heading.textContent : "Palimpsa"} · Palimpsa dashboard`;
    if (!keeps) {
      // Who goes back is again at what they left by, where that is still there.
      if (came.isByUser && heading && !main.querySelector(":focus")) heading.focus({ preventScroll: true });
      window.scrollTo(0, place ? place.top + main.offsetTop : 0);
    }
    // Pictures that are still to be loaded have no height of their own yet.
    if (keeps || [...main.querySelectorAll("img")].every((one) => one.complete)) main.style.minHeight = height;
    main.dataset.view = address.view;
  }

  // The first view takes no focus: nobody was anywhere on the page yet.
  function arriveFirst() {
    const place = Visits.begin();
    arrival = { place: place && { ...place, focused: null }, isByUser: false };
  }

  function goOn() {
    const isShown = Boolean(main.dataset.view);
    // A view that did not come to be shown keeps the place of its last visit.
    if (isShown && !arrival) Visits.end(main);
    arrival = { place: Visits.begin(), isByUser: isShown };
    if (Dashboard.get("index")) show();
  }

  // ---- light and dark
  function theme() {
    const dark = Plots.isDark();
    themeButton.setAttribute("aria-pressed", String(dark));
  }

  function remembered() {
    try {
      return localStorage.getItem("palimpsa-theme");
    } catch {
      return null;
    }
  }

  function setTheme(value) {
    if (value) document.documentElement.dataset.theme = value;
    theme();
    Plots.changeTheme();
  }

  themeButton.addEventListener("click", () => {
    const value = Plots.isDark() ? "light" : "dark";
    try {
      localStorage.setItem("palimpsa-theme", value);
    } catch {
      // A browser that keeps nothing for local files: the choice holds for this page.
    }
    setTheme(value);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(null));

  // ---- new data
  async function poll() {
    try {
      const version = await Dashboard.load("version", "data/version.js", true);
      if (version.built !== built) {
        await Dashboard.load("index", "data/index.js", true);
        Dashboard.forget();
      }
      state.textContent = version.watched ? `following, ${version.built.slice(11, 19)} UTC` : "no longer followed";
      if (version.watched) setTimeout(poll, POLL_MS);
    } catch {
      // A file that is being replaced.
      setTimeout(poll, POLL_MS);
    }
  }

  function receiveIndex() {
    const index = Dashboard.get("index");
    const isFirst = built === null;
    const isNew = built !== index.built;
    built = index.built;
    Results.refresh();
    if (!isNew) return;
    Dashboard.forget();
    show();
    if (isFirst && index.watched) poll();
  }

  Dashboard.onReceive((key) => key === "index" && receiveIndex());
  listViews();
  setTheme(remembered());
  arriveFirst();
  window.addEventListener("hashchange", goOn);
  window.addEventListener("pagehide", () => main.dataset.view && !arrival && Visits.end(main));
  document.getElementById("skip").addEventListener("click", () => main.focus());
  window.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.getElementById("search");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  });
  window.addEventListener(
    "error",
    (event) => {
      if (event.target && event.target.src && /data\/index\.js/.test(event.target.src))
        main.replaceChildren(element("p", {}, "data/index.js is missing: make dashboard builds it."));
    },
    true,
  );
})();
