// The graph on a canvas: what lies under the pointer is named, what is clicked or walked to is chosen.

import { useLayoutEffect, useState } from "preact/hooks";
import type { Theme } from "./colours";
import { CanvasSurface, draw, RADIUS, type Lit } from "./picture";
import type { Signal } from "@preact/signals";
import type { ZoomTransform } from "d3-zoom";
import type { Item } from "./layout";
import type { Scene, Line, Shown } from "./shown";
import type { State } from "./state";
import { number, signed, visible } from "./text";
import { useZoomed, WAYS } from "./zoomed";

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
}

const MARGIN = 36;

export function GraphView({ scene, shown, chosen, theme, matches, id = "graph", name, moved }: Props) {
  const { choose, togglePin } = scene.choosing;
  const [hovered, setHovered] = useState<Item | null>(null);
  const { canvas, size, transform, dragged, fit, context, pointed, scaledBy } = useZoomed(
    [0.02, 20],
    (width, height) => {
      const scale = Math.min(2.5, width / shown.width, height / (shown.height + MARGIN));
      return { scale, left: Math.max(0, (width - scale * shown.width) / 2), top: 0 };
    },
    [],
    moved,
  );

  const lit: Lit = { item: hovered && shown.items.includes(hovered) ? hovered : null, edge: chosen.edge, matches };
  useLayoutEffect(() => {
    if (!size[0]) return; // it has not been measured yet
    const drawing = context(theme.ground);
    drawing.transform(transform.k, 0, 0, transform.k, transform.x, transform.y);
    draw(new CanvasSurface(drawing), scene.graph, shown, chosen, theme, lit);
  }, [size, transform, shown, chosen, theme, hovered, matches]);

  const itemAt = (event: MouseEvent): Item | null => {
    const [x, y] = pointed(event).on;
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
      if (event.shiftKey) togglePin(node);
      else choose({ selected: node, edge: null });
      return;
    }
    const line = lineAt(pointed(event).on, linesSeen(shown, chosen), 5 / transform.k);
    if (line && line.edge >= 0) choose({ edge: line.edge });
    else if (chosen.selected !== null || chosen.edge !== null) choose({ selected: null, edge: null });
  };

  const press = (event: KeyboardEvent) => {
    if (WAYS[event.key]) {
      const next = neighbour(shown, chosen.selected, WAYS[event.key]);
      if (next !== null) choose({ selected: next, edge: null }, "selected");
    } else if (event.key === "Enter" || event.key === "p") {
      if (chosen.selected !== null) togglePin(chosen.selected);
    } else if (event.key === "Escape") choose({ selected: null, edge: null });
    else if (!scaledBy(event.key)) return;
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
      <button class="fit" onClick={fit}>Show all</button>
      {named && place && (
        <div class="hint" style={{ left: `${Math.min(place[0] + 12, size[0] - 230)}px`, top: `${place[1] + 14}px` }}>
          <Hint scene={scene} item={named} shown={shown} />
        </div>
      )}
    </div>
  );
}

function Hint({ scene, item, shown }: { scene: Scene; item: Item; shown: Shown }) {
  const { graph, influence } = scene;
  const [node] = item.nodes;
  const into = shown.lines.filter((line) => line.to === item);
  return (
    <>
      <strong>{item.group ?? graph.short(node)}</strong>
      {item.group === null && graph.explanation(node) && <div>{graph.explanation(node)![0]}</div>}
      <div>
        {item.group !== null ? `${item.nodes.length} nodes, ` : `activation ${number(graph.activation[node])}, `}
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
  return focus ? shown.lines.filter((line) => line.from === focus || line.to === focus) : shown.lines.slice(0, chosen.drawn);
}

function lineAt([x, y]: [number, number], lines: Line[], reach: number): Line | null {
  let best: Line | null = null;
  let nearest = reach;
  for (const line of lines) {
    const { from, to } = line;
    if (x < Math.min(from.x, to.x) - reach || x > Math.max(from.x, to.x) + reach) continue;
    if (y < Math.min(from.y, to.y) - reach || y > Math.max(from.y, to.y) + reach) continue;
    for (let step = 0; step <= 24; step++) {
      const t = step / 24;
      const s = 3 * t * t - 2 * t * t * t; // a cubic whose inner points lie straight below and above its ends
      const px = from.x + (to.x - from.x) * s;
      const py = from.y + (to.y - from.y) * t;
      const distance = Math.hypot(px - x, py - y);
      if (distance < nearest) [best, nearest] = [line, distance];
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
