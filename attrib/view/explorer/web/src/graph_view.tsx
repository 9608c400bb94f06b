// The graph on a canvas: what lies under the pointer is named, what is clicked or walked to is chosen.

import { useLayoutEffect, useState } from "preact/hooks";
import type { Theme } from "./colours";
import { FOOT, innerOf, sideOf, type View } from "./axes";
import { draw, RADIUS, type Lit } from "./picture";
import type { Signal } from "@preact/signals";
import type { ZoomTransform } from "d3-zoom";
import { Hint } from "./hint";
import type { Item } from "./layout";
import type { Line } from "./lines";
import type { Scene, Shown } from "./shown";
import type { State } from "./state";
import { CanvasSurface } from "./surfaces";
import { number, signed, visible } from "./text";
import { isBrowsers, useZoomed, WAYS } from "./zoomed";

interface Props {
  scene: Scene;
  shown: Shown;
  chosen: State;
  theme: Theme;
  matches: ReadonlySet<number>;
  id?: string;
  /** What the graph is called, where there are several. */
  name?: string;
  /** How views that move together are moved. */
  moved?: Signal<ZoomTransform | null>;
  /** Where it is kept how the graph lies in its window. */
  kept: { current: View | null };
}

/** Pixels at the right of the whole picture, for the names of outputs in its last column. */
const NAMES = 40;
/** The smallest scale. */
const LEAST = 0.02;

export function GraphView({ scene, shown, chosen, theme, matches, id = "graph", name, moved, kept }: Props) {
  const { choose, togglePin } = scene.choosing;
  const [hovered, setHovered] = useState<Item | null>(null);
  const { canvas, size, transform, dragged, fit, context, pointed, scaledBy, reveal } = useZoomed(
    [LEAST, 20],
    (width, height) => {
      const side = sideOf(scene.graph);
      const room = width - side - NAMES;
      const scale = Math.max(LEAST, Math.min(2.5, room / shown.width, (height - FOOT) / shown.height));
      return { scale, left: side + Math.max(0, (room - scale * shown.width) / 2), top: 0 };
    },
    [],
    moved,
  );

  const view = (kept.current = { width: size[0], height: size[1], k: transform.k, x: transform.x, y: transform.y });
  const lit: Lit = { item: hovered && shown.items.includes(hovered) ? hovered : null, edge: chosen.edge, matches };
  useLayoutEffect(() => {
    if (!size[0]) return; // it has not been measured yet
    draw(new CanvasSurface(context(theme.ground)), { graph: scene.graph, shown, view }, chosen, theme, lit);
  }, [size, transform, shown, chosen, theme, hovered, matches]);

  /** Where on the picture a mouse points; null beside it. */
  const pointedAt = (event: MouseEvent): [number, number] | null => {
    const { on, at: [x, y] } = pointed(event);
    const { left, height } = innerOf(scene.graph, shown, view);
    return x >= left && y <= height ? on : null;
  };
  const itemAt = (event: MouseEvent): Item | null => {
    const on = pointedAt(event);
    if (!on) return null;
    const [x, y] = on;
    const reach = Math.max(RADIUS * 1.6, 6 / transform.k);
    let best: Item | null = null;
    let nearest = reach * reach;
    for (const item of shown.items) {
      const distance = (item.x - x) ** 2 + (item.y - y) ** 2;
      if (distance <= nearest) [best, nearest] = [item, distance];
    }
    return best;
  };

  const click = (event: MouseEvent) => {
    if (dragged.current) return;
    const item = itemAt(event);
    if (item) {
      const [node] = item.nodes;
      if (event.shiftKey && item.group === null) togglePin(node);
      else choose({ selected: node, edge: null });
      return;
    }
    const on = pointedAt(event);
    const line = on && lineAt(on, linesSeen(shown, chosen), 5 / transform.k);
    if (line && line.edge >= 0) choose({ edge: line.edge });
    else if (line) choose({ selected: (line.from.group === null ? line.to : line.from).nodes[0], edge: null }); // a sum is told of by its group
    else if (chosen.selected !== null || chosen.edge !== null) choose({ selected: null, edge: null });
  };

  const press = (event: KeyboardEvent) => {
    if (isBrowsers(event)) return;
    if (WAYS[event.key]) {
      const next = neighbour(shown, chosen.selected, WAYS[event.key]);
      if (next === null) return;
      const { x, y } = shown.byNode.get(next)!;
      choose({ selected: next, edge: null }, "selected");
      reveal([x, y], innerOf(scene.graph, shown, view));
    } else if (event.key === "Enter" || event.key === "p") {
      if (chosen.selected !== null) togglePin(chosen.selected);
    } else if (event.key === "Escape") choose({ selected: null, edge: null });
    else if (!scaledBy(event.key, chosen.selected === null ? undefined : shown.byNode.get(chosen.selected))) return;
    event.preventDefault();
  };

  const named = hovered && shown.items.includes(hovered) ? hovered : null;
  const place = named && transform.apply([named.x, named.y]);
  return (
    <div class="graph-view">
      <canvas
        ref={canvas}
        id={id}
        tabIndex={0}
        role="application"
        aria-label={`Attribution graph${name === undefined ? "" : ` of ${visible(name)}`}. Arrow keys go from node to node, Enter pins, plus and minus scale, 0 shows all.`}
        onClick={click}
        onMouseMove={(event) => setHovered(itemAt(event))}
        onMouseLeave={() => setHovered(null)}
        onKeyDown={press}
      />
      {shown.items.length === 0 && (
        <p class="empty">
          No node is shown: {chosen.only && chosen.pinned.length + chosen.groups.length === 0 ? "only what is pinned is, and nothing is pinned" : "none passes what is chosen"}.
        </p>
      )}
      <button class="fit corner" onClick={fit}>Show all</button>
      {named && place && (
        <Hint at={place} size={size}><Told scene={scene} item={named} shown={shown} /></Hint>
      )}
    </div>
  );
}

