// The graph as a picture: one drawing, on a canvas to be looked at or as SVG to be kept.

import { SHAPES, type Theme } from "./colours";
import type { Graph } from "./graph";
import type { Kind } from "./payload";
import type { Item } from "./layout";
import type { Line, Shown } from "./shown";
import type { State } from "./state";
import { visible } from "./text";

export interface Surface {
  curve(from: [number, number], to: [number, number], colour: string, width: number, opacity: number): void;
  shape(points: [number, number][] | null, at: [number, number], radius: number, fill: string, edge: string, width: number): void;
  rule(from: [number, number], to: [number, number], colour: string): void;
  text(text: string, at: [number, number], colour: string, size: number, anchor: "start" | "middle" | "end"): void;
}

export const RADIUS = 4.5;
const OUTPUTS: ReadonlySet<Kind> = new Set(["logit", "target"]);

/** What is looked at: an item by its own, or what a line joins. */
export interface Lit {
  item: Item | null;
  edge: number | null;
  matches: ReadonlySet<number>;
}

export function draw(surface: Surface, graph: Graph, shown: Shown, state: State, theme: Theme, lit: Lit): void {
  frame(surface, graph, shown, theme);
  const largest = shown.largest || 1;
  const stroke = (line: Line, opacity: number) => {
    const share = Math.abs(line.weight) / largest;
    const colour = line.weight > 0 ? theme.positive : theme.negative;
    surface.curve([line.from.x, line.from.y], [line.to.x, line.to.y], colour, 0.4 + 3 * Math.sqrt(share), opacity);
  };
  const selected = state.selected === null ? undefined : shown.byNode.get(state.selected);
  const focus = lit.item ?? selected ?? null;
  const near: Line[] = [];
  for (let at = Math.min(shown.lines.length, state.drawn) - 1; at >= 0; at--) {
    const line = shown.lines[at];
    stroke(line, focus ? 0.08 : 0.15 + 0.45 * Math.sqrt(Math.abs(line.weight) / largest));
  }
  if (focus) for (const line of shown.lines) if (line.from === focus || line.to === focus) near.push(line);
  for (const line of near.reverse()) stroke(line, 0.85);
  const chosen = lit.edge === null ? undefined : shown.lines.find((line) => line.edge === lit.edge);
  if (chosen) surface.curve([chosen.from.x, chosen.from.y], [chosen.to.x, chosen.to.y], theme.chosen, 4, 0.9);

  const joined = new Set(near.flatMap((line) => [line.from, line.to]));
  const pinned = new Set(state.pinned);
  for (const item of shown.items) {
    const isMatch = item.nodes.some((node) => lit.matches.has(node));
    const isPinned = item.nodes.some((node) => pinned.has(node));
    const isFaint = focus !== null && item !== focus && !joined.has(item) && !isMatch && !isPinned;
    mark(surface, graph, item, theme, isFaint, item === selected || item === lit.item, isPinned, isMatch);
  }
  for (const item of shown.items) {
    const isPinned = item.nodes.some((node) => pinned.has(node));
    if (item.group !== null) over(surface, shown, item, visible(item.group, 24), 9, 10, theme);
    else if (isPinned || item === focus || (joined.has(item) && OUTPUTS.has(graph.kind(item.nodes[0])))) {
      const [node] = item.nodes;
      const named = graph.explanation(node)?.[0] ?? graph.short(node);
      over(surface, shown, item, visible(named, 32), 8, 9, theme);
    }
  }
}

/** A name over an item, moved aside where it would leave the picture. */
function over(surface: Surface, shown: Shown, item: Item, name: string, above: number, size: number, theme: Theme): void {
  const half = 0.28 * size * name.length; // about: only a canvas could measure it, and the picture may be SVG
  const x = Math.max(half, Math.min(item.x, shown.width - half));
  surface.text(name, [x, item.y - above], theme.text, size, "middle");
}

function frame(surface: Surface, graph: Graph, shown: Shown, theme: Theme): void {
  for (const { level, y, height } of shown.rows) {
    surface.rule([0, y + height], [shown.width, y + height], theme.line);
    surface.text(visible(graph.header.levels[level], 10), [6, y + height / 2 + 4], theme.faint, 11, "start");
  }
  for (const { x } of shown.columns) surface.rule([x, 0], [x, shown.height], theme.line);
  graph.header.tokens.forEach((string, position) => {
    const { x, width } = shown.columns[graph.columnAt(position)];
    const longest = Math.max(3, Math.floor(width / 6));
    const token = visible(string, longest);
    surface.text(token, [x + width / 2, shown.height + 12], theme.text, 10, "middle");
    surface.text(String(position), [x + width / 2, shown.height + 25], theme.faint, 9, "middle");
  });
}

