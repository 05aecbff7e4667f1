"use strict";
/* The map: points on a canvas that can be moved, zoomed and pointed at. It knows places, colours, shapes and
   pictures of points by their number, and nothing of what they are.

   const map = new PointMap(box, {hover(i, x, y), choose(i)});     // i: a point's number, or -1
   map.look({x, y, colour, palette, shape, state, picture});       // what is drawn; state: HIDDEN, FAINT or FULL
   map.mark(selected, [others]);                                   // a ring, and lines to others */

const HIDDEN = 0, FAINT = 1, FULL = 2;
const REACH = 12; // pixels from a point that still mean it
const PICTURES = 150; // points in view: with so few or fewer, pictures are drawn where they have room
const PICTURE = 44; // pixels of a picture's longer side
const SHAPES = [
  (path, x, y, r) => { path.moveTo(x + r, y); path.arc(x, y, r, 0, 2 * Math.PI); },
  (path, x, y, r) => path.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r),
  (path, x, y, r) => { path.moveTo(x, y - 1.3 * r); path.lineTo(x + 1.2 * r, y + r); path.lineTo(x - 1.2 * r, y + r); path.closePath(); },
];

class PointMap {
  constructor(box, on) {
    this.box = box;
    this.on = on;
    this.points = box.querySelector("#points");
    this.marks = box.querySelector("#marks");
    this.images = new Map();
    this.fingers = new Map();
    this.drawn = new Set();
    this.selected = this.hovered = -1;
    this.others = [];
    this.withPictures = true;
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(box);
    this.listen();
  }

  look(what) {
    const fresh = what.x && what.x !== this.x;
    Object.assign(this, what);
    if (fresh) this.fit();
    this.redraw();
  }

  mark(selected, others) {
    this.selected = selected;
    this.others = others;
    this.redraw();
  }

  // ---- places ----

  resize() {
    const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = this.box;
    const grown = clientWidth / (this.width || clientWidth);
    [this.width, this.height, this.ratio] = [clientWidth, clientHeight, ratio];
    for (const canvas of [this.points, this.marks]) {
      canvas.width = Math.round(clientWidth * ratio);
      canvas.height = Math.round(clientHeight * ratio);
    }
    if (this.view && this.moved) this.view.scale *= grown;
    else if (this.x) this.fit();
    this.redraw();
  }