function Told({ scene, item, shown }: { scene: Scene; item: Item; shown: Shown }) {
  const { graph, influence } = scene;
  const [node] = item.nodes;
  const into = shown.lines.joining(item).filter((line) => line.to === item);
  return (
    <>
      <strong><bdi>{item.group === null ? graph.short(node) : visible(item.group)}</bdi></strong>
      {item.group === null && graph.explanation(node) && <div><bdi>{visible(graph.explanation(node)![0], 200)}</bdi></div>}
      <div>
        {item.group !== null ? `${item.nodes.length} nodes, ` : graph.measure(node) && `${graph.measure(node)} ${number(graph.activation[node])}, `}
        influence {number(item.nodes.reduce((sum, each) => sum + influence[each], 0))}
      </div>
      {into.length > 0 && (
        <div>
          {into.length} edges in, the strongest {signed(into[0].weight)}
        </div>
      )}
    </>
  );
}

/** The lines that are drawn strongly enough to be pointed at. */
function linesSeen(shown: Shown, chosen: State): Line[] {
  const focus = chosen.selected === null ? undefined : shown.byNode.get(chosen.selected);
  return focus ? shown.lines.joining(focus) : shown.lines.first(chosen.drawn);
}

/** Into how many straight pieces a line is taken to be bent. */
const STEPS = 24;

/** How far a point is from a straight piece. */
function distanceTo([ax, ay]: [number, number], [bx, by]: [number, number], [x, y]: [number, number]): number {
  const [dx, dy] = [bx - ax, by - ay];
  const square = dx * dx + dy * dy;
  const t = square === 0 ? 0 : Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / square));
  return Math.hypot(ax + t * dx - x, ay + t * dy - y);
}

function lineAt([x, y]: [number, number], lines: Line[], reach: number): Line | null {
  let best: Line | null = null;
  let nearest = reach;
  for (const line of lines) {
    const { from, to } = line;
    if (x < Math.min(from.x, to.x) - reach || x > Math.max(from.x, to.x) + reach) continue;
    if (y < Math.min(from.y, to.y) - reach || y > Math.max(from.y, to.y) + reach) continue;
    let last: [number, number] = [from.x, from.y];
    for (let step = 1; step <= STEPS; step++) {
      const t = step / STEPS;
      const s = 3 * t * t - 2 * t * t * t; // a cubic whose inner points lie straight below and above its ends
      const next: [number, number] = [from.x + (to.x - from.x) * s, from.y + (to.y - from.y) * t];
      const distance = distanceTo(last, next, [x, y]);
      if (distance < nearest) [best, nearest] = [line, distance];
      last = next;
    }
  }
  return best;
}

/** The nearest item in a direction, or the topmost where none is selected. */
function neighbour(shown: Shown, selected: number | null, [dx, dy]: [number, number]): number | null {
  const from = selected === null ? undefined : shown.byNode.get(selected);
  if (!from) return shown.items.length ? shown.items.reduce((top, each) => (each.y < top.y ? each : top)).nodes[0] : null;
  let best: Item | null = null;
  let least = Infinity;
  for (const item of shown.items) {
    const along = (item.x - from.x) * dx + (item.y - from.y) * dy;
    if (item === from || along <= 0.5) continue;
    const aside = Math.abs((item.x - from.x) * dy) + Math.abs((item.y - from.y) * dx);
    const cost = along + 3 * aside;
    if (cost < least) [best, least] = [item, cost];
  }
  return best && best.nodes[0];
}
