// A grid of any number of small pictures, of which those in sight are in the page.

import { made } from "./ask.js";

const MARGIN = 2; // rows beyond what is in sight

export class Grid {
  // draw(cell, id): dress a cell. choose(index): somebody clicked it.
  constructor(element, pictures, draw, choose) {
    Object.assign(this, { element, pictures, draw, choose, ids: [], at: -1, cells: new Map() });
    this.sheet = made("div", "sheet");
    element.append(this.sheet);
    element.addEventListener("scroll", () => this.paint(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(element);
  }

  list(ids) {
    this.ids = ids;
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
    this.measure();
  }

  measure() {
    const style = getComputedStyle(this.element);
    const least = parseFloat(style.getPropertyValue("--cell"));
    this.columns = Math.max(1, Math.floor(this.element.clientWidth / least));
    this.side = Math.floor(this.element.clientWidth / this.columns);
    this.sheet.style.height = `${Math.ceil(this.ids.length / this.columns) * this.side}px`;
    this.paint();
    if (this.at >= 0) this.reveal();
  }

  go(index) {
    this.at = index;
    this.paint();
    this.reveal();
  }

  reveal() {
    const top = Math.floor(this.at / this.columns) * this.side;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + this.side / 2) this.element.scrollTop = top - this.side / 2;
    else if (top + 1.5 * this.side > scrollTop + clientHeight) this.element.scrollTop = top + 1.5 * this.side - clientHeight;
  }

  paint() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / this.side) - MARGIN) * this.columns;
    const last = Math.min(this.ids.length, (Math.ceil((scrollTop + clientHeight) / this.side) + MARGIN) * this.columns);
    for (const [index, cell] of this.cells) {
      if (index >= first && index < last) continue;
      cell.remove();
      this.cells.delete(index);
    }
    for (let index = last - 1; index >= first; index--) { // the picture that is asked for last comes first
      const cell = this.cells.get(index) || this.make(index);
      cell.style.width = cell.style.height = `${this.side}px`;
      cell.style.transform = `translate(${(index % this.columns) * this.side}px, ${Math.floor(index / this.columns) * this.side}px)`;
      cell.classList.toggle("at", index === this.at);
      this.draw(cell, this.ids[index]);
    }
  }

  make(index) {
    const image = made("img");
    image.alt = "";
    image.hidden = true;
    const cell = made("button", "cell", image, made("span", "badge"));
    cell.tabIndex = -1;
    cell.addEventListener("click", () => this.choose(index));
    this.pictures.get(this.ids[index]).then((address) => Object.assign(image, { src: address, hidden: false }), () => cell.classList.add("unread"));
    this.sheet.append(cell);
    this.cells.set(index, cell);
    return cell;
  }
}
