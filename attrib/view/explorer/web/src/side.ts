// One of two graphs beside each other. The page's state names nodes by keys, which are the same in both graphs where the nodes are, and
// edges by the keys of both ends; here these become the numbers of this graph.

import { Graph } from "./graph";
import { graphOf, type BesideHeader, type Payload } from "./payload";
import { Scene } from "./shown";
import { change, togglePin, type State } from "./state";

export class Side {
  readonly graph: Graph;
  readonly scene: Scene;
  readonly name: string;
  /** The key of each node. */
  readonly keys: Int32Array;
  /** Whether the whole other graph lacks a node. */
  readonly alone: Int32Array;
  private readonly total: number;
  private readonly nodeOf: Map<number, number>;

  constructor(payload: Payload<BesideHeader>, readonly number: 0 | 1) {
    const own = graphOf(payload, number);
    this.graph = new Graph(own);
    this.name = payload.header.names[number];
    this.keys = own.arrays.key as Int32Array;
    this.alone = own.arrays.alone as Int32Array;
    this.total = payload.header.keys;
    this.nodeOf = new Map(Array.from(this.keys, (key, node) => [key, node]));
    this.scene = new Scene(this.graph, {
      choose: ({ selected, edge }, passing) => {
        const part: Partial<State> = {};
        if (selected !== undefined) part.selected = selected === null ? null : this.keys[selected];
        if (edge !== undefined) part.edge = edge === null ? null : this.code(edge);
        change(part, passing);
      },
      togglePin: (node) => togglePin(this.keys[node]),
    });
  }

  /** The node of a key, or null where this graph has none. */
  node(key: number | null): number | null {
    return key === null ? null : (this.nodeOf.get(key) ?? null);
  }

  /** What an edge is called in both graphs. */
  code(edge: number): number {
    return codeOf(this.keys[this.graph.source[edge]], this.keys[this.graph.target[edge]], this.total);
  }

  /** The edge of a code, or null where this graph has none. */
  edge(code: number | null): number | null {
    if (code === null) return null;
    const [source, target] = [this.node(code % this.total), this.node(Math.floor(code / this.total))];
    if (source === null || target === null) return null;
    return this.graph.incoming(target).find((edge) => this.graph.source[edge] === source) ?? null;
  }

  /** The page's state in this graph's numbers, without what it does not have. */
  local(state: State): State {
    const nodes = (keys: number[]) => keys.map((key) => this.node(key)).filter((node) => node !== null);
    return {
      ...state,
      selected: this.node(state.selected),
      edge: this.edge(state.edge),
      pinned: nodes(state.pinned),
      groups: state.groups.map((group) => ({ name: group.name, nodes: nodes(group.nodes) })),
    };
  }
}

/** An edge by the keys of its ends, of which there are so many. */
export function codeOf(source: number, target: number, total: number): number {
  return target * total + source;
}
