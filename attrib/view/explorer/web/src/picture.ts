// The graph as it is seen through a window: one drawing, on a canvas to be looked at or as SVG to be kept.

import { axesOf, LETTERS, type Axes, type View } from "./axes";
import { SHAPES, type Theme } from "./colours";
import type { Graph } from "./graph";
import type { Kind } from "./payload";
import type { Item } from "./layout";
import { fitted, widthOf } from "./letters";
import type { Line } from "./lines";
import type { Shown } from "./shown";
import type { State } from "./state";
import type { Box, Surface } from "./surfaces";
import { visible } from "./text";

export const RADIUS = 4.5;
const OUTPUTS: ReadonlySet<Kind> = new Set(["logit", "target"]);

/** What is looked at: an item by its own, or what a line joins. */
export interface Lit {
  item: Item | null;
  edge: number | null;
  matches: ReadonlySet<number>;
}

/** A graph, and through which window it is seen. */
export interface Seen {
  graph: Graph;
  shown: Shown;
  view: View;
}

export function draw(surface: Surface, seen: Seen, state: State, theme: Theme, lit: Lit): void {
  const { graph, shown, view } = seen;
  const selected = state.selected === null ? undefined : shown.byNode.get(state.selected);
  const focus = lit.item ?? selected ?? null;
  const axes = axesOf(graph, shown, view, focus?.group === null ? focus.nodes[0] : null);
  surface.within(axes.inner, IN_PLACE, () => rules(surface, axes, theme));
  let named: Named = { items: new Set(), boxes: [], outputs: [], joined: new Set() };
  surface.within(axes.inner, view, () => (named = drawGraph(surface, seen, state, theme, lit, selected ?? null)));
  const isFaint = (item: Item) => focus !== null && !named.joined.has(item) && !named.outputs.includes(item);
  nameBeside(surface, seen, axes.inner, named, (item) => (isFaint(item) ? theme.faint : theme.text), theme.ground);
  const colours = { usual: theme.text, lesser: theme.faint, "looked at": theme.chosen };
  for (const { text, at, size, anchor, tone } of axes.names) surface.text(text, at, colours[tone], size, anchor);
}

const IN_PLACE = { k: 1, x: 0, y: 0 };

function rules(surface: Surface, { inner, across, down }: Axes, theme: Theme): void {
  for (const x of across) surface.rule([x, inner.top], [x, inner.top + inner.height], theme.line);
  for (const y of down) surface.rule([inner.left, y], [inner.left + inner.width, y], theme.line);
}

function drawGraph(surface: Surface, seen: Seen, state: State, theme: Theme, lit: Lit, selected: Item | null): Named {
  const { graph, shown } = seen;
  const largest = shown.largest || 1;
  const stroke = (line: Line, opacity: number) => {
    const share = Math.abs(line.weight) / largest;
    const colour = line.weight > 0 ? theme.positive : theme.negative;
    surface.curve([line.from.x, line.from.y], [line.to.x, line.to.y], colour, 0.4 + 3 * Math.sqrt(share), opacity);
  };
  const focus = lit.item ?? selected;
  const near = focus ? shown.lines.joining(focus) : [];
  for (const line of shown.lines.first(state.drawn).reverse()) {
    stroke(line, focus ? 0.08 : 0.15 + 0.45 * Math.sqrt(Math.abs(line.weight) / largest));
  }
  for (const line of near.reverse()) stroke(line, 0.85);
  const chosen = lit.edge === null ? undefined : shown.lines.of(lit.edge);
  if (chosen) surface.curve([chosen.from.x, chosen.from.y], [chosen.to.x, chosen.to.y], theme.chosen, 4, 0.9);

  const joined = new Set(near.flatMap((line) => [line.from, line.to]));
  const pinned = new Set(state.pinned);
  for (const item of shown.items) {
    const isMatch = item.nodes.some((node) => lit.matches.has(node));
    const isPinned = item.nodes.some((node) => pinned.has(node));
    const isFaint = focus !== null && item !== focus && !joined.has(item) && !isMatch && !isPinned;
    const isChosen = item === selected || item === lit.item;
    mark(surface, seen, item, theme, isFaint, isChosen, isPinned, isMatch);
  }
  // what is looked at has its name first, then what is pinned or a group; outputs have theirs beside them
  const named: Item[][] = [[], []];
  const outputs: Item[][] = [[], []];
  for (const item of shown.items) {
    const isOutput = item.group === null && OUTPUTS.has(graph.kind(item.nodes[0]));
    if (item === focus) (isOutput ? outputs : named)[0].push(item);
    else if (item.group !== null || item.nodes.some((node) => pinned.has(node))) (isOutput ? outputs : named)[1].push(item);
  }
  return { items: new Set(named.flat()), boxes: drawNames(surface, seen, named.flat(), theme), outputs: outputs.flat(), joined };
}

