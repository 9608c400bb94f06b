// Edges as a matrix: targets are its rows, sources its columns.

import type { MatricesHeader, MatrixHeader, Payload, Side } from "./payload";
import { visible } from "./text";

export type Value = "attribution" | "gradient";
export type Order = "position" | "strength";

class Axis {
  constructor(
    readonly side: Side,
    readonly position: Int32Array,
    readonly latent: Int32Array,
    readonly activation: Float32Array,
    private readonly tokens: string[],
    /** What each is called, where they are of several prompts. */
    private readonly called: string[] | null = null,
  ) {}

  get size(): number {
    return this.position.length;
  }

  /** A node in few words: what it is, and the token that it stands at. */
  label(at: number): string {
    if (this.called) return this.called[at];
    const { side } = this;
    const where = `${visible(this.tokens[this.position[at]] ?? "", 20)}@${this.position[at]}`;
    if (side.labels.length) return side.kind === "token" ? where : `${visible(side.labels[at], 40)} @${this.position[at]}`;
    const number = this.latent[at];
    return `${number >= 0 ? number : number === -1 ? "error" : "bias"} ${where}`;
  }

  /** What makes a node the same one in another matrix. */
  key(at: number): string {
    return `${this.position[at]} ${this.latent[at]} ${this.side.labels[at] ?? ""}`;
  }
}

export class Matrix {
  readonly header: MatrixHeader;
  readonly targets: Axis;
  readonly sources: Axis;
  readonly row: Int32Array;
  readonly column: Int32Array;
  readonly values: Record<Value, Float32Array>;

  constructor({ header, arrays }: Payload<MatricesHeader>, number: number) {
    this.header = header.matrices[number];
    const ints = (name: string) => arrays[`${number} ${name}`] as Int32Array;
    const floats = (name: string) => arrays[`${number} ${name}`] as Float32Array;
    const { tokens, targets, sources } = this.header;
    this.targets = new Axis(targets, ints("target_position"), ints("target_latent"), floats("target_activation"), tokens);
    this.sources = new Axis(sources, ints("source_position"), ints("source_latent"), floats("source_activation"), tokens);
    this.column = ints("indices");
    this.values = { attribution: floats("attribution"), gradient: floats("gradient") };
    const indptr = ints("indptr");
    this.row = new Int32Array(this.column.length);
    for (let row = 0; row + 1 < indptr.length; row++) this.row.fill(row, indptr[row], indptr[row + 1]);
  }
}

/** What is drawn: the entries of one matrix, or those of one less those of another, with rows and columns in an order. */
export interface Table {
  targets: Axis;
  sources: Axis;
  row: Int32Array;
  column: Int32Array;
  value: Float32Array;
  /** Where each row and each column is drawn; -1 where it is not. */
  rowPlace: Int32Array;
  columnPlace: Int32Array;
  /** Which row and which column is drawn at each place. */
  rows: number[];
  columns: number[];
  largest: number;
}

/** @param empty whether rows and columns without an entry are there too */
export function table(matrix: Matrix, value: Value, order: Order, other: Matrix | null, empty: boolean): Table {
  let entries = { row: matrix.row, column: matrix.column, value: matrix.values[value] };
  let { targets, sources } = matrix;
  if (other) ({ targets, sources, ...entries } = difference(matrix, other, value));
  const strengths = (places: Int32Array, size: number) => {
    const sums = new Float64Array(size);
    places.forEach((at, entry) => (sums[at] += Math.abs(entries.value[entry])));
    return sums;
  };
  const ordered = (axis: Axis, places: Int32Array) => {
    const filled = new Set(places);
    const found = Array.from({ length: axis.size }, (_, at) => at).filter((at) => empty || filled.has(at));
    if (order === "position") return found.sort((a, b) => axis.position[a] - axis.position[b] || a - b);
    const sums = strengths(places, axis.size);
    return found.sort((a, b) => sums[b] - sums[a] || a - b);
  };
  const rows = ordered(targets, entries.row);
  const columns = ordered(sources, entries.column);
  const place = (list: number[], size: number) => {
    const found = new Int32Array(size).fill(-1);
    list.forEach((at, where) => (found[at] = where));
    return found;
  };
  const largest = entries.value.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
  return { targets, sources, ...entries, rowPlace: place(rows, targets.size), columnPlace: place(columns, sources.size), rows, columns, largest };
}

/** First less second, over all rows and columns that either has. */
function difference(first: Matrix, second: Matrix, value: Value): Pick<Table, "targets" | "sources" | "row" | "column" | "value"> {
  const [targets, targetsOf] = union(first.targets, second.targets, first.header.tokens);
  const [sources, sourcesOf] = union(first.sources, second.sources, first.header.tokens);
  const sums = new Map<number, number>();
  const add = (matrix: Matrix, which: 0 | 1, sign: number) =>
    matrix.row.forEach((row, entry) => {
      const key = targetsOf[which][row] * sources.size + sourcesOf[which][matrix.column[entry]];
      sums.set(key, (sums.get(key) ?? 0) + sign * matrix.values[value][entry]);
    });
  add(first, 0, 1);
  add(second, 1, -1);
  const keys = [...sums.keys()].sort((a, b) => a - b);
  return {
    targets,
    sources,
    row: Int32Array.from(keys, (key) => Math.floor(key / sources.size)),
    column: Int32Array.from(keys, (key) => key % sources.size),
    value: Float32Array.from(keys, (key) => sums.get(key)!),
  };
}

function union(first: Axis, second: Axis, tokens: string[]): [Axis, [number[], number[]]] {
  const known = new Map<string, number>();
  const kept: [Axis, number][] = [];
  const placed = [first, second].map((axis) =>
    Array.from({ length: axis.size }, (_, at) => {
      const key = axis.key(at);
      if (!known.has(key)) {
        known.set(key, kept.length);
        kept.push([axis, at]);
      }
      return known.get(key)!;
    }),
  ) as [number[], number[]];
  const labels = first.side.labels.length || second.side.labels.length ? kept.map(([axis, at]) => axis.side.labels[at] ?? "") : [];
  const column = <Numbers extends "position" | "latent" | "activation">(name: Numbers) => kept.map(([axis, at]) => axis[name][at]);
  const made = new Axis(
    { ...first.side, labels }, Int32Array.from(column("position")), Int32Array.from(column("latent")), Float32Array.from(column("activation")), tokens,
    kept.map(([axis, at]) => axis.label(at)),
  );
  return [made, placed];
}
