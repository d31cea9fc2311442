// Hands: keyboard and touch, turned into the set of controls that are held.

const ARROWS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space" };
const NOTHING = JSON.stringify([[], false]);
const ON_PAD = { left: "←", right: "→", up: "↑", down: "↓" };

export class Hands {
  /** `send(message, event)` is called whenever what is held changes; `once` maps further keys to what they do. */
  constructor(controls, send, once) {
    this.send = send;
    this.once = once;
    this.byKey = new Map(controls.flatMap(({ name, keys }) => keys.map((key) => [key, name])));
    this.keys = new Map(); // controls of the keys that are down, by where the key is: shift changes what it is called
    this.touched = new Set(); // controls under a finger
    this.fineKey = this.fineButton = false;
    this.last = NOTHING;
    this.buttons = new Map();
    for (const control of controls) this.addButton(control);
    addEventListener("keydown", (event) => this.down(event));
    addEventListener("keyup", (event) => this.up(event));
    addEventListener("blur", (event) => this.letGo(event));
    document.addEventListener("visibilitychange", (event) => document.hidden && this.letGo(event));
  }

  addButton({ name, label }) {
    let button = document.querySelector(`[data-hold="${name}"]`);
    if (!button) {
      button = document.createElement("button");
      button.textContent = ON_PAD[name] ?? label;
      button.setAttribute("aria-label", label);
      if (ON_PAD[name]) button.className = name;
      document.getElementById(ON_PAD[name] ? "pad" : "more").append(button);
    }
    this.buttons.set(name, button);
    const hold = (on) => (event) => {
      if (on) button.setPointerCapture(event.pointerId);
      this.touched[on ? "add" : "delete"](name);
      this.tell(event);
    };
    button.addEventListener("pointerdown", hold(true));
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(kind, hold(false));
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch
    // Without a pointer: from the keyboard, or by a screen reader.
    button.addEventListener("click", (event) => event.detail === 0 && this.tap(name, event));
  }

  /** Held for no time: one step. */
  tap(name, event) {
    this.touched.add(name);
    this.tell(event);
    this.touched.delete(name);
    this.tell(event);
  }

  setFine(on, event) {
    this.fineButton = on;
    this.tell(event);
  }

  down(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = keyOf(event);
    if (key === "Shift") {
      this.fineKey = true;
      return this.tell(event);
    }
    // A button that was reached by keyboard keeps the keys that press it.
    if ((key === " " || key === "Enter") && event.target.closest("button, summary")) return;
    if (/^(Arrow|Page)/.test(key) && event.target.closest("input")) return; // and so does the slider
    if (this.byKey.has(key)) {
      event.preventDefault();
      this.keys.set(event.code || key, this.byKey.get(key));
      this.tell(event);
    } else if (this.once[key]) {
      event.preventDefault();
      if (!event.repeat) this.once[key](event);
    }
  }

  up(event) {
    const key = keyOf(event);
    if (key === "Shift") this.fineKey = false;
    if (key === "Meta") this.keys.clear(); // macOS does not say which keys were let go meanwhile
    this.keys.delete(event.code || key);
    this.tell(event);
  }

  letGo(event) {
    this.keys.clear();
    this.touched.clear();
    this.fineKey = false;
    this.tell(event);
  }

  /** Forget what is held, without a word: somebody else drives. */
  drop() {
    this.last = NOTHING;
    this.letGo(null);
  }

  tell(event) {
    const held = [...new Set([...this.keys.values(), ...this.touched])].sort();
    for (const [name, button] of this.buttons) button.classList.toggle("held", held.includes(name));
    const fine = this.fineKey || this.fineButton;
    const now = JSON.stringify([held, held.length ? fine : false]);
    if (now === this.last) return;
    this.last = now;
    this.send({ type: "keys", held, fine }, event);
  }
}

function keyOf(event) {
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

/** Fill a <dl> with what the keys do: `rows` are [keys, meaning]. */
export function explain(list, rows) {
  for (const [keys, meaning] of rows) {
    const [row, dt, dd] = ["div", "dt", "dd"].map((name) => document.createElement(name));
    for (const key of keys) {
      const kbd = document.createElement("kbd");
      kbd.textContent = ARROWS[key] ?? key;
      dt.append(kbd);
    }
    dd.textContent = meaning;
    row.append(dt, dd);
    list.append(row);
  }
}