function mark(
  surface: Surface, graph: Graph, item: Item, theme: Theme, isFaint: boolean, isChosen: boolean, isPinned: boolean, isMatch: boolean,
): void {
  const kind = graph.kind(item.nodes[0]);
  const { shape, light, dark } = SHAPES[kind];
  const fill = isFaint ? theme.line : theme.dark ? dark : light;
  const edge = isChosen ? theme.chosen : isMatch ? theme.positive : isPinned ? theme.text : theme.ground;
  const width = isChosen || isPinned || isMatch ? 2 : 0.8;
  const radius = item.group !== null ? RADIUS * 1.6 : isChosen || isPinned ? RADIUS * 1.25 : RADIUS;
  const { x, y } = item;
  const points = OUTLINES[item.group !== null ? "square" : shape];
  surface.shape(points && points.map(([dx, dy]) => [x + dx * radius, y + dy * radius]), [x, y], radius, fill, edge, width);
}

const OUTLINES: Record<string, [number, number][] | null> = {
  circle: null,
  square: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
  diamond: [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
  triangle: [[0, -1.1], [1.1, 0.9], [-1.1, 0.9]],
  cross: [[-1, -0.4], [-0.4, -0.4], [-0.4, -1], [0.4, -1], [0.4, -0.4], [1, -0.4], [1, 0.4], [0.4, 0.4], [0.4, 1], [-0.4, 1], [-0.4, 0.4], [-1, 0.4]],
};

export class CanvasSurface implements Surface {
  constructor(private readonly context: CanvasRenderingContext2D) {}

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

  rule([x, y]: [number, number], [u, v]: [number, number], colour: string): void {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = 0.5;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(u, v);
    context.stroke();
  }

  text(text: string, [x, y]: [number, number], colour: string, size: number, anchor: "start" | "middle" | "end"): void {
    const { context } = this;
    context.fillStyle = colour;
    context.font = `${size}px system-ui, sans-serif`;
    context.textAlign = anchor === "middle" ? "center" : anchor;
    context.fillText(text, x, y);
  }
}

/** Another surface, moved to the right. */
export class ShiftedSurface implements Surface {
  constructor(
    private readonly on: Surface,
    private readonly left: number,
  ) {}

  private moved([x, y]: [number, number]): [number, number] {
    return [x + this.left, y];
  }

  curve(from: [number, number], to: [number, number], colour: string, width: number, opacity: number): void {
    this.on.curve(this.moved(from), this.moved(to), colour, width, opacity);
  }

  shape(points: [number, number][] | null, at: [number, number], radius: number, fill: string, edge: string, width: number): void {
    this.on.shape(points && points.map((each) => this.moved(each)), this.moved(at), radius, fill, edge, width);
  }

  rule(from: [number, number], to: [number, number], colour: string): void {
    this.on.rule(this.moved(from), this.moved(to), colour);
  }

  text(text: string, at: [number, number], colour: string, size: number, anchor: "start" | "middle" | "end"): void {
    this.on.text(text, this.moved(at), colour, size, anchor);
  }
}

/** The same drawing as SVG, built as elements, so that no string is ever read as markup. */
export class SvgSurface implements Surface {
  readonly root: SVGSVGElement;

  constructor(width: number, height: number, ground: string, title: string) {
    this.root = this.element("svg", { viewBox: `0 0 ${round(width)} ${round(height)}`, width: round(width), height: round(height) });
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
    this.root.append(made);
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

  rule([x, y]: [number, number], [u, v]: [number, number], colour: string): void {
    this.add("line", { x1: round(x), y1: round(y), x2: round(u), y2: round(v), stroke: colour, "stroke-width": 0.5 });
  }

  text(text: string, [x, y]: [number, number], colour: string, size: number, anchor: "start" | "middle" | "end"): void {
    this.add("text", { x: round(x), y: round(y), fill: colour, "font-size": size, "font-family": "system-ui, sans-serif", "text-anchor": anchor }, text);
  }
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
