// What the page was given: a JSON header and arrays of numbers behind it, packed by attrib/view/explorer/payload.py.

export type Kind = "token" | "position" | "bias" | "mlp" | "error" | "latent" | "head" | "logit" | "target";

export interface NodeSet {
  kind: Kind;
  site: string;
  name: string;
  size: number;
  /** The place of the set from below: 0 for embeddings, then one for each layer, then the outputs. */
  level: number;
  /** Where Neuronpedia shows the set's latents, up to the latent's number; empty where that is not known. */
  link: string;
}

export interface Header {
  format: string;
  version: number;
  title: string;
  /** Facts about the graph, in the order in which they are shown. */
  facts: [string, string][];
  tokens: string[];
  sets: NodeSet[];
  /** The names of the levels, from below. */
  levels: string[];
  /** Names of the nodes of kinds that have names, in order. */
  labels: string[];
  /** [set, latent, what it is called, who says so]. */
  explanations: [number, number, string, string][];
  /** The machine's rounding of the numbers that the graph was made in. */
  epsilon: number;
  /** What the page leaves out of the graph, in words; empty where it leaves nothing out. */
  left_out: string;
  /** Of a graph that stands beside another: the column of each position, and how many columns there are. */
  columns?: number[];
  width?: number;
  /** How many latents no more is told of than the graph says, where more is told of others. */
  latents_left_out?: number;
  /** How many tokens are told at either end of a latent's logit weights, and the strings of all of them. */
  logits_each?: number;
  logit_strings?: string[];
  /** The strings of examples, and for each set of latents with any what is known of its corpus. */
  example_strings?: string[];
  corpora?: Record<number, { places: number; score: string }>;
  /** Names of nodes of attention scores that the page does not hold. */
  others?: string[];
  /** Why interventions gave no number, each reason once. */
  reasons?: string[];
  arrays: { name: string; type: "f4" | "i4"; length: number; offset: number }[];
}

/** One side of a matrix: what its rows or its columns are. */
export interface Side {
  kind: string;
  site: string;
  /** A name for each that is no latent; empty for latents. */
  labels: string[];
}

export interface MatrixHeader {
  name: string;
  tokens: string[];
  targets: Side;
  sources: Side;
  facts: [string, string][];
  left_out: string;
}

export interface MatricesHeader {
  format: string;
  version: number;
  title: string;
  matrices: MatrixHeader[];
  arrays: Header["arrays"];
}

/** Two graphs: their columns are named "0 …" and "1 …". */
export interface BesideHeader {
  format: string;
  version: number;
  title: string;
  names: [string, string];
  graphs: [Header, Header];
  /** How many nodes there are in both graphs together, the same ones counted once; a node's key is below it. */
  keys: number;
  /** How many nodes each whole graph has that the other has not. */
  nodes_alone: [number, number];
  /** How many edges both whole graphs have, and each alone. */
  edges: { both: number; alone: [number, number] };
  differences_left_out: number;
  /** Names of the ends of differences that neither graph of the page holds, by key. */
  others: Record<string, string>;
  arrays: Header["arrays"];
}

type Numbers = Float32Array | Int32Array;

export interface Payload<Of = Header> {
  header: Of;
  arrays: Record<string, Numbers>;
}

export const GRAPH = "attrib explorer";
export const MATRICES = "attrib matrices";
export const BESIDE = "attrib graphs beside";
export type AnyHeader = Header | MatricesHeader | BesideHeader;
const FORMATS = [GRAPH, MATRICES, BESIDE];
const VERSION = 1;

export async function unpack(base64: string): Promise<Payload<AnyHeader>> {
  let data: ArrayBuffer;
  try {
    data = await inflated(base64);
  } catch {
    throw new Error("its data is damaged or was cut off; write the page again, or fetch the whole file");
  }
  return decode(data);
}

async function inflated(base64: string): Promise<ArrayBuffer> {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) packed[at] = text.charCodeAt(at); // ten times as fast as Uint8Array.from with a function
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export function decode(buffer: ArrayBuffer): Payload<AnyHeader> {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as AnyHeader;
  if (!FORMATS.includes(header.format) || header.version !== VERSION) {
    throw new Error(`this page reads ${FORMATS.join(", ")} of version ${VERSION}, not ${header.format} of version ${header.version}`);
  }
  const begin = Math.ceil((4 + length) / 8) * 8;
  const arrays: Record<string, Numbers> = {};
  for (const each of header.arrays) {
    const Type = each.type === "f4" ? Float32Array : Int32Array;
    arrays[each.name] = new Type(buffer, begin + each.offset, each.length);
  }
  return { header, arrays };
}

/** One of two graphs beside each other, as if it were alone. */
export function graphOf({ header, arrays }: Payload<BesideHeader>, number: 0 | 1): Payload {
  const prefix = `${number} `;
  const own = Object.entries(arrays).filter(([name]) => name.startsWith(prefix));
  return { header: header.graphs[number], arrays: Object.fromEntries(own.map(([name, column]) => [name.slice(prefix.length), column])) };
}
