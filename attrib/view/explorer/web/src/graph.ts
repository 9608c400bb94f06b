// The graph as the page holds it: columns of numbers, rows of edges by target, and the same edges by source.

import { Details } from "./details";
import type { Header, Kind, NodeSet, Payload } from "./payload";
import { visible } from "./text";

const NAMED: ReadonlySet<Kind> = new Set(["token", "logit", "target"]);
/** Kinds whose nodes have a value; others are there as they are. */
const VALUED: ReadonlySet<Kind> = new Set(["logit", "target", "head"]);
export const KINDS: readonly Kind[] = ["token", "position", "bias", "mlp", "error", "latent", "head", "logit", "target"];

export class Graph {
  readonly header: Header;
  readonly size: number;
  readonly edges: number;
  readonly position: Int32Array;
  readonly latent: Int32Array;
  readonly activation: Float32Array;
  /** The node of each row, ascending. */
  readonly targets: Int32Array;
  readonly indptr: Int32Array;
  /** The node that each edge comes from. */
  readonly source: Int32Array;
  readonly weight: Float32Array;
  readonly value: Float32Array;
  readonly own: Float32Array;
  readonly total: Float32Array;
  readonly l1: Float32Array;
  readonly importance: Float32Array;
  /** The number of each node's set. */
  readonly setOf: Int32Array;
  /** The row of each node, or -1. */
  readonly rowOf: Int32Array;
  /** The node that each edge goes to. */
  readonly target: Int32Array;
  /** For each node, the edges out of it: out[outptr[n] … outptr[n + 1]]. */
  readonly outptr: Int32Array;
  readonly out: Int32Array;
  /** How many columns the picture has: one for each position, and where two graphs stand beside each other those of both. */
  readonly columns: number;
  /** What is known of nodes and edges beside the graph. */
  readonly details: Details;
  private readonly columnOf: readonly number[];
  private readonly names = new Map<number, string>();
  private readonly explained = new Map<string, [string, string]>();

  constructor(payload: Payload) {
    const { header, arrays } = payload;
    this.header = header;
    this.details = new Details(payload);
    this.columnOf = header.columns ?? header.tokens.map((_, position) => position);
    this.columns = header.width ?? header.tokens.length;
    const integers = (name: string) => arrays[name] as Int32Array;
    const floats = (name: string) => arrays[name] as Float32Array;
    this.position = integers("position");
    this.latent = integers("latent");
    this.activation = floats("activation");
    this.targets = integers("targets");
    this.indptr = integers("indptr");
    this.source = integers("indices");
    this.weight = floats("weight");
    this.value = floats("value");
    this.own = floats("own");
    this.total = floats("total");
    this.l1 = floats("l1");
    this.importance = floats("importance");
    this.size = this.position.length;
    this.edges = this.source.length;

    this.setOf = new Int32Array(this.size);
    let node = 0;
    let label = 0;
    header.sets.forEach((set, number) => {
      for (let at = 0; at < set.size; at++, node++) {
        this.setOf[node] = number;
        if (NAMED.has(set.kind)) this.names.set(node, header.labels[label++]);
      }
    });
    for (const [set, latent, text, by] of header.explanations) this.explained.set(`${set} ${latent}`, [text, by]);

    this.rowOf = new Int32Array(this.size).fill(-1);
    this.target = new Int32Array(this.edges);
    this.outptr = new Int32Array(this.size + 1);
    for (let row = 0; row < this.targets.length; row++) {
      this.rowOf[this.targets[row]] = row;
      this.target.fill(this.targets[row], this.indptr[row], this.indptr[row + 1]);
    }
    for (const from of this.source) this.outptr[from + 1]++;
    for (let at = 0; at < this.size; at++) this.outptr[at + 1] += this.outptr[at];
    const next = this.outptr.slice();
    this.out = new Int32Array(this.edges);
    for (let edge = 0; edge < this.edges; edge++) this.out[next[this.source[edge]]++] = edge;
  }

  set(node: number): NodeSet {
    return this.header.sets[this.setOf[node]];
  }

  kind(node: number): Kind {
    return this.set(node).kind;
  }

  level(node: number): number {
    return this.set(node).level;
  }

  /** The column that a node stands in. */
  column(node: number): number {
    return this.columnOf[this.position[node]];
  }

  /** The column of a position. */
  columnAt(position: number): number {
    return this.columnOf[position];
  }

  /** The string of a token, logit or target; undefined for others. */
  name(node: number): string | undefined {
    return this.names.get(node);
  }

  /** A node in fewest words, as attrib's own `Nodes.short` puts it. */
  short(node: number): string {
    const set = this.set(node);
    const at = `@${this.position[node]}`;
    const named = this.names.get(node);
    if (named !== undefined) return `${set.kind} '${visible(named)}'${at}`;
    if (set.kind === "position") return `position${at}`;
    const place = placeOf(set.site);
    if (set.kind === "head") return `attn${place.layer}[${this.latent[node]}]${at}`;
    return set.kind === "latent" ? `${place.name}[${this.latent[node]}]${at}` : `${place.name} ${set.kind}${at}`;
  }

  /**
   * A node in the words that its mark, its layer and its column leave to be said: an output's string, a latent's label or number, which head;
   * "" for a token, which is named below; of others the kind, which their marks tell once one is named.
   */
  beside(node: number): string {
    const { kind, site, level } = this.set(node);
    if (kind === "token") return "";
    const named = this.names.get(node) ?? this.explanation(node)?.[0];
    if (named !== undefined) return named;
    if (kind === "head") return `head ${this.latent[node]}`;
    if (kind !== "latent") return kind;
    const isOnly = this.header.sets.every((each) => each.kind !== "latent" || each.level !== level || each.site === site);
    return isOnly ? String(this.latent[node]) : `${placeOf(site).name}[${this.latent[node]}]`;
  }

  /** What a node's number measures; "" where it has none that tells anything. */
  measure(node: number): string {
    const kind = this.kind(node);
    return kind === "latent" ? "activation" : VALUED.has(kind) ? "value" : "";
  }

  /** What a latent is called and who says so. */
  explanation(node: number): [string, string] | undefined {
    return this.explained.get(`${this.setOf[node]} ${this.latent[node]}`);
  }

  /** Where Neuronpedia shows a node, or "". */
  link(node: number): string {
    const { link } = this.set(node);
    return link && `${link}${this.latent[node]}`;
  }

  /** The edges into a node. */
  incoming(node: number): number[] {
    const row = this.rowOf[node];
    return row < 0 ? [] : range(this.indptr[row], this.indptr[row + 1]);
  }

  /** The edges out of a node. */
  outgoing(node: number): number[] {
    return Array.from(this.out.subarray(this.outptr[node], this.outptr[node + 1]));
  }
}

function range(begin: number, end: number): number[] {
  return Array.from({ length: end - begin }, (_, at) => begin + at);
}

const SITES: Record<string, string> = {
  hook_resid_pre: "resid_pre",
  hook_resid_mid: "resid_mid",
  hook_resid_post: "resid_post",
  hook_attn_out: "attn_out",
  hook_mlp_out: "mlp_out",
  "attn.hook_z": "z",
  "mlp.hook_in": "mlp",
};

/** "blocks.8.mlp.hook_in" as what and where it is. */
function placeOf(site: string): { name: string; layer: string } {
  const found = /^blocks\.(\d+)\.(.+)$/.exec(site);
  if (!found) return { name: site, layer: "" };
  return { name: `${SITES[found[2]] ?? found[2]}${found[1]}`, layer: found[1] };
}
