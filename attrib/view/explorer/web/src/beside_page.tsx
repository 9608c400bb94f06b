// The page of two graphs beside each other: what is the same stands at the same place in both, and both are moved, chosen and pruned together.

import { signal } from "@preact/signals";
import type { ZoomTransform } from "d3-zoom";
import { useMemo, useRef } from "preact/hooks";
import type { View } from "./axes";
import { theme as themeOf, type Theme } from "./colours";
import { Controls, type Names } from "./controls";
import { Differences, differencesCsv, differencesOf, nameOf, NodesAlone, type Difference } from "./differences";
import { KINDS } from "./graph";
import { GroupPanel, groupOf } from "./group_panel";
import { counted, kindsOf, search } from "./graph_page";
import { GraphView } from "./graph_view";
import { place } from "./layout";
import { useAddress, useDark, useSaid } from "./page_hooks";
import { About, EdgePanel, NodePanel } from "./panels";
import type { BesideHeader, Payload } from "./payload";
import { keyOf, matching, png, readSupernodes, supernodes, svg } from "./saving";
import { widest, type Shown } from "./shown";
import { Side } from "./side";
import { change, fromAddress, state, type State } from "./state";
import { Strip } from "./strip";
import { visible } from "./text";

const moved = signal<ZoomTransform | null>(null);

interface Both {
  header: BesideHeader;
  sides: [Side, Side];
  differences: Difference[];
}

/** Both graphs as they are shown: with a place for each item that has the same name in both. */
function shownOf(sides: Side[], chosen: State): Shown[] {
  const picked = sides.map((side) => side.scene.picked(side.local(chosen)));
  const placed = place(
    sides.map((side, number) => ({
      graph: side.graph,
      influence: side.scene.influence,
      items: picked[number].items,
      name: (item) => (item.group !== null ? `group ${item.group}` : side.keys[item.nodes[0]]),
    })),
  );
  const largest = Math.max(...picked.map(widest));
  return picked.map((each) => ({ ...each, ...placed, largest }));
}

function BesidePage({ header, sides, differences }: Both) {
  const chosen = state.value;
  const [dark, setDark] = useDark();
  const [said, say] = useSaid();
  const theme = themeOf(dark);
  const shown = useMemo(
    () => shownOf(sides, chosen),
    [chosen.nodes, chosen.edges, chosen.least, chosen.hidden, chosen.levels, chosen.positions, chosen.pinned, chosen.only, chosen.groups],
  );
  const found = useMemo(() => searchBoth(sides, chosen.search), [chosen.search]);
  const matches = useMemo(() => sides.map((side) => new Set(found.map((key) => side.node(key)).filter((node) => node !== null))), [found]);
  useAddress(chosen, () => readAddress(header, sides));
  const local = sides.map((side) => side.local(chosen));
  const views = [useRef<View>(null), useRef<View>(null)];
  const pictures = () =>
    sides.map((side, number) => ({ graph: side.graph, shown: shown[number], state: local[number], view: views[number].current!, matches: matches[number] }));
  const short = (key: number) => nameOf(sides, header.others, key);
  const now = chosen.selected === null ? "" : `${short(chosen.selected)}, ${sides.map((side) => influenceIn(side, chosen.selected!)).join(", ")}`;
  return (
    <>
      <header>
        <h1>{header.names.map((name, number) => <>{number ? " beside " : ""}<bdi>{visible(name, 100)}</bdi></>)}</h1>
      </header>
      <main>
        <Controls
          names={namesOf(sides, short)}
          kinds={KINDS.filter((kind) => sides.some((side) => kindsOf(side.graph).includes(kind)))}
          levels={sides[0].graph.header.levels}
          counts={sides.map((side, number) => `${visible(side.name)}: ${counted(side.graph, shown[number])}`)}
          chosen={chosen}
          theme={theme}
          found={found}
          taken={{
            svg: () => svg(pictures(), header.title, theme),
            png: () => png(pictures(), theme),
            csv: () => differencesCsv(header, differences, sides),
          }}
          say={say}
          toggleTheme={() => setDark(!dark)}
        />
        <div class="beside">
          {sides.map((side, number) => (
            <section class="side" key={number} aria-label={visible(side.name)}>
              <h2><bdi>{visible(side.name)}</bdi></h2>
              <Strip scene={side.scene} chosen={chosen} name={side.name} />
              <GraphView
                scene={side.scene}
                shown={shown[number]}
                chosen={local[number]}
                theme={theme}
                matches={matches[number]}
                id={`graph-${number}`}
                name={side.name}
                moved={moved}
                kept={views[number]}
              />
            </section>
          ))}
        </div>
        <Panel header={header} sides={sides} shown={shown} differences={differences} chosen={chosen} local={local} theme={theme} />
      </main>
      <p class="said" role="status" aria-live="polite" id="said">{said || now}</p>
    </>
  );
}

