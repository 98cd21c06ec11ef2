/** Shows and hides the list of conversations: a column that stays, or, where the page is narrow, a drawer over it. */

const KEY = "readingroom.side";

const narrow = matchMedia("(max-width: 60rem)");
const side = document.getElementById("side");
const shade = document.getElementById("side-shade");
const stage = document.getElementById("stage");
const toggle = document.getElementById("side-toggle");

export class Drawer {
  #offered = false;
  #pulled = false; // the drawer of a narrow page

  constructor() {
    toggle.addEventListener("click", () => this.#toggle());
    shade.addEventListener("click", () => this.close());
    side.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#pulled) return;
      event.preventDefault();
      this.close();
      toggle.focus();
    });
    narrow.addEventListener("change", () => this.#draw());
  }

  /** Whether there is a list at all. */
  offer(is) {
    this.#offered = is;
    this.#draw();
  }

  /** Puts a drawer away; a column stays. */
  close() {
    this.#pulled = false;
    this.#draw();
  }

  #toggle() {
    if (narrow.matches) this.#pulled = !this.#pulled;
    else store(stored() === "closed" ? null : "closed");
    this.#draw();
    if (this.#pulled) side.querySelector("input").focus();
  }

  #draw() {
    const pulled = narrow.matches && this.#pulled;
    const shown = this.#offered && (narrow.matches ? pulled : stored() !== "closed");
    toggle.hidden = !this.#offered;
    side.hidden = !shown;
    shade.hidden = !(shown && pulled);
    stage.inert = Boolean(shown && pulled); // what lies below a drawer cannot be reached
    toggle.setAttribute("aria-expanded", String(shown));
  }
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function store(value) {
  try {
    if (value === null) localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, value);
  } catch {
    // not remembered
  }
}
