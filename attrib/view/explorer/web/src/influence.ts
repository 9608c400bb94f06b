// Influence and pruning, by the rules of attrib.graph.influence and attrib.graph.prune; a test holds them to these.

import type { Graph } from "./graph";
import type { Kind } from "./payload";

const ALWAYS: ReadonlySet<Kind> = new Set(["token", "logit", "target"]);

export interface Pruned {
  nodes: Uint8Array;
  edges: Uint8Array;
}

/** The size of each edge as a share of all that its row is made of, dropped edges too. */
export function shares(graph: Graph, counted?: Uint8Array): Float64Array {
  const found = new Float64Array(graph.edges);
  for (let row = 0; row < graph.targets.length; row++) {
    let all = 0;
    let kept = 0;
    const begin = graph.indptr[row];
    const end = graph.indptr[row + 1];
    for (let edge = begin; edge < end; edge++) {
      const size = Math.abs(graph.weight[edge]);
      all += size;
      if (!counted || counted[edge]) kept += size;
    }
    let whole = kept;
    if (!counted) {
      const dropped = graph.l1[row] - all;
      if (dropped > 64 * graph.header.epsilon * graph.l1[row]) whole += dropped;
    }
    if (whole === 0) continue;
    for (let edge = begin; edge < end; edge++) {
      if (!counted || counted[edge]) found[edge] = Math.abs(graph.weight[edge]) / whole;
    }
  }
  return found;
}

/** How much of the outputs is reached through each node: edges lead from lower numbers to higher ones, so one pass from above does. */
export function spread(graph: Graph, share: Float64Array): Float64Array {
  const found = new Float64Array(graph.size);
  for (let row = graph.targets.length - 1; row >= 0; row--) {
    const reached = found[graph.targets[row]] + graph.importance[row];
    if (reached === 0) continue;
    for (let edge = graph.indptr[row]; edge < graph.indptr[row + 1]; edge++) found[graph.source[edge]] += share[edge] * reached;
  }
  return found;
}

/** The influence that goes along each edge. */
export function alongEdges(graph: Graph, share: Float64Array): Float64Array {
  const reached = spread(graph, share);
  const found = new Float64Array(graph.edges);
  for (let row = 0; row < graph.targets.length; row++) {
    const at = reached[graph.targets[row]] + graph.importance[row];
    for (let edge = graph.indptr[row]; edge < graph.indptr[row + 1]; edge++) found[edge] = share[edge] * at;
  }
  return found;
}

/** The least score of the fewest items, largest first, that have this share of the sum; what ties with it stays too. */
function limit(score: Float64Array, share: number): number {
  let some = 0;
  const ordered = new Float64Array(score.length);
  for (const each of score) if (each !== 0) ordered[some++] = each;
  if (share <= 0 || some === 0) return Infinity;
  if (share >= 1) return Number.MIN_VALUE;
  return reaching(ordered.subarray(0, some).sort().reverse(), share);
}

/** The first of scores, largest first, up to which there is this share of their sum. */
function reaching(ordered: Float64Array, share: number): number {
  let sum = 0;
  for (const each of ordered) sum += each;
  let passed = 0;
  for (const each of ordered) {
    passed += each;
    if (passed / sum >= share) return each;
  }
  return Number.MIN_VALUE;
}

export function prune(graph: Graph, influence: Float64Array, nodes: number, edges: number, pinned: ReadonlySet<number>): Pruned {
  const always = new Uint8Array(graph.size);
  let chosen = new Uint8Array(graph.size);
  const least = limit(influence, nodes);
  for (let node = 0; node < graph.size; node++) {
    always[node] = Number(ALWAYS.has(graph.kind(node)) || pinned.has(node));
    chosen[node] = Number(always[node] === 1 || influence[node] >= least);
  }
  const kept = new Uint8Array(graph.edges);
  for (let edge = 0; edge < graph.edges; edge++) kept[edge] = chosen[graph.source[edge]] & chosen[graph.target[edge]];
  const along = alongEdges(graph, shares(graph, kept));
  const weakest = limit(along, edges);
  for (let edge = 0; edge < graph.edges; edge++) if (along[edge] < weakest) kept[edge] = 0;
  for (;;) {
    const leads = new Uint8Array(graph.size);
    const isLedTo = new Uint8Array(graph.size);
    for (let edge = 0; edge < graph.edges; edge++) {
      if (kept[edge]) leads[graph.source[edge]] = isLedTo[graph.target[edge]] = 1;
    }
    const stays = new Uint8Array(graph.size);
    let gone = false;
    for (let node = 0; node < graph.size; node++) {
      if (!chosen[node]) continue;
      const isAsked = graph.kind(node) === "latent" && graph.rowOf[node] >= 0;
      stays[node] = Number(always[node] === 1 || (leads[node] === 1 && (!isAsked || isLedTo[node] === 1)));
      gone ||= !stays[node];
    }
    if (!gone) return { nodes: chosen, edges: kept };
    chosen = stays;
    for (let edge = 0; edge < graph.edges; edge++) kept[edge] &= stays[graph.source[edge]] & stays[graph.target[edge]];
  }
}
