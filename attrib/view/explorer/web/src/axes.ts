// The names of tokens and layers, below the picture and at its left: at every scale in letters that can be read, and as many as have room.
//
// Names lie along the picture's edges, or along the window's where the picture goes on beyond it, so that wherever one looks it is said
// what that is. Where not every column or row has room for its name, every 2nd, 5th, 10th … has it.

import type { Graph } from "./graph";
import type { Place } from "./layout";
import { fitted, widthOf } from "./letters";
import type { Box, Moved } from "./surfaces";

/** How the picture lies in the window through which it is seen, in pixels. */
export interface View extends Moved {
  width: number;
  height: number;
}

/** A name in the middle of where it is drawn, in pixels of the window. */
export interface Name {
  text: string;
  at: [number, number];
  size: number;
  anchor: "middle" | "end";
  /** Whether it is that of what is looked at, or of lesser weight than its neighbours. */
  tone: "usual" | "lesser" | "looked at";
}

export interface Axes {
  inner: Box;
  names: Name[];
  /** Where a named column begins, and where a named row ends, within `inner`. */
  across: number[];
  down: number[];
}

/** Pixels of letters, and of the numbers of positions. */
export const LETTERS = 11;
const NUMBERS = 9;
/** The fewest pixels from the middle of a token, and of a level, to that of the next. */
const TOKEN = 34;
const LEVEL = 15;
/** Between two tokens. */
const APART = 6;
/** The widest that the token of what is looked at becomes, where its neighbours give way to it. */
const WIDEST = 160;
/** Below the picture: a line of tokens and one of their positions. */
export const FOOT = 32;

/** The width of the names at the picture's left. */
export function sideOf(graph: Graph): number {
  return Math.max(64, ...graph.header.levels.map((name) => Math.ceil(widthOf(name, LETTERS)) + 14));
}

/** Where the picture itself is seen: what the names leave of the window. */
export function innerOf(graph: Graph, place: Place, { width, height, k, x, y }: View): Box {
  const side = sideOf(graph);
  const left = Math.max(0, Math.min(x - side, width - side)) + side;
  return { left, top: 0, width: width - left, height: Math.max(0, Math.min(y + k * place.height, height - FOOT)) };
}

/** `node` is what is looked at: its token and its layer are named before others. */
export function axesOf(graph: Graph, place: Place, view: View, node: number | null): Axes {
  const inner = innerOf(graph, place, view);
  const { left, height: top } = inner;

  const levels = place.rows.map(({ level, y, height }): Part => {
    const isEnd = level === place.rows[0].level || level === place.rows.at(-1)!.level;
    const half = LEVEL / 2;
    return { name: level, number: isEnd ? null : level - 1, begin: view.y + view.k * y, end: view.y + view.k * (y + height), half };
  });
  const down = chosen(levels, LEVEL, [0, top], node === null ? null : graph.level(node));
  const names = down.parts.map(({ name, at, isLooked }): Name => ({
    text: fitted(graph.header.levels[name], LETTERS, left), at: [left - 6, at + 0.36 * LETTERS], size: LETTERS, anchor: "end",
    tone: isLooked ? "looked at" : "usual",
  }));

  const last = graph.header.tokens.length - 1;
  const at = node === null ? null : graph.position[node];
  const tokens = graph.header.tokens.map((string, position): Part => {
    const { x, width } = place.columns[graph.columnAt(position)];
    const [begin, end] = [view.x + view.k * x, view.x + view.k * (x + width)];
    const most = position === at ? WIDEST : end - begin;
    const wide = most > TOKEN ? Math.min(most, widthOf(fitted(string, LETTERS, most), LETTERS) + APART) : TOKEN;
    return { name: position, number: position === 0 || position === last ? null : position, begin, end, half: Math.max(TOKEN, wide) / 2 };
  });
  const across = chosen(tokens, TOKEN, [left, view.width], at);
  for (const { name, at, room, isLooked } of across.parts) {
    const tone = isLooked ? "looked at" : "usual";
    names.push({ text: fitted(graph.header.tokens[name], LETTERS, room - APART), at: [at, top + 13], size: LETTERS, anchor: "middle", tone });
    names.push({ text: String(name), at: [at, top + 26], size: NUMBERS, anchor: "middle", tone: isLooked ? tone : "lesser" });
  }
  return { inner, names, across: across.edges.map((each) => each.begin), down: down.edges.map((each) => each.end) };
}

/** A column or a row, in pixels along its axis. */
interface Part {
  /** Which it is. */
  name: number;
  /** By which it is told whether it is the 5th; null for what is named wherever it has room. */
  number: number | null;
  begin: number;
  end: number;
  /** Half of what its name needs at least. */
  half: number;
}

interface Chosen {
  name: number;
  /** The middle of its name. */
  at: number;
  /** What its name may take up. */
  room: number;
  isLooked: boolean;
}

/** The parts that are named between two ends of the window, in order, and those at whose edges a line is drawn. */
function chosen(parts: Part[], apart: number, [from, to]: [number, number], looked: number | null): { parts: Chosen[]; edges: Part[] } {
  const step = stepOf(parts, apart);
  const isStep = ({ number }: Part) => number !== null && number % step === 0;
  // what is looked at goes before all, the ends before what lies between them
  const rank = (part: Part) => (part.name === looked ? 0 : part.number === null ? 1 : 2);
  const wanted = parts.filter((part) => part.name === looked || part.number === null || isStep(part)).sort((a, b) => rank(a) - rank(b));
  const found: (Part & { at: number })[] = [];
  for (const part of wanted) {
    const at = middle(part, from, to, rank(part) < 2);
    const isWithin = at - part.half >= from && at + part.half <= to;
    if (isWithin && found.every((other) => Math.abs(other.at - at) >= other.half + part.half)) found.push({ ...part, at });
  }
  found.sort((a, b) => a.at - b.at);
  const named = found.map(({ name, at, half }, place): Chosen => {
    const [before, after] = [found[place - 1], found[place + 1]];
    const lower = before ? (at - half - before.at - before.half) / 2 : at - half - from;
    const upper = after ? (after.at - after.half - at - half) / 2 : to - at - half;
    return { name, at, room: 2 * (half + Math.min(lower, upper)), isLooked: name === looked };
  });
  return { parts: named, edges: parts.filter((part) => isStep(part) || step === 1) };
}

/** The middle of a part's name: that of the part, unless the part is only partly within the window, or narrow and at its end. */
function middle({ begin, end, half }: Part, from: number, to: number, isMoved: boolean): number {
  const at = (begin + end) / 2;
  const isWide = Math.min(end, to) - Math.max(begin, from) >= 2 * half;
  const [lower, upper] = isWide ? [Math.max(begin, from) + half, Math.min(end, to) - half] : [from + half, to - half];
  const isHere = isWide || (isMoved && at >= from && at <= to);
  return isHere ? Math.max(lower, Math.min(upper, at)) : at;
}

/** The smallest of 1, 2, 5, 10, 20, 50 … whose multiples are far enough apart. */
function stepOf(parts: Part[], apart: number): number {
  const numbered = parts.filter((part) => part.number !== null);
  for (let ten = 1; ; ten *= 10) {
    for (const step of [ten, 2 * ten, 5 * ten]) {
      const some = numbered.filter((part) => part.number! % step === 0);
      const isRoomy = some.every((part, place) => place === 0 || distance(some[place - 1], part) >= apart);
      if (isRoomy) return step;
    }
  }
}

function distance(one: Part, other: Part): number {
  return Math.abs(one.begin + one.end - other.begin - other.end) / 2;
}
