// What is shown: the pruned graph less what filters hide, groups drawn together, and a place for each of its items.

import { prune, shares, spread, type Pruned } from "./influence";
import type { Graph } from "./graph";
import type { State } from "./state";

/** A node, or a group of nodes that are drawn as one. */
export interface Item {
  /** The node's number; of a group, the number of nodes and the group's place. */
  id: number;
  nodes: number[];
  group: string | null;
  x: number;
  y: number;
}

export interface Line {
  from: Item;
  to: Item;
  weight: number;
  /** The edge, or -1 where several are drawn as one. */
  edge: number;
}

export interface Shown {
  pruned: Pruned;
  items: Item[];
  byNode: Map<number, Item>;
  /** Strongest first. */
  lines: Line[];
  columns: { x: number; width: number }[];
  rows: { level: number; y: number; height: number }[];
  width: number;
  height: number;
}

export const STEP = 14;
const GAP = 12;
const LEFT = 64;
/** How many times as wide as high a picture is at most and at least. */
const WIDEST = 1.6;
const NARROWEST = 0.8;

export class Scene {
  readonly influence: Float64Array;
  readonly largest: number;
  private last: { key: string; pruned: Pruned } | null = null;

  constructor(readonly graph: Graph) {
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
      (!positions.size || positions.has(graph.position[node]));
  }

  shown(state: State): Shown {
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
    return { pruned, items, byNode, lines: this.lines(state, pruned, byNode), ...this.place(items) };
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

  /** A column for each position, a row for each level; a cell's items stand in lines, the most influential first. */
  private place(items: Item[]): Pick<Shown, "columns" | "rows" | "width" | "height"> {
    const { graph, influence } = this;
    const weightOf = (item: Item) => item.nodes.reduce((sum, node) => sum + influence[node], 0);
    const cells = new Map<string, Item[]>();
    const cellOf = (item: Item) => {
      const node = item.nodes.reduce((best, each) => (influence[each] > influence[best] ? each : best));
      return [graph.position[node], graph.level(node)] as const;
    };
    for (const item of items) {
      const key = cellOf(item).join(" ");
      const cell = cells.get(key);
      if (cell) cell.push(item);
      else cells.set(key, [item]);
    }
    const across = new Array<number>(graph.header.tokens.length).fill(2);
    const lines = new Array<number>(graph.header.levels.length).fill(0);
    for (const [key, cell] of cells) {
      const [position, level] = key.split(" ").map(Number);
      const wide = Math.ceil(Math.sqrt(2 * cell.length));
      across[position] = Math.max(across[position], wide);
      lines[level] = Math.max(lines[level], 1);
    }
    for (const [key, cell] of cells) {
      const [position, level] = key.split(" ").map(Number);
      lines[level] = Math.max(lines[level], Math.ceil(cell.length / across[position]));
    }
    // a long prompt makes a wide picture and a deep model a high one: rows or columns then stand apart, so that edges can be followed
    const full = lines.filter((count) => count > 0);
    const wide = across.reduce((sum, count) => sum + count * STEP + GAP, LEFT);
    const high = full.reduce((sum, count) => sum + count * STEP + GAP, 2 * GAP);
    const aside = GAP + Math.max(0, high * NARROWEST - wide) / across.length;
    const apart = GAP + Math.max(0, wide / WIDEST - high) / Math.max(1, full.length);
    let x = LEFT;
    const columns = across.map((count) => {
      const column = { x, width: count * STEP + aside };
      x += column.width;
      return column;
    });
    let y = GAP;
    const rows: Shown["rows"] = [];
    for (let level = lines.length - 1; level >= 0; level--) {
      if (!lines[level]) continue;
      const height = lines[level] * STEP + apart;
      rows.push({ level, y, height });
      y += height;
    }
    const rowOf = new Map(rows.map((row) => [row.level, row]));
    for (const [key, cell] of cells) {
      const [position, level] = key.split(" ").map(Number);
      const row = rowOf.get(level)!;
      cell.sort((a, b) => weightOf(b) - weightOf(a) || a.id - b.id);
      cell.forEach((item, at) => {
        item.x = columns[position].x + aside / 2 + STEP * ((at % across[position]) + 0.5);
        item.y = row.y + apart / 2 + STEP * (Math.floor(at / across[position]) + 0.5);
      });
    }
    return { columns, rows, width: x, height: y + GAP };
  }
}
