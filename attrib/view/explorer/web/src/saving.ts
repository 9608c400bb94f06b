// What the reader takes away: the picture as SVG or PNG, edges as CSV, groups as a file that attrib reads.

import type { Theme } from "./colours";
import type { Graph } from "./graph";
import { KINDS } from "./graph";
import { draw, type Seen } from "./picture";
import type { Shown } from "./shown";
import type { Group, State } from "./state";
import { CanvasSurface, SvgSurface, type Surface } from "./surfaces";
import { visible } from "./text";

export function download(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A graph as it is seen. */
export interface Picture extends Seen {
  state: State;
  /** What a search has found. */
  matches: ReadonlySet<number>;
}

/** Graphs from left to right, each as its window has it. */
export function svg(pictures: Picture[], title: string, theme: Theme): Blob {
  return svgOf(extent(pictures), title, theme, (surface) => drawAll(surface, pictures, theme));
}

export function png(pictures: Picture[], theme: Theme): Promise<Blob> {
  return pngOf(extent(pictures), theme, (surface) => drawAll(surface, pictures, theme));
}

export function svgOf([width, height]: [number, number], title: string, theme: Theme, drawing: (surface: Surface) => void): Blob {
  const surface = new SvgSurface(width, height, theme.ground, visible(title, 200));
  drawing(surface);
  return new Blob([new XMLSerializer().serializeToString(surface.root)], { type: "image/svg+xml" });
}

/** Pixels of a PNG for each pixel of the page. */
const SHARPER = 3;

export async function pngOf([width, height]: [number, number], theme: Theme, drawing: (surface: Surface) => void): Promise<Blob> {
  const canvas = document.createElement("canvas");
  const scale = Math.min(SHARPER, 16000 / width, 16000 / height);
  canvas.width = Math.ceil(width * scale);
  canvas.height = Math.ceil(height * scale);
  const context = canvas.getContext("2d")!;
  context.fillStyle = theme.ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(scale, scale);
  drawing(new CanvasSurface(context));
  return new Promise((resolve, reject) =>
    canvas.toBlob((made) => (made ? resolve(made) : reject(new Error("this picture is too large for a PNG; take the SVG")))),
  );
}

function extent(pictures: Picture[]): [number, number] {
  return [pictures.reduce((sum, { view }) => sum + view.width, 0), Math.max(...pictures.map(({ view }) => view.height))];
}

function drawAll(surface: Surface, pictures: Picture[], theme: Theme): void {
  let x = 0;
  for (const { state, matches, ...seen } of pictures) {
    const { width, height } = seen.view;
    const lit = { item: null, edge: state.edge, matches };
    surface.within({ left: x, top: 0, width, height }, { k: 1, x, y: 0 }, () => draw(surface, seen, state, theme, lit));
    x += width;
  }
}

/** The edges that are shown, one a line, strongest first. */
export function csv(graph: Graph, shown: Shown): Blob {
  const rows = [["source", "source_node", "target", "target_node", "attribution"]];
  for (const line of shown.lines) {
    const end = (item: typeof line.from) => (item.group !== null ? [item.group, item.nodes.join(" ")] : [graph.short(item.nodes[0]), String(item.id)]);
    rows.push([...end(line.from), ...end(line.to), String(line.weight)]);
  }
  return csvOf(rows);
}

export function csvOf(rows: string[][]): Blob {
  return new Blob([rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
}

/** A cell that neither ends its line nor is taken for a formula by a spreadsheet. */
function quoted(text: string): string {
  const plain = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\n\r]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

// ------------------------------------------------------------------------------------------- groups

const FORMAT = "attrib supernodes";
const VERSION = 1;

export interface Key {
  kind: string;
  site: string;
  latent?: number;
  position?: number;
  name?: string;
}

export function keyOf(graph: Graph, node: number): Key {
  const set = graph.set(node);
  const found: Key = { kind: set.kind, site: set.site, position: graph.position[node] };
  if (graph.latent[node] >= 0) found.latent = graph.latent[node];
  const name = set.kind === "target" ? graph.name(node) : set.name;
  if (name) found.name = name;
  return found;
}

/** Groups as a file of attrib's supernodes. */
export function supernodes(groups: Group[], key: (node: number) => Key): Blob {
  const whole = {
    format: FORMAT,
    version: VERSION,
    supernodes: Object.fromEntries(groups.map((each) => [each.name, each.nodes.map(key)])),
  };
  return new Blob([JSON.stringify(whole, null, 1)], { type: "application/json" });
}

/** The groups of a file; an error says what is wrong with it. Nodes that are not found are counted, not taken. */
export function readSupernodes(text: string, find: (key: Key) => number[], short: (node: number) => string): { groups: Group[]; missing: number } {
  const whole = object(JSON.parse(text), "the file");
  if (whole.format !== FORMAT || whole.version !== VERSION) {
    throw new Error(`it is ${String(whole.format)} of version ${String(whole.version)}, not ${FORMAT} of version ${VERSION}`);
  }
  const groups: Group[] = [];
  const used = new Map<number, string>();
  let missing = 0;
  for (const [name, keys] of Object.entries(object(whole.supernodes, "supernodes"))) {
    if (!Array.isArray(keys) || !keys.length) throw new Error(`${name} has no list of nodes`);
    const nodes = new Set<number>();
    for (const each of keys) {
      const found = find(key(each, name));
      if (!found.length) missing++;
      for (const node of found) {
        const other = used.get(node);
        if (other !== undefined && other !== name) throw new Error(`${short(node)} is in ${other} and in ${name}`);
        used.set(node, name);
        nodes.add(node);
      }
    }
    if (nodes.size) groups.push({ name, nodes: [...nodes].sort((a, b) => a - b) });
  }
  return { groups, missing };
}

function object(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${what} is no object`);
  return value as Record<string, unknown>;
}

function key(value: unknown, name: string): Key {
  const found = object(value, `a node of ${name}`);
  const unknown = Object.keys(found).filter((each) => !["kind", "site", "latent", "position", "name"].includes(each));
  if (unknown.length) throw new Error(`a node of ${name} has the field ${unknown[0]}, which is not known`);
  if (!KINDS.includes(found.kind as never)) throw new Error(`a node of ${name} is of the kind ${String(found.kind)}, which is not known`);
  if (typeof found.site !== "string") throw new Error(`a node of ${name} has no site`);
  for (const field of ["latent", "position"]) {
    if (found[field] !== undefined && !Number.isInteger(found[field])) throw new Error(`${field} of a node of ${name} is no whole number`);
  }
  if (found.name !== undefined && typeof found.name !== "string") throw new Error(`the name of a node of ${name} is no text`);
  return found as unknown as Key;
}

/** The nodes of a graph that a key is of. */
export function matching(graph: Graph, wanted: Key): number[] {
  const found: number[] = [];
  for (let node = 0; node < graph.size; node++) {
    const set = graph.set(node);
    if (set.kind !== wanted.kind || set.site !== wanted.site || graph.latent[node] !== (wanted.latent ?? -1)) continue;
    if (wanted.position !== undefined && graph.position[node] !== wanted.position) continue;
    const name = set.kind === "target" ? graph.name(node) : set.name;
    if (wanted.name && wanted.name !== name) continue;
    found.push(node);
  }
  return found;
}
