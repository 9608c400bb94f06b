// Where nodes stand: a column for each position, a row for each level. What is the same in two graphs stands at the same place in both.

import type { Graph } from "./graph";

/** A node, or a group of nodes that are drawn as one. */
export interface Item {
  /** The node's number; of a group, the number of nodes and the group's place. */
  id: number;
  nodes: number[];
  group: string | null;
  x: number;
  y: number;
}

export interface Place {
  columns: { x: number; width: number }[];
  rows: { level: number; y: number; height: number }[];
  width: number;
  height: number;
}

/** Items of a graph, before they have a place. */
export interface Unplaced {
  graph: Graph;
  influence: Float64Array;
  items: Item[];
  /** What an item is called in all graphs, where there are several; items of one name share their place. */
  name?: (item: Item) => string | number;
}

interface Slot {
  weight: number;
  id: number;
  items: Item[];
}

export const STEP = 14;
const GAP = 12;
/** Up to how many outputs of a column stand in steps, and how many steps are as high and as wide as the rest: so that all is seen with each named. */
const STEPPED = 24;
const HIGH = 36;
const WIDE = 70;
/** How many times as wide as high a picture is at most and at least. */
const WIDEST = 1.6;
const NARROWEST = 0.8;

/**
 * Give all items their places. A cell's items stand in lines in its middle, the most influential first. Outputs, which all have names, stand
 * one below the other, each a little to the right of those above: names have room beside them, and edges come from below past no other.
 */
export function place(graphs: Unplaced[]): Place {
  const [{ graph }] = graphs;
  const levels = graph.header.levels.length;
  /** By column and level. */
  const cells: (Slot[] | undefined)[] = new Array(graph.columns * levels).fill(undefined);
  const named = new Map<string | number, Slot>();
  for (const { graph, influence, items, name } of graphs) {
    for (const item of items) {
      let [most, weight] = [item.nodes[0], 0];
      for (const node of item.nodes) {
        if (influence[node] > influence[most]) most = node;
        weight += influence[node];
      }
      const at = graph.column(most) * levels + graph.level(most);
      const cell = (cells[at] ??= []);
      const key = name && `${name(item)} ${at}`; // a name may stand in several cells
      const slot = key === undefined ? undefined : named.get(key);
      if (slot) {
        slot.items.push(item);
        slot.weight = Math.max(slot.weight, weight);
        continue;
      }
      const made = { weight, id: item.id, items: [item] };
      cell.push(made);
      if (key !== undefined) named.set(key, made);
    }
  }
  const isStepped = (cell: Slot[], level: number) => level === levels - 1 && cell.length <= STEPPED;
  const across = new Array<number>(graph.columns).fill(2);
  const lines = new Array<number>(levels).fill(0);
  cells.forEach((cell, at) => {
    const column = Math.floor(at / levels);
    if (cell) across[column] = Math.max(across[column], Math.ceil(Math.sqrt(2 * cell.length)));
  });
  let steps = 1;
  cells.forEach((cell, at) => {
    const level = at % levels;
    if (cell && isStepped(cell, level)) steps = Math.max(steps, cell.length);
    if (cell) lines[level] = Math.max(lines[level], Math.ceil(cell.length / across[Math.floor(at / levels)]));
  });
  // a long prompt makes a wide picture and a deep model a high one: rows or columns then stand apart, so that edges can be followed
  const full = lines.filter((count) => count > 0);
  const wide = across.reduce((sum, count) => sum + count * STEP + GAP, 0);
  const high = full.reduce((sum, count) => sum + count * STEP + GAP, 2 * GAP);
  const aside = GAP + Math.max(0, high * NARROWEST - wide) / across.length;
  const apart = GAP + Math.max(0, wide / WIDEST - high) / Math.max(1, full.length);
  const rise = steps === 1 ? STEP : Math.max(STEP, high / HIGH, wide / WIDE);
  let x = 0;
  const columns = across.map((count) => {
    const column = { x, width: count * STEP + aside };
    x += column.width;
    return column;
  });
  let y = GAP;
  const rows: Place["rows"] = [];
  for (let level = lines.length - 1; level >= 0; level--) {
    if (!lines[level]) continue;
    const height = Math.max(lines[level] * STEP, level === levels - 1 ? steps * rise : 0) + apart;
    rows.push({ level, y, height });
    y += height;
  }
  const rowOf = new Map(rows.map((row) => [row.level, row]));
  cells.forEach((cell, place) => {
    const column = Math.floor(place / levels);
    const row = rowOf.get(place % levels);
    if (!cell || !row) return;
    cell.sort((a, b) => b.weight - a.weight || a.id - b.id);
    const { x, width } = columns[column];
    if (isStepped(cell, row.level)) {
      const spread = (STEP * (Math.min(across[column], cell.length) - 1)) / Math.max(1, cell.length - 1);
      cell.forEach((slot, at) => {
        for (const item of slot.items) {
          item.x = x + width / 2 + spread * (at - (cell.length - 1) / 2);
          item.y = row.y + apart / 2 + rise * (at + 0.5);
        }
      });
      return;
    }
    cell.forEach((slot, at) => {
      const inLine = Math.min(across[column], cell.length - at + (at % across[column]));
      for (const item of slot.items) {
        item.x = x + width / 2 + STEP * ((at % across[column]) - (inLine - 1) / 2);
        item.y = row.y + apart / 2 + STEP * (Math.floor(at / across[column]) + 0.5);
      }
    });
  });
  return { columns, rows, width: x, height: y + GAP };
}