function Panel({ header, sides, shown, differences, chosen, local, theme }: Both & { shown: Shown[]; chosen: State; local: State[]; theme: Theme }) {
  const { selected, edge } = chosen;
  const groups = sides.map((_, number) => groupOf(shown[number], local[number].selected));
  const lacks = (what: string) => <p class="note">On this page it has no such {what}.</p>;
  return (
    <aside class="panel" aria-label="Details">
      {edge !== null &&
        sides.map((side, number) => (
          <section class="of-side" key={number}>
            <h2 class="whose"><bdi>{visible(side.name)}</bdi></h2>
            {local[number].edge === null ? lacks("edge") : <EdgePanel scene={side.scene} edge={local[number].edge!} chosen={local[number]} id={`edge-${number}`} />}
          </section>
        ))}
      {edge !== null && <button onClick={() => change({ edge: null })}>Close the edge</button>}
      <Differences header={header} differences={differences} sides={sides} at={selected} />
      {selected !== null
        ? sides.map((side, number) => (
            <section class="of-side" key={number}>
              <h2 class="whose"><bdi>{visible(side.name)}</bdi></h2>
              {groups[number] && <GroupPanel scene={side.scene} shown={shown[number]} group={groups[number]} theme={theme} id={`group-${number}`} />}
              {local[number].selected === null ? lacks("node") : (
                <NodePanel scene={side.scene} node={local[number].selected!} chosen={local[number]} theme={theme} id={`node-${number}`} />
              )}
            </section>
          ))
        : edge === null && (
            <>
              <NodesAlone sides={sides} />
              {sides.map((side, number) => (
                <section class="of-side" key={number}>
                  <h2 class="whose"><bdi>{visible(side.name)}</bdi></h2>
                  <About scene={side.scene} id={`about-${number}`} />
                </section>
              ))}
            </>
          )}
    </aside>
  );
}

function influenceIn(side: Side, key: number): string {
  const node = side.node(key);
  return `${node === null ? "not there" : `influence ${side.scene.influence[node].toPrecision(3)}`} in ${visible(side.name)}`;
}

/** Keys of nodes that are found in either graph, the most influential first. */
function searchBoth(sides: Side[], text: string): number[] {
  const found = new Map<number, number>();
  for (const side of sides) {
    for (const node of search(side.scene, text)) {
      const key = side.keys[node];
      found.set(key, Math.max(found.get(key) ?? 0, side.scene.influence[node]));
    }
  }
  return [...found].sort(([a, mine], [b, theirs]) => theirs - mine || a - b).map(([key]) => key);
}

function namesOf(sides: Side[], short: (key: number) => string): Names {
  const inEither = (key: number) => sides.map((side) => ({ side, node: side.node(key) })).filter((each) => each.node !== null);
  return {
    short,
    explanation: (key) => inEither(key).map(({ side, node }) => side.graph.explanation(node!)).find(Boolean),
    supernodes: (groups) => supernodes(groups, (key) => inEither(key).map(({ side, node }) => keyOf(side.graph, node!))[0]),
    readSupernodes: (text) =>
      readSupernodes(text, (wanted) => [...new Set(sides.flatMap((side) => matching(side.graph, wanted).map((node) => side.keys[node])))], short),
  };
}

/** The state of the address; keys of nodes that the page does not hold are left out. */
function readAddress(header: BesideHeader, sides: Side[]): State {
  const [{ graph }] = sides;
  const found = fromAddress(location.hash, header.keys, header.keys ** 2, graph.header.levels.length, graph.columns);
  const isHere = (key: number) => sides.some((side) => side.node(key) !== null);
  return {
    ...found,
    selected: found.selected !== null && isHere(found.selected) ? found.selected : null,
    pinned: found.pinned.filter(isHere),
    groups: found.groups.map((group) => ({ ...group, nodes: group.nodes.filter(isHere) })).filter((group) => group.nodes.length > 0),
  };
}

/** The page, and what the console and tests reach of it. */
export function besidePage(payload: Payload<BesideHeader>) {
  const sides: [Side, Side] = [new Side(payload, 0), new Side(payload, 1)];
  const largest = Math.max(...sides.map((side) => side.scene.largest));
  for (const side of sides) side.scene.largest = largest;
  const differences = differencesOf(payload);
  const { header } = payload;
  state.value = readAddress(header, sides);
  return {
    page: <BesidePage header={header} sides={sides} differences={differences} />,
    parts: { header, sides, differences, state, change, shownOf: () => shownOf(sides, state.value) },
  };
}
