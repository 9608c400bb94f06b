// What is shown: the pruned graph less what filters hide, with groups drawn together.

import { prune, shares, spread, type Pruned } from "./influence";
import type { Graph } from "./graph";
import { place, type Item, type Place } from "./layout";
import { change, togglePin, type State } from "./state";

export interface Line {
  from: Item;
  to: Item;
  weight: number;
  /** The edge, or -1 where several are drawn as one. */
  edge: number;
}

/** What is shown of a graph, before it has a place. */
export interface Picked {
  pruned: Pruned;
  items: Item[];
  byNode: Map<number, Item>;
  /** Strongest first. */
  lines: Line[];
}

export interface Shown extends Picked, Place {
  /** The weight that is drawn widest. */
  largest: number;
}

/** Where a choice of the reader goes: to the page's state, by this graph's numbers of nodes and edges. */
export interface Choosing {
  choose: (part: Partial<Pick<State, "selected" | "edge">>, passing?: keyof State) => void;
  togglePin: (node: number) => void;
}

export class Scene {
  readonly influence: Float64Array;
  /** The largest weight, of which the least that is shown is a share. */
  largest: number;
  private last: { key: string; pruned: Pruned } | null = null;

  constructor(
    readonly graph: Graph,
    readonly choosing: Choosing = { choose: change, togglePin },
  ) {
    this.influence = spread(graph, shares(graph));
    this.largest = graph.weight.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
  }

  pruned(state: State): Pruned {
    const pinned = new Set([...state.pinned, ...state.groups.flatMap((each) => each.nodes)]);
    const key = JSON.stringify([state.nodes, state.edges, [...pinned].sort((a, b) => a - b)]);
    if (this.last?.key !== key) this.last = { key, pruned: prune(this.graph, this.influence, state.nodes, state.edges, pinned) };
    return this.last.pruned;
  }

  /** Whether filters let a node be seen. */
  passes(state: State): (node: number) => boolean {
    const hidden = new Set(state.hidden);
    const positions = new Set(state.positions);
    const kept = new Set([...state.pinned, ...state.groups.flatMap((each) => each.nodes)]);
    const { graph } = this;
    return (node) =>
      (!state.only || kept.has(node)) &&
      !hidden.has(graph.kind(node)) &&
      (!state.levels || (graph.level(node) >= state.levels[0] && graph.level(node) <= state.levels[1])) &&
      (!positions.size || positions.has(graph.column(node)));
  }

  shown(state: State): Shown {
    const picked = this.picked(state);
    const placed = place([{ graph: this.graph, influence: this.influence, items: picked.items, name: (item) => item.id }]);
    return { ...picked, ...placed, largest: widest(picked) };
  }

  picked(state: State): Picked {
    const { graph } = this;
    const pruned = this.pruned(state);
    const passes = this.passes(state);
    const byNode = new Map<number, Item>();
    const items: Item[] = [];
    state.groups.forEach((group, number) => {
      const nodes = group.nodes.filter((node) => pruned.nodes[node] && passes(node));
      if (!nodes.length) return;
      const item = { id: graph.size + number, nodes, group: group.name, x: 0, y: 0 };
      items.push(item);
      for (const node of nodes) byNode.set(node, item);
    });
    for (let node = 0; node < graph.size; node++) {
      if (!pruned.nodes[node] || byNode.has(node) || !passes(node)) continue;
      const item = { id: node, nodes: [node], group: null, x: 0, y: 0 };
      items.push(item);
      byNode.set(node, item);
    }
    return { pruned, items, byNode, lines: this.lines(state, pruned, byNode) };
  }

  private lines(state: State, pruned: Pruned, byNode: Map<number, Item>): Line[] {
    const { graph } = this;
    const least = state.least * this.largest;
    const found: Line[] = [];
    const summed = new Map<string, Line>();
    for (let edge = 0; edge < graph.edges; edge++) {
      if (!pruned.edges[edge]) continue;
      const from = byNode.get(graph.source[edge]);
      const to = byNode.get(graph.target[edge]);
      if (!from || !to || from === to) continue;
      const weight = graph.weight[edge];
      if (from.group === null && to.group === null) {
        found.push({ from, to, weight, edge });
        continue;
      }
      const key = `${from.id} ${to.id}`;
      const line = summed.get(key);
      if (line) line.weight += weight;
      else summed.set(key, { from, to, weight, edge: -1 });
    }
    return [...found, ...summed.values()]
      .filter((line) => Math.abs(line.weight) >= least)
      .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  }
}

/** The largest weight that is drawn. */
export function widest({ lines }: Picked): number {
  return lines.length ? Math.abs(lines[0].weight) : 0;
}