/** A stretch of each axis. */
type Stretches = [number, number][];

/** What has its name already, and where the names lie on the picture; outputs that are to have theirs, and what is joined with what is looked at. */
interface Named {
  items: ReadonlySet<Item>;
  boxes: Stretches[];
  outputs: Item[];
  joined: ReadonlySet<Item>;
}

/** Pixels of the letters beside marks, of the least room for a part of a name and the most for all of it, and how many marks there may be for all to be named. */
const BESIDE = 10.5;
const LEAST_ROOM = 24;
const MOST_ROOM = 120;
const FEW = 150;

function overlap(one: Stretches, other: Stretches): boolean {
  return one.every(([begin, end], axis) => begin < other[axis][1] && other[axis][0] < end);
}

/** Kinds of which one node has its name, from which it is seen what all their marks say. */
const ONCE: ReadonlySet<Kind> = new Set(["position", "bias", "mlp", "error"]);

/**
 * Names to the right of outputs, and of other nodes where few are seen: each within the room that no other mark or name takes. Outputs that
 * are looked at or pinned go before all, and over marks.
 */
function nameBeside(surface: Surface, { graph, shown, view }: Seen, inner: Box, named: Named, colour: (item: Item) => string, ground: string): void {
  const { k } = view;
  const radius = Math.max(1.3 * RADIUS * k, 2 * SMALL);
  const right = inner.left + inner.width;
  const marks = shown.items
    .map((item) => ({ item, x: k * item.x + view.x, y: k * item.y + view.y }))
    .filter(({ x, y }) => x > inner.left - radius && x < right + radius && y > -radius && y < inner.height + radius);
  const isOutput = ({ item }: { item: Item }) => OUTPUTS.has(graph.kind(item.nodes[0]));
  const taken = named.boxes.map(([across, down]) => [across.map((x) => k * x + view.x), down.map((y) => k * y + view.y)] as Stretches);
  const first = new Set(named.outputs);
  const asked = [...marks.filter(({ item }) => first.has(item)), ...marks.filter((mark) => isOutput(mark) && !first.has(mark.item)), ...(marks.length <= FEW ? marks.filter((mark) => !isOutput(mark)) : [])];
  const told = new Set<Kind>();
  for (const { item, x, y } of asked) {
    const [node] = item.nodes;
    const kind = graph.kind(node);
    if (item.group !== null || named.items.has(item) || told.has(kind)) continue;
    const whole = graph.beside(node);
    const down: [number, number] = [y - 0.4 * BESIDE, y + 0.6 * BESIDE];
    const left = x + radius + 2;
    if (left < inner.left || down[0] < 0 || down[1] > inner.height) continue;
    let end = Math.min(right, left + MOST_ROOM);
    for (const other of first.has(item) ? [] : marks) {
      if (other.item !== item && other.x + radius > left && Math.abs(other.y - y) < radius + 0.4 * BESIDE) end = Math.min(end, other.x - radius - 2);
    }
    for (const box of taken) if (overlap([[left, end], down], box)) end = Math.min(end, box[0][0] - 2);
    const name = fitted(whole, BESIDE, end - left);
    const isCut = name.endsWith("…");
    // of a number or a kind a part would say something else
    if (!name || (isCut && (end - left < LEAST_ROOM || whole !== (graph.name(node) ?? graph.explanation(node)?.[0])))) continue;
    if (ONCE.has(kind)) told.add(kind);
    taken.push([[left, left + widthOf(name, BESIDE)], down]);
    surface.text(name, [left, y + 0.35 * BESIDE], colour(item), BESIDE, "start", ground);
  }
}

