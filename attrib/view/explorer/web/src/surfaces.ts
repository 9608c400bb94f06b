// What a picture is drawn on: a canvas to be looked at, or SVG to be kept.

import { FAMILY, font } from "./letters";

export interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Scaled by k, then moved. */
export interface Moved {
  k: number;
  x: number;
  y: number;
}

export type Anchor = "start" | "middle" | "end";

export interface Surface {
  /** Draw within a box alone, all that `drawing` draws scaled by k and then moved. */
  within(box: Box, moved: Moved, drawing: () => void): void;
  curve(from: [number, number], to: [number, number], colour: string, width: number, opacity: number): void;
  shape(points: [number, number][] | null, at: [number, number], radius: number, fill: string, edge: string, width: number): void;
  /** A square from its corner, without an edge. */
  dot(corner: [number, number], side: number, fill: string): void;
  rule(from: [number, number], to: [number, number], colour: string): void;
  /** `ground` parts the letters from what lies behind them; `turned`, they go upwards. */
  text(text: string, at: [number, number], colour: string, size: number, anchor: Anchor, ground?: string, turned?: boolean): void;
  /** A picture of pixels, stretched over a box; its pixels are squares unless it is smooth. */
  image(source: HTMLCanvasElement, box: Box, isSmooth: boolean): void;
  /** The edge of a box. */
  frame(box: Box, colour: string): void;
}

export class CanvasSurface implements Surface {
  constructor(private readonly context: CanvasRenderingContext2D) {}

  within({ left, top, width, height }: Box, { k, x, y }: Moved, drawing: () => void): void {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.translate(x, y);
    context.scale(k, k);
    drawing();
    context.restore();
  }

  curve([x, y]: [number, number], [u, v]: [number, number], colour: string, width: number, opacity: number): void {
    const { context } = this;
    context.globalAlpha = opacity;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x, y);
    context.bezierCurveTo(x, y + (v - y) / 3, u, v - (v - y) / 3, u, v);
    context.stroke();
    context.globalAlpha = 1;
  }

  shape(points: [number, number][] | null, [x, y]: [number, number], radius: number, fill: string, edge: string, width: number): void {
    const { context } = this;
    context.beginPath();
    if (points) {
      points.forEach(([px, py], at) => (at ? context.lineTo(px, py) : context.moveTo(px, py)));
      context.closePath();
    } else context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = fill;
    context.fill();
    context.strokeStyle = edge;
    context.lineWidth = width;
    context.stroke();
  }

  dot([x, y]: [number, number], side: number, fill: string): void {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, side, side);
  }

  rule([x, y]: [number, number], [u, v]: [number, number], colour: string): void {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = 0.5;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(u, v);
    context.stroke();
  }

  text(text: string, [x, y]: [number, number], colour: string, size: number, anchor: Anchor, ground?: string, turned = false): void {
    const { context } = this;
    if (turned) {
      context.save();
      context.translate(x, y);
      context.rotate(-Math.PI / 2);
      this.text(text, [0, 0], colour, size, anchor, ground);
      context.restore();
      return;
    }
    context.font = font(size);
    context.textAlign = anchor === "middle" ? "center" : anchor;
    if (ground !== undefined) {
      context.strokeStyle = ground;
      context.lineWidth = HALO * size;
      context.lineJoin = "round";
      context.strokeText(text, x, y);
    }
    context.fillStyle = colour;
    context.fillText(text, x, y);
  }

  image(source: HTMLCanvasElement, { left, top, width, height }: Box, isSmooth: boolean): void {
    this.context.imageSmoothingEnabled = isSmooth;
    this.context.drawImage(source, left, top, width, height);
  }

  frame({ left, top, width, height }: Box, colour: string): void {
    this.context.strokeStyle = colour;
    this.context.lineWidth = 1;
    this.context.strokeRect(left, top, width, height);
  }
}

