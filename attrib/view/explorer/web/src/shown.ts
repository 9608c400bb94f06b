// What is shown: the pruned graph less what filters hide, with groups drawn together.

import { prune, shares, spread, type Pruned } from "./influence";
import type { Graph } from "./graph";
import { place, type Item, type Place } from "./layout";
import { largestFirst } from "./order";
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

/** What the reader has chosen that hides some nodes. */
interface Filter {
  hides: (node: number) => boolean;
  /** Why, and what shows them. */
  because: string;
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
  /** Edges, strongest first. */
  private readonly ordered: Int32Array;
  private last: { key: string; pruned: Pruned } | null = null;

  constructor(
    readonly graph: Graph,
    readonly choosing: Choosing = { choose: change, togglePin },
  ) {
    this.influence = spread(graph, shares(graph));
    this.ordered = largestFirst(graph.weight);
    this.largest = graph.edges ? Math.abs(graph.weight[this.ordered[0]]) : 0;
  }

  pruned(state: State): Pruned {
    const pinned = new Set([...state.pinned, ...state.groups.flatMap((each) => each.nodes)]);
    const key = JSON.stringify([state.nodes, state.edges, [...pinned].sort((a, b) => a - b)]);
    if (this.last?.key !== key) this.last = { key, pruned: prune(this.graph, this.influence, state.nodes, state.edges, pinned) };
    return this.last.pruned;
  }

  /** The filters that are in force. */
  private filters(state: State): Filter[] {
    const { graph } = this;
    const found: Filter[] = [];
    const add = (isInForce: boolean, hides: Filter["hides"], because: string) => isInForce && found.push({ hides, because });
    const kept = new Set([...state.pinned, ...state.groups.flatMap((each) => each.nodes)]);
    const hidden = new Set(state.hidden);
    const positions = new Set(state.positions);
    const [first, last] = state.levels ?? [0, Infinity];
    add(state.only, (node) => !kept.has(node), "only what is pinned is shown; pin it");
    add(hidden.size > 0, (node) => hidden.has(graph.kind(node)), "its kind is hidden; tick it under “Kinds”");
    add(state.levels !== null, (node) => graph.level(node) < first || graph.level(node) > last, "its layer is hidden; choose it under “Layers”");
    add(positions.size > 0, (node) => !positions.has(graph.column(node)), "other tokens are chosen above; choose its own, or “All positions”");
    return found;
  }

  /** Whether filters let a node be seen. */
  passes(state: State): (node: number) => boolean {
    const filters = this.filters(state);
    return (node) => !filters.some(({ hides }) => hides(node));
  }

  /** Why a node is not drawn, each reason with what shows it; none where it is drawn. */
  whyNot(state: State, node: number): string[] {
    const found = this.filters(state).filter(({ hides }) => hides(node)).map(({ because }) => because);
    const isPruned = !this.pruned(state).nodes[node];
    return isPruned ? [...found, "too little of the outputs is reached through it; pin it, or raise “Nodes kept” and “Edges kept”"] : found;
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
    const itemOf = Array.from({ length: graph.size }, (_, node) => byNode.get(node));
    const found: Line[] = [];
    const summed = new Map<string, Line>();
    for (const edge of this.ordered) {
      if (!pruned.edges[edge]) continue;
      const from = itemOf[graph.source[edge]];
      const to = itemOf[graph.target[edge]];
      if (!from || !to || from === to) continue;
      const weight = graph.weight[edge];
      if (from.group === null && to.group === null) {
        if (Math.abs(weight) >= least) found.push({ from, to, weight, edge });
        continue;
      }
      const key = `${from.id} ${to.id}`;
      const line = summed.get(key);
      if (line) line.weight += weight;
      else summed.set(key, { from, to, weight, edge: -1 });
    }
    const sums = [...summed.values()].filter((line) => Math.abs(line.weight) >= least);
    return sums.length ? found.concat(sums).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)) : found;
  }
}

/** The largest weight that is drawn. */
export function widest({ lines }: Picked): number {
  return lines.length ? Math.abs(lines[0].weight) : 0;
}