/** Names over items or else below them, in letters of one size at every scale; of those that would overlap the first. */
function drawNames(surface: Surface, { graph, shown, view }: Seen, items: Item[], theme: Theme): Stretches[] {
  const taken: Stretches[] = [];
  const size = LETTERS / view.k;
  for (const item of items) {
    const [node] = item.nodes;
    const name = item.group !== null ? visible(item.group, 24) : visible(graph.explanation(node)?.[0] ?? graph.short(node), 32);
    const half = widthOf(name, LETTERS) / view.k / 2;
    const x = Math.max(half, Math.min(item.x, shown.width - half)); // moved aside where it would leave the picture
    const away = Math.max(1.6 * RADIUS, (2.5 * SMALL) / view.k) + 0.15 * size;
    for (const y of [item.y - away, item.y + away + 0.7 * size]) {
      if (y < 0.75 * size) continue; // its letters would leave the picture
      const box: Stretches = [[x - half, x + half], [y - 0.75 * size, y + 0.25 * size]];
      if (taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      surface.text(name, [x, y], theme.text, size, "middle", theme.ground);
      break;
    }
  }
  return taken;
}

function mark(
  surface: Surface, { graph, view }: Seen, item: Item, theme: Theme, isFaint: boolean, isChosen: boolean, isPinned: boolean, isMatch: boolean,
): void {
  const { shape, light, dark } = SHAPES[graph.kind(item.nodes[0])];
  const fill = isFaint ? theme.line : theme.dark ? dark : light;
  const { x, y } = item;
  const isMarked = isChosen || isPinned || isMatch || item.group !== null;
  if (!isMarked && RADIUS * view.k < SMALL) {
    const half = Math.max(0.9 * RADIUS, DOT / view.k);
    surface.dot([x - half, y - half], 2 * half, fill);
    return;
  }
  const edge = isChosen ? theme.chosen : isMatch ? theme.positive : isPinned ? theme.text : theme.ground;
  // what is marked is so many pixels large at least
  const larger = isMarked ? Math.max(1, 2 * SMALL / (RADIUS * view.k)) : 1;
  const width = (isChosen || isPinned || isMatch ? 2 : 0.8) * larger;
  const radius = (item.group !== null ? RADIUS * 1.6 : isChosen || isPinned ? RADIUS * 1.25 : RADIUS) * larger;
  const points = OUTLINES[item.group !== null ? "square" : shape];
  surface.shape(points && points.map(([dx, dy]) => [x + dx * radius, y + dy * radius]), [x, y], radius, fill, edge, width);
}

/** Pixels of the radius below which a mark's shape is not seen, and a square is drawn for it; and of half of the smallest square. */
const SMALL = 1.5;
const DOT = 1;

const OUTLINES: Record<string, [number, number][] | null> = {
  circle: null,
  square: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
  diamond: [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
  triangle: [[0, -1.1], [1.1, 0.9], [-1.1, 0.9]],
  cross: [[-1, -0.4], [-0.4, -0.4], [-0.4, -1], [0.4, -1], [0.4, -0.4], [1, -0.4], [1, 0.4], [0.4, 0.4], [0.4, 1], [-0.4, 1], [-0.4, 0.4], [-1, 0.4]],
};
