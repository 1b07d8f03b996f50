// Where somebody was at each visit of an address, for whoever goes back or forward to it.
"use strict";

const Visits = (() => {
  const STORED = "palimpsa-visits";
  const MOST = 50;
  const places = remembered();
  let own = null;

  function remembered() {
    try {
      return new Map(JSON.parse(sessionStorage.getItem(STORED)) || []);
    } catch {
      return new Map();
    }
  }

  // The place of the visit that begins; null where the address is visited for the first time.
  function begin() {
    const known = history.state && history.state.visit;
    own = known || `${Date.now()}-${Math.random()}`;
    if (!known) history.replaceState({ visit: own }, "");
    return (known && places.get(own)) || null;
  }

  function end(main) {
    places.delete(own);
    // From where the view begins: what stands above it may have grown meanwhile.
    places.set(own, { ...Place.read(main), top: window.scrollY - main.offsetTop, height: main.offsetHeight });
    if (places.size > MOST) places.delete(places.keys().next().value);
    try {
      sessionStorage.setItem(STORED, JSON.stringify([...places]));
    } catch {
      // A browser that keeps nothing for local files: places hold until the page is left.
    }
  }

  // A link to the address that is shown would take its visit from the browser's history.
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("a");
    const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (chosen && isPlain && chosen.href === location.href) event.preventDefault();
  });
  // The browser would scroll before the view is there.
  history.scrollRestoration = "manual";

  return { begin, end };
})();
