// What a page is told of nodes and edges beside the graph: logits, examples, heads, attention scores, interventions.

import type { Graph } from "./graph";
import type { Payload } from "./payload";

export interface TokenWeight {
  token: string;
  weight: number;
}

/** What a latent's decoder does to logits, by the weights alone: each strongest first. */
export interface Logits {
  highest: TokenWeight[];
  lowest: TokenWeight[];
}

/** A place in a corpus, with what stands around it and the latent's scores there. */
export interface Example {
  prompt: number;
  position: number;
  /** Which of the tokens stands at the place. */
  at: number;
  tokens: string[];
  values: Float32Array;
}

/** How a latent is active over a corpus. */
export interface Activity {
  density: number;
  maximum: number;
  places: number;
  score: string;
  examples: Example[];
}

/** A head that an edge goes through last, and the position that it reads from. */
export interface Way {
  layer: number;
  head: number;
  position: number;
  loading: number;
}

export interface Heads {
  /** What passes no attention. */
  direct: number;
  total: number;
  /** Largest first. */
  ways: Way[];
}

/** A node of the page; a name, where the page does not hold it; or what the side reads with by itself. */
export type End = number | string | null;

export interface Score {
  layer: number;
  head: number;
  query: number;
  key: number;
  pattern: number;
  value: number;
  total: number;
  /** Largest first. */
  pairs: { query: End; key: End; weight: number }[];
  /** How many pairs there are; the largest are here. */
  count: number;
}

export interface Measured {
  step: number;
  /** Null where the intervention gave no number. */
  measured: number | null;
  /** Why it gave none; "" where it gave one. */
  why: string;
}

/** Interventions on a node that gave no number, of one step and for one reason. */
export interface Lost {
  step: number;
  why: string;
  /** How many edges out of the node were measured so, and how many of them have no number. */
  measured: number;
  lost: number;
}

export class Details {
  private readonly logitsOf: Map<string, number>;
  private readonly activityOf: Map<string, number>;
  private readonly headsOf: Map<number, number[]>;
  private readonly measuredOf: Map<number, number[]>;

  constructor(private readonly payload: Payload) {
    const latents = (name: string) => new Map(Array.from(this.column(`${name} set`), (set, at) => [`${set} ${this.column(`${name} latent`)[at]}`, at]));
    this.logitsOf = latents("logits");
    this.activityOf = latents("examples");
    this.headsOf = byNumber(this.column("heads edge"));
    this.measuredOf = byNumber(this.column("verified edge"));
  }

  private column(name: string): Int32Array | Float32Array {
    return this.payload.arrays[name] ?? new Int32Array(0);
  }

  /** How many latents nothing more is told of, though of others it is. */
  get leftOut(): number {
    return this.payload.header.latents_left_out ?? 0;
  }

  logits(set: number, latent: number): Logits | undefined {
    const row = this.logitsOf.get(`${set} ${latent}`);
    if (row === undefined) return undefined;
    const each = this.payload.header.logits_each!;
    const [token, weight] = [this.column("logits token"), this.column("logits weight")];
    const list = (begin: number) =>
      Array.from({ length: each }, (_, at) => ({ token: this.payload.header.logit_strings![token[begin + at]], weight: weight[begin + at] }));
    return { highest: list(2 * each * row), lowest: list(2 * each * row + each) };
  }

  activity(set: number, latent: number): Activity | undefined {
    const row = this.activityOf.get(`${set} ${latent}`);
    if (row === undefined) return undefined;
    const of = (name: string) => this.column(`examples ${name}`);
    const strings = this.payload.header.example_strings!;
    const examples: Example[] = [];
    for (let number = of("ptr")[row]; number < of("ptr")[row + 1]; number++) {
      const [begin, end] = [of("tokens")[number], of("tokens")[number + 1]];
      examples.push({
        prompt: of("prompt")[number],
        position: of("position")[number],
        at: of("at")[number],
        tokens: Array.from(of("token").subarray(begin, end), (string) => strings[string]),
        values: of("value").subarray(begin, end) as Float32Array,
      });
    }
    return { ...this.payload.header.corpora![set], density: of("density")[row], maximum: of("maximum")[row], examples };
  }

  heads(edge: number): Heads | undefined {
    const [row] = this.headsOf.get(edge) ?? [];
    if (row === undefined) return undefined;
    const of = (name: string) => this.column(`heads ${name}`);
    const ways: Way[] = [];
    for (let at = of("ptr")[row]; at < of("ptr")[row + 1]; at++) {
      ways.push({ layer: of("layer")[at], head: of("head")[at], position: of("position")[at], loading: of("loading")[at] });
    }
    return { direct: of("direct")[row], total: of("total")[row], ways };
  }

  /** The attention scores that an edge hangs on: of its ways, or where these are not known of all heads between its ends. */
  scores(graph: Graph, edge: number): Score[] {
    const [source, target] = [graph.source[edge], graph.target[edge]];
    const ways = this.heads(edge)?.ways;
    const query = graph.position[target];
    const isMeant = (layer: number, head: number, key: number) =>
      ways
        ? ways.some((way) => way.layer === layer && way.head === head && way.position === key)
        : key === graph.position[source] && layer + 1 > graph.level(source) && layer + 1 <= graph.level(target);
    const of = (name: string) => this.column(`scores ${name}`);
    return Array.from(of("layer").keys())
      .filter((at) => of("query")[at] === query && isMeant(of("layer")[at], of("head")[at], of("key")[at]))
      .map((at) => this.score(at));
  }

  private score(at: number): Score {
    const of = (name: string) => this.column(`scores ${name}`);
    const end = (node: number): End => (node >= 0 ? node : node === -1 ? null : this.payload.header.others![-2 - node]);
    const pairs: Score["pairs"] = [];
    for (let pair = of("ptr")[at]; pair < of("ptr")[at + 1]; pair++) {
      pairs.push({ query: end(of("query node")[pair]), key: end(of("key node")[pair]), weight: of("weight")[pair] });
    }
    const [layer, head, query, key] = ["layer", "head", "query", "key"].map((name) => of(name)[at]);
    return { layer, head, query, key, pattern: of("pattern")[at], value: of("value")[at], total: of("total")[at], pairs, count: of("pairs")[at] };
  }

  measured(edge: number): Measured[] {
    return (this.measuredOf.get(edge) ?? []).map((at) => {
      const why = this.column("verified why")[at];
      return {
        step: this.column("verified step")[at],
        measured: why < 0 ? this.column("verified measured")[at] : null,
        why: why < 0 ? "" : this.payload.header.reasons![why],
      };
    });
  }

  /** What gave no number, of all that was measured of some edges. */
  lost(edges: number[]): Lost[] {
    const all = this.measuredOf.size ? edges.flatMap((edge) => this.measured(edge)) : [];
    const found = new Map<string, Lost>();
    for (const { step, why } of all) {
      if (!why) continue;
      const key = `${step} ${why}`;
      const there = found.get(key) ?? { step, why, measured: all.filter((each) => each.step === step).length, lost: 0 };
      there.lost++;
      found.set(key, there);
    }
    return [...found.values()];
  }
}

function byNumber(column: ArrayLike<number>): Map<number, number[]> {
  const found = new Map<number, number[]>();
  Array.from(column).forEach((number, at) => {
    const there = found.get(number);
    if (there) there.push(at);
    else found.set(number, [at]);
  });
  return found;
}
