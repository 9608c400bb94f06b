// What is shown: the pruned graph less what filters hide, with groups drawn together.

import { prune, shares, spread, type Pruned } from "./influence";
import type { Graph } from "./graph";
import { place, type Item, type Place } from "./layout";
import { Lines, type Line } from "./lines";
import { largestFirst } from "./order";
import { change, togglePin, type State } from "./state";
import { visible } from "./text";

/** What is shown of a graph, before it has a place. */
export interface Picked {
  pruned: Pruned;
  items: Item[];
  byNode: Map<number, Item>;
  lines: Lines;
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

  /** Why an edge is not drawn as a line of its own, each reason with what shows it; none where it is. */
  whyNotEdge(state: State, edge: number): string[] {
    const { graph } = this;
    const ends = [graph.source[edge], graph.target[edge]];
    const hidden = ends.filter((node) => this.whyNot(state, node).length > 0);
    if (hidden.length) return hidden.map((node) => `${graph.short(node)} is not; its panel says why`);
    const found: string[] = [];
    const inside = state.groups.find((group) => ends.every((node) => group.nodes.includes(node)));
    const groups = state.groups.filter((group) => ends.some((node) => group.nodes.includes(node)));
    if (inside) found.push(`it is within ${visible(inside.name)}; dissolve the group`);
    else if (groups.length) found.push(`it goes into the sums of ${groups.map((group) => visible(group.name)).join(" and ")}; dissolve the group`);
    if (!this.pruned(state).edges[edge]) found.push("too little of the outputs is reached along it; raise “Nodes kept” and “Edges kept”");
    if (Math.abs(graph.weight[edge]) < state.least * this.largest) found.push("it is weaker than “Least weight” lets through; lower it");
    return found;
  }

  shown(state: State): Shown {
    const picked = this.picked(state);
    const placed = place([{ graph: this.graph, influence: this.influence, items: picked.items }]);
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

  private lines(state: State, pruned: Pruned, byNode: Map<number, Item>): Lines {
    const { source, target, weight, size } = this.graph;
    const least = state.least * this.largest;
    const itemOf = Array.from({ length: size }, (_, node) => byNode.get(node));
    const isDrawn = Uint8Array.from(itemOf, (item) => (item ? (item.group === null ? 1 : 2) : 0));
    const order = new Int32Array(this.ordered.length);
    let count = 0;
    const summed = new Map<string, Line>();
    for (let at = 0; at < order.length; at++) {
      const edge = this.ordered[at];
      if (!pruned.edges[edge]) continue;
      const from = isDrawn[source[edge]];
      const to = isDrawn[target[edge]];
      if (!from || !to) continue;
      if (from === 1 && to === 1) {
        if (Math.abs(weight[edge]) >= least) order[count++] = edge;
      } else add(summed, itemOf[source[edge]]!, itemOf[target[edge]]!, weight[edge]);
    }
    const sums = [...summed.values()].filter((line) => Math.abs(line.weight) >= least).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    return new Lines(this.graph, itemOf, merged(order.subarray(0, count), sums, weight), sums);
  }
}

/** Add what an edge that begins or ends in a group has to the line that it is drawn in. */
function add(summed: Map<string, Line>, from: Item, to: Item, weight: number): void {
  if (from === to) return;
  const key = `${from.id} ${to.id}`;
  const line = summed.get(key);
  if (line) line.weight += weight;
  else summed.set(key, { from, to, weight, edge: -1 });
}

/** Edges and sums, both strongest first, in one order: -1 - n is the n-th sum. Of equal ones edges are first. */
function merged(edges: Int32Array, sums: Line[], weight: Float32Array): Int32Array {
  if (!sums.length) return edges;
  const found = new Int32Array(edges.length + sums.length);
  let [edge, sum] = [0, 0];
  for (let at = 0; at < found.length; at++) {
    const isEdge = sum === sums.length || (edge < edges.length && Math.abs(weight[edges[edge]]) >= Math.abs(sums[sum].weight));
    found[at] = isEdge ? edges[edge++] : -1 - sum++;
  }
  return found;
}

/** The largest weight that is drawn. */
export function widest({ lines }: Picked): number {
  return lines.length ? Math.abs(lines.at(0).weight) : 0;
}
