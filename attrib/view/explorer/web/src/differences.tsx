// Where two graphs differ: the edges whose weights differ most, those that one has alone, and the nodes that one has alone.

import { useState } from "preact/hooks";
import type { BesideHeader, Payload } from "./payload";
import { csvOf } from "./saving";
import { codeOf, type Side } from "./side";
import { change } from "./state";
import { count, signed, visible } from "./text";

const LISTED = 40;
const LISTED_AT_NODE = 10;
const NODES_LISTED = 12;
type Which = "all" | "first" | "second" | "both";

/** An edge of either graph, by the keys of its ends, with its weight in both. */
export interface Difference {
  source: number;
  target: number;
  first: number;
  second: number;
  which: Exclude<Which, "all">;
}

/** The edges that differ most, the most first. */
export function differencesOf({ arrays }: Payload<BesideHeader>): Difference[] {
  const of = (name: string) => arrays[`differences ${name}`];
  const names = ["first", "second", "both"] as const;
  return Array.from(of("source"), (source, at) => ({
    source, target: of("target")[at], first: of("first")[at], second: of("second")[at], which: names[of("in")[at] - 1],
  }));
}

/** What a node is called, by its key: in both graphs, where these say it differently. */
export function nameOf(sides: Side[], others: Record<string, string>, key: number): string {
  const names = sides.map((side) => [side.graph, side.node(key)] as const).filter(([, node]) => node !== null);
  return [...new Set(names.map(([graph, node]) => graph.short(node!)))].join(" | ") || visible(others[key] ?? "");
}

interface Props {
  header: BesideHeader;
  differences: Difference[];
  sides: Side[];
  /** The node whose edges alone are listed, by its key. */
  at: number | null;
}

export function Differences({ header, differences, sides, at }: Props) {
  const [which, setWhich] = useState<Which>("all");
  const [names, counts] = [header.names.map((name) => visible(name)), header.edges];
  const found = differences.filter((each) => (which === "all" || each.which === which) && (at === null || each.source === at || each.target === at));
  const most = at === null ? LISTED : LISTED_AT_NODE;
  const options: [Which, string][] = [
    ["all", "all edges"], ["both", "in both"], ["first", `in ${names[0]} alone`], ["second", `in ${names[1]} alone`],
  ];
  return (
    <section id="differences">
      <h2>Where they differ</h2>
      {at === null && (
        <dl>
          <dt>edges in both</dt><dd>{count(counts.both)}</dd>
          {names.map((name, number) => (
            <>
              <dt>in <bdi>{name}</bdi> alone</dt>
              <dd>{count(counts.alone[number])} edges, {count(header.nodes_alone[number])} nodes</dd>
            </>
          ))}
        </dl>
      )}
      <label>
        Edges listed{" "}
        <select id="which" value={which} onChange={(event) => setWhich(event.currentTarget.value as Which)}>
          {options.map(([value, name]) => <option key={value} value={value}>{name}</option>)}
        </select>
      </label>
      <table class="told-table" aria-label="Edges that differ most">
        <thead>
          <tr>
            <th scope="col">edge</th>
            <th scope="col"><bdi>{names[0]}</bdi></th>
            <th scope="col"><bdi>{names[1]}</bdi></th>
            <th scope="col">change</th>
          </tr>
        </thead>
        <tbody>
          {found.slice(0, most).map((each) => (
            <tr key={codeOf(each.source, each.target, header.keys)}>
              <th scope="row">
                <button class="end" onClick={() => change({ edge: codeOf(each.source, each.target, header.keys) })}>
                  <bdi>{nameOf(sides, header.others, each.source)}</bdi> → <bdi>{nameOf(sides, header.others, each.target)}</bdi>
                </button>
              </th>
              <td>{each.which === "second" ? "none" : signed(each.first)}</td>
              <td>{each.which === "first" ? "none" : signed(each.second)}</td>
              <td>{signed(each.second - each.first)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="note">
        {count(found.length)} edges{found.length > most ? `, ${most} listed` : ""}.
        {header.differences_left_out > 0 && ` ${count(header.differences_left_out)} that differ less are left out of the page.`}
      </p>
    </section>
  );
}

/** The nodes that one graph has alone, the most influential first. */
export function NodesAlone({ sides }: { sides: Side[] }) {
  return (
    <>
      {sides.map((side) => {
        const found = Array.from(side.keys.keys()).filter((node) => side.alone[node]);
        found.sort((a, b) => side.scene.influence[b] - side.scene.influence[a] || a - b);
        return (
          <section key={side.number}>
            <h3>Nodes of <bdi>{visible(side.name)}</bdi> alone <small>{found.length > NODES_LISTED ? `${NODES_LISTED} listed` : ""}</small></h3>
            <ol class="edges" id={`alone-${side.number}`} aria-label={`Nodes of ${visible(side.name)} alone`}>
              {found.slice(0, NODES_LISTED).map((node) => (
                <li key={node}>
                  <button class="end" onClick={() => side.scene.choosing.choose({ selected: node, edge: null })}><bdi>{side.graph.short(node)}</bdi></button>
                  <small>influence {side.scene.influence[node].toPrecision(3)}</small>
                </li>
              ))}
            </ol>
          </section>
        );
      })}
    </>
  );
}

/** All differences that the page holds, one a line. */
export function differencesCsv(header: BesideHeader, differences: Difference[], sides: Side[]): Blob {
  const rows = differences.map((each) => [
    nameOf(sides, header.others, each.source), nameOf(sides, header.others, each.target),
    each.which === "second" ? "" : String(each.first), each.which === "first" ? "" : String(each.second), String(each.second - each.first),
  ]);
  return csvOf([["source", "target", ...header.names, "change"], ...rows]);
}
