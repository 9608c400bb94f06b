// What the reader has chosen: one value, in the page's address, with steps back and forth.

import { computed, signal } from "@preact/signals";
import type { Kind } from "./payload";
import { KINDS } from "./graph";

export interface Group {
  name: string;
  nodes: number[];
}

export interface State {
  /** Shares of the influence that nodes and edges keep. */
  nodes: number;
  edges: number;
  /** Edges at least so large, of the largest. */
  least: number;
  hidden: Kind[];
  /** First and last level shown. */
  levels: [number, number] | null;
  /** Positions shown; none chosen is all. */
  positions: number[];
  search: string;
  selected: number | null;
  /** The edge looked at. */
  edge: number | null;
  pinned: number[];
  /** Whether only what is pinned is shown. */
  only: boolean;
  groups: Group[];
  /** How many of the strongest edges are drawn. */
  drawn: number;
}

export const USUAL: State = {
  nodes: 0.8,
  edges: 0.98,
  least: 0,
  hidden: [],
  levels: null,
  positions: [],
  search: "",
  selected: null,
  edge: null,
  pinned: [],
  only: false,
  groups: [],
  drawn: 1000,
};

export const state = signal<State>(USUAL);
const past = signal<State[]>([]);
const future = signal<State[]>([]);
export const canUndo = computed(() => past.value.length > 0);
export const canRedo = computed(() => future.value.length > 0);

const LONGEST_PAST = 200;

/** Change the state. `passing` changes, such as each step of a slider that is being moved, are one step back together until they are `settled`. */
let passing: keyof State | null = null;
export function change(part: Partial<State>, passingName: keyof State | null = null): void {
  if (Object.entries(part).every(([name, value]) => state.value[name as keyof State] === value)) return; // no step back that changes nothing
  if (passingName === null || passingName !== passing) {
    past.value = [...past.value.slice(-LONGEST_PAST), state.value];
  }
  passing = passingName;
  future.value = [];
  state.value = { ...state.value, ...part };
}

/** What was being moved is let go of: to move it again is another step. */
export function settled(): void {
  passing = null;
}

export function undo(): void {
  const last = past.value.at(-1);
  if (!last) return;
  passing = null;
  past.value = past.value.slice(0, -1);
  future.value = [...future.value, state.value];
  state.value = last;
}

export function redo(): void {
  const next = future.value.at(-1);
  if (!next) return;
  passing = null;
  future.value = future.value.slice(0, -1);
  past.value = [...past.value, state.value];
  state.value = next;
}

export function togglePin(node: number): void {
  const { pinned } = state.value;
  change({ pinned: pinned.includes(node) ? pinned.filter((each) => each !== node) : [...pinned, node] });
}

// ------------------------------------------------------------------------------------------ address

/** The state as the part of an address behind "#": only what is not usual. */
export function toAddress(chosen: State): string {
  const found = new URLSearchParams();
  const put = (name: string, value: string, usual: string) => value !== usual && found.set(name, value);
  put("n", String(chosen.nodes), String(USUAL.nodes));
  put("e", String(chosen.edges), String(USUAL.edges));
  put("w", String(chosen.least), String(USUAL.least));
  put("hide", chosen.hidden.join("."), "");
  put("l", chosen.levels ? chosen.levels.join(".") : "", "");
  put("t", chosen.positions.join("."), "");
  put("q", chosen.search, "");
  put("s", chosen.selected === null ? "" : String(chosen.selected), "");
  put("i", chosen.edge === null ? "" : String(chosen.edge), "");
  put("p", chosen.pinned.join("."), "");
  put("only", chosen.only ? "1" : "", "");
  put("d", String(chosen.drawn), String(USUAL.drawn));
  put("g", chosen.groups.length ? JSON.stringify(chosen.groups.map((each) => [each.name, each.nodes])) : "", "");
  return found.toString();
}

/** The state of an address; what it holds that is no state of this graph is left out. */
export function fromAddress(hash: string, size: number, edges: number, levels: number, positions: number): State {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const share = (name: string, usual: number) => within(found.get(name), 0, 1) ?? usual;
  const whole = (text: string | null, end: number) => {
    const value = within(text, 0, end - 1);
    return value !== undefined && Number.isInteger(value) ? value : null;
  };
  const list = (name: string, end: number) => [
    ...new Set((found.get(name) ?? "").split(".").map((each) => whole(each, end)).filter((each) => each !== null)),
  ];
  const range = list("l", levels);
  return {
    nodes: share("n", USUAL.nodes),
    edges: share("e", USUAL.edges),
    least: share("w", USUAL.least),
    hidden: (found.get("hide") ?? "").split(".").filter((each): each is Kind => KINDS.includes(each as Kind)),
    levels: range.length === 2 && range[0] <= range[1] ? [range[0], range[1]] : range.length === 1 ? [range[0], range[0]] : null,
    positions: list("t", positions),
    search: (found.get("q") ?? "").slice(0, 200),
    selected: whole(found.get("s"), size),
    edge: whole(found.get("i"), edges),
    pinned: list("p", size),
    only: found.get("only") === "1",
    groups: groupsOf(found.get("g"), size),
    drawn: within(found.get("d"), 0, 1e6) ?? USUAL.drawn,
  };
}

function within(text: string | null, least: number, most: number): number | undefined {
  if (text === null || text.trim() === "") return undefined;
  const value = Number(text);
  return value >= least && value <= most ? value : undefined;
}

function groupsOf(text: string | null, size: number): Group[] {
  let read: unknown;
  try {
    read = JSON.parse(text ?? "[]");
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
  const used = new Set<number>();
  const isNode = (value: unknown): value is number =>
    Number.isInteger(value) && (value as number) >= 0 && (value as number) < size && !used.has(value as number);
  const found: Group[] = [];
  for (const each of Array.isArray(read) ? read : []) {
    if (!Array.isArray(each) || typeof each[0] !== "string" || !Array.isArray(each[1])) continue;
    const name = each[0].slice(0, 200);
    const nodes = [...new Set(each[1].filter(isNode))];
    if (!nodes.length || found.some((other) => other.name === name)) continue;
    nodes.forEach((node) => used.add(node));
    found.push({ name, nodes });
  }
  return found;
}