/** The same drawing as SVG, built as elements, so that no string is ever read as markup. */
export class SvgSurface implements Surface {
  readonly root: SVGSVGElement;
  /** Where elements are added. */
  private inside: SVGElement;
  private clips = 0;

  constructor(width: number, height: number, ground: string, title: string) {
    this.root = this.element("svg", { viewBox: `0 0 ${round(width)} ${round(height)}`, width: round(width), height: round(height) });
    this.inside = this.root;
    const named = this.element("title", {});
    named.textContent = title;
    this.root.append(named, this.element("rect", { width: round(width), height: round(height), fill: ground }));
  }

  private element<Name extends keyof SVGElementTagNameMap>(name: Name, attributes: Record<string, string | number>): SVGElementTagNameMap[Name] {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
    return made;
  }

  private add(name: keyof SVGElementTagNameMap, attributes: Record<string, string | number>, text = ""): void {
    const made = this.element(name, attributes);
    made.textContent = text;
    this.inside.append(made);
  }

  within(box: Box, { k, x, y }: Moved, drawing: () => void): void {
    const id = `within${this.clips++}`;
    const clip = this.element("clipPath", { id });
    clip.append(this.element("rect", placed(box)));
    const clipped = this.element("g", { "clip-path": `url(#${id})` });
    const moved = this.element("g", { transform: `translate(${round(x)} ${round(y)}) scale(${k})` });
    clipped.append(moved);
    this.inside.append(clip, clipped);
    const outside = this.inside;
    this.inside = moved;
    drawing();
    this.inside = outside;
  }

  curve([x, y]: [number, number], [u, v]: [number, number], colour: string, width: number, opacity: number): void {
    const third = (v - y) / 3;
    const d = `M${round(x)} ${round(y)}C${round(x)} ${round(y + third)} ${round(u)} ${round(v - third)} ${round(u)} ${round(v)}`;
    this.add("path", { d, fill: "none", stroke: colour, "stroke-width": round(width), "stroke-opacity": round(opacity) });
  }

  shape(points: [number, number][] | null, [x, y]: [number, number], radius: number, fill: string, edge: string, width: number): void {
    const paint = { fill, stroke: edge, "stroke-width": round(width) };
    if (points) this.add("polygon", { points: points.map((each) => each.map(round).join(",")).join(" "), ...paint });
    else this.add("circle", { cx: round(x), cy: round(y), r: round(radius), ...paint });
  }

  dot([x, y]: [number, number], side: number, fill: string): void {
    this.add("rect", { x: round(x), y: round(y), width: round(side), height: round(side), fill });
  }

  rule([x, y]: [number, number], [u, v]: [number, number], colour: string): void {
    this.add("line", { x1: round(x), y1: round(y), x2: round(u), y2: round(v), stroke: colour, "stroke-width": 0.5 });
  }

  text(text: string, [x, y]: [number, number], colour: string, size: number, anchor: Anchor, ground?: string, turned = false): void {
    const way: Record<string, string> = turned ? { transform: `rotate(-90 ${round(x)} ${round(y)})` } : {};
    const letters = { ...way, x: round(x), y: round(y), fill: colour, "font-size": round(size), "font-family": FAMILY, "text-anchor": anchor };
    const halo = { stroke: ground!, "stroke-width": round(HALO * size), "stroke-linejoin": "round", "paint-order": "stroke" };
    this.add("text", ground === undefined ? letters : { ...letters, ...halo }, text);
  }

  image(source: HTMLCanvasElement, box: Box, isSmooth: boolean): void {
    const drawn = { "image-rendering": isSmooth ? "auto" : "pixelated", preserveAspectRatio: "none" };
    this.add("image", { href: source.toDataURL(), ...placed(box), ...drawn });
  }

  frame(box: Box, colour: string): void {
    this.add("rect", { ...placed(box), fill: "none", stroke: colour });
  }
}

/** The width of the ground around letters, of their size. */
const HALO = 0.25;

function placed({ left, top, width, height }: Box): Record<string, number> {
  return { x: round(left), y: round(top), width: round(width), height: round(height) };
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
