// The lines of a picture, strongest first. There may be a hundred thousand, of which most are counted and never looked at: of each its
// edge's number is kept, and it is made when it is asked for.

import type { Graph } from "./graph";
import type { Item } from "./layout";

export interface Line {
  from: Item;
  to: Item;
  weight: number;
  /** The edge, or -1 where several are drawn as one. */
  edge: number;
}

export class Lines implements Iterable<Line> {
  /**
   * `itemOf` has the item that each node is drawn in, `order` the edges that are lines, and -1 - n where the n-th of `sums` is one, all
   * strongest first.
   */
  constructor(
    private readonly graph: Graph,
    private readonly itemOf: readonly (Item | undefined)[],
    private readonly order: Int32Array,
    private readonly sums: readonly Line[],
  ) {}

  get length(): number {
    return this.order.length;
  }

  at(place: number): Line {
    const { graph, itemOf } = this;
    const edge = this.order[place];
    if (edge < 0) return this.sums[-1 - edge];
    return { from: itemOf[graph.source[edge]]!, to: itemOf[graph.target[edge]]!, weight: graph.weight[edge], edge };
  }

  /** The strongest. */
  first(count: number): Line[] {
    return Array.from({ length: Math.min(count, this.length) }, (_, place) => this.at(place));
  }

  /** Those that begin or end at an item. */
  joining(item: Item): Line[] {
    const { graph, itemOf } = this;
    const found: Line[] = [];
    this.order.forEach((edge, place) => {
      const { from, to } = edge < 0 ? this.sums[-1 - edge] : { from: itemOf[graph.source[edge]], to: itemOf[graph.target[edge]] };
      if (from === item || to === item) found.push(this.at(place));
    });
    return found;
  }

  /** The line that an edge is drawn as by itself. */
  of(edge: number): Line | undefined {
    const place = this.order.indexOf(edge);
    return edge < 0 || place < 0 ? undefined : this.at(place);
  }

  *[Symbol.iterator](): Iterator<Line> {
    for (let place = 0; place < this.length; place++) yield this.at(place);
  }
}