  fit() {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < this.x.length; i++) {
      if (this.x[i] === null) continue;
      left = Math.min(left, this.x[i]);
      right = Math.max(right, this.x[i]);
      low = Math.min(low, this.y[i]);
      high = Math.max(high, this.y[i]);
    }
    const margin = 2 * (this.width < 500 ? 18 : 30);
    const wide = (this.width - margin) / (right - left || 1), tall = (this.height - margin) / (high - low || 1);
    this.whole = Math.min(wide, tall);
    this.view = { x: (left + right) / 2, y: (low + high) / 2, scale: this.whole };
    this.moved = false;
    this.redraw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const { view } = this, scale = Math.max(this.whole / 2, Math.min(this.whole * 500, view.scale * factor));
    // what is under (x, y) stays there
    view.x += (x - this.width / 2) * (1 / view.scale - 1 / scale);
    view.y -= (y - this.height / 2) * (1 / view.scale - 1 / scale);
    view.scale = scale;
    this.moved = true;
    this.redraw();
  }

  left(i) { return (this.x[i] - this.view.x) * this.view.scale + this.width / 2; }

  top(i) { return this.height / 2 - (this.y[i] - this.view.y) * this.view.scale; }

  inView(i) {
    const x = this.left(i), y = this.top(i);
    return x > -PICTURE && y > -PICTURE && x < this.width + PICTURE && y < this.height + PICTURE;
  }

  /* The number of the point at a place of the canvas, or -1: of those drawn in full, the nearest; a picture is near as a whole. */
  at(x, y, reach = REACH) {
    let best = reach, found = -1;
    for (let i = 0; i < this.x.length; i++) {
      if (this.state[i] !== FULL) continue;
      const far = Math.hypot(this.left(i) - x, this.top(i) - y) - (this.drawn.has(i) ? PICTURE / 2 : 0);
      if (far < best) [best, found] = [far, i];
    }
    return found;
  }

  /* Bring a point into view where it is not. */
  reveal(i) {
    if (this.x[i] === null || !this.width) return;
    const x = this.left(i), y = this.top(i);
    if (x > 0 && y > 0 && x < this.width && y < this.height) return;
    [this.view.x, this.view.y, this.moved] = [this.x[i], this.y[i], true];
    this.redraw();
  }

  // ---- drawing ----

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.x && this.width) {
        this.drawPoints();
        this.drawMarks();
      }
    });
  }

  radius() {
    const many = Math.max(1.8, Math.min(5, 140 / Math.sqrt(this.x.length)));
    return many * Math.min(1, Math.sqrt(this.width / 700)) * Math.max(1, Math.min(2.2, (this.view.scale / this.whole) ** 0.3));
  }

  /* Half of what is drawn of a point, in pixels. */
  reach(i) { return this.drawn.has(i) ? PICTURE / 2 : this.radius(); }

  begin(canvas) {
    const pen = canvas.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    return pen;
  }

  drawPoints() {
    const pen = this.begin(this.points), radius = this.radius(), groups = new Map(), near = [];
    for (let i = 0; i < this.x.length; i++) {
      if (this.state[i] === HIDDEN || !this.inView(i)) continue;
      if (this.state[i] === FULL) near.push(i);
      const group = this.state[i] === FAINT ? -1 - this.shape[i] : this.colour[i] * SHAPES.length + this.shape[i];
      if (!groups.has(group)) groups.set(group, new Path2D());
      SHAPES[this.shape[i]](groups.get(group), this.left(i), this.top(i), radius);
    }
    // those that do not match lie below
    for (const [group, path] of [...groups].sort((one, other) => one[0] - other[0])) {
      pen.globalAlpha = group < 0 ? 0.18 : 0.85;
      pen.fillStyle = group < 0 ? this.faint : this.palette[Math.floor(group / SHAPES.length)];
      pen.fill(path);
    }
    pen.globalAlpha = 1;
    const shown = this.withPictures && near.length <= PICTURES && near.some((i) => this.picture[i] !== null);
    this.drawn = new Set(shown ? this.spaced(near) : []);
    for (const i of this.drawn) this.drawPicture(pen, i);
  }

  /* Of some points those whose pictures do not cover each other. */
  spaced(near) {
    const kept = [];
    for (const i of [this.selected, ...near]) {
      if (i < 0 || this.picture[i] === null) continue;
      const free = (k) => Math.max(Math.abs(this.left(k) - this.left(i)), Math.abs(this.top(k) - this.top(i))) > PICTURE + 4;
      if (kept.every(free)) kept.push(i);
    }
    return kept;
  }

  drawPicture(pen, i) {
    const image = this.image(i);
    if (!image || !image.naturalWidth) return;
    const factor = PICTURE / Math.max(image.naturalWidth, image.naturalHeight);
    const width = image.naturalWidth * factor, height = image.naturalHeight * factor;
    const x = this.left(i) - width / 2, y = this.top(i) - height / 2;
    pen.imageSmoothingEnabled = factor < 1;
    pen.drawImage(image, x, y, width, height);
    pen.lineWidth = 2;
    pen.strokeStyle = this.palette[this.colour[i]];
    pen.strokeRect(x, y, width, height);
  }

  /* The picture of a point once it is loaded; a few hundred are kept. */
  image(i) {
    if (this.picture[i] === null) return null;
    if (!this.images.has(i)) {
      if (this.images.size > 4 * PICTURES) this.images.clear();
      const image = new Image();
      image.onload = () => this.redraw();
      image.src = this.picture[i];
      this.images.set(i, image);
    }
    return this.images.get(i);
  }

  drawMarks() {
    const pen = this.begin(this.marks);
    const ring = (i, width) => {
      pen.beginPath();
      pen.arc(this.left(i), this.top(i), this.reach(i) + 4, 0, 2 * Math.PI);
      pen.lineWidth = width;
      pen.stroke();
    };
    pen.strokeStyle = this.ink;
    if (this.selected >= 0 && this.x[this.selected] !== null) {
      pen.globalAlpha = 0.45;
      pen.lineWidth = 1;
      for (const other of this.others) {
        if (this.x[other] === null) continue;
        pen.beginPath();
        pen.moveTo(this.left(this.selected), this.top(this.selected));
        pen.lineTo(this.left(other), this.top(other));
        pen.stroke();
        ring(other, 1);
      }
      pen.globalAlpha = 1;
      ring(this.selected, 3);
    }
    if (this.hovered >= 0) ring(this.hovered, 2);
  }

  // ---- the pointer ----

  listen() {
    const { points } = this, place = (event) => {
      const box = points.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    points.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event));
    }, { passive: false });
    points.addEventListener("pointerdown", (event) => {
      points.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, place(event));
      this.dragged = this.fingers.size > 1;
    });
    points.addEventListener("pointermove", (event) => {
      const [x, y] = place(event), before = this.fingers.get(event.pointerId);
      if (!before) return this.hover(event.pointerType === "touch" ? -1 : this.at(x, y), event);
      if (!this.dragged && Math.hypot(x - before[0], y - before[1]) < 4) return;
      this.dragged = true;
      points.classList.add("moving");
      this.hover(-1, event);
      this.drag(event.pointerId, x, y);
    });
    const lift = (event) => {
      const tapped = this.fingers.delete(event.pointerId) && !this.dragged && event.type === "pointerup";
      if (!this.fingers.size) points.classList.remove("moving");
      if (tapped) this.on.choose(this.at(...place(event), event.pointerType === "touch" ? 2 * REACH : REACH));
    };
    points.addEventListener("pointerup", lift);
    points.addEventListener("pointercancel", lift);
    points.addEventListener("pointerleave", (event) => this.hover(-1, event));
  }

  hover(i, event = { clientX: 0, clientY: 0 }) {
    this.points.classList.toggle("over", i >= 0);
    if (i !== this.hovered) {
      this.hovered = i;
      this.redraw();
    }
    this.on.hover(i, event.clientX, event.clientY);
  }

  /* One finger moves the map, two also zoom it. */
  drag(finger, x, y) {
    const [beforeX, beforeY] = this.fingers.get(finger);
    const still = [...this.fingers].find(([other]) => other !== finger)?.[1];
    const share = still ? 0.5 : 1;
    this.view.x -= share * (x - beforeX) / this.view.scale;
    this.view.y += share * (y - beforeY) / this.view.scale;
    this.fingers.set(finger, [x, y]);
    if (still) {
      const far = (fromX, fromY) => Math.max(10, Math.hypot(fromX - still[0], fromY - still[1]));
      this.zoom(far(x, y) / far(beforeX, beforeY), (x + still[0]) / 2, (y + still[1]) / 2);
    }
    this.moved = true;
    this.redraw();
  }
}
