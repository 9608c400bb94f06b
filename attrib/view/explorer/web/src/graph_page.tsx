// The page of a graph, drawn again whenever the reader chooses something.

import { useMemo, useRef } from "preact/hooks";
import type { View } from "./axes";
import { theme as themeOf } from "./colours";
import { Controls, type Names } from "./controls";
import { Graph, KINDS } from "./graph";
import { GraphView } from "./graph_view";
import { alongEdges, prune, shares } from "./influence";
import { useAddress, useDark, useSaid } from "./page_hooks";
import { Panel } from "./panels";
import type { Kind, Payload } from "./payload";
import { csv, keyOf, matching, png, readSupernodes, supernodes, svg } from "./saving";
import { Scene, type Shown } from "./shown";
import { change, fromAddress, state } from "./state";
import { Strip } from "./strip";
import { count, visible } from "./text";

function GraphPage({ scene }: { scene: Scene }) {
  const { graph } = scene;
  const chosen = state.value;
  const [dark, setDark] = useDark();
  const [said, say] = useSaid();
  const view = useRef<View>(null);
  const theme = themeOf(dark);
  const shown = useMemo(
    () => scene.shown(chosen),
    [chosen.nodes, chosen.edges, chosen.least, chosen.hidden, chosen.levels, chosen.positions, chosen.pinned, chosen.only, chosen.groups],
  );
  const found = useMemo(() => search(scene, chosen.search), [chosen.search]);
  const matches = useMemo(() => new Set(found), [found]);

  useAddress(chosen, () => readAddress(graph));

  const now = chosen.selected === null ? "" : `${graph.short(chosen.selected)}, influence ${scene.influence[chosen.selected].toPrecision(3)}`;
  return (
    <>
      <header>
        <h1><bdi>{visible(graph.header.title, 200)}</bdi></h1>
        <Strip scene={scene} chosen={chosen} />
      </header>
      <main>
        <Controls
          names={namesOf(graph)}
          kinds={kindsOf(graph)}
          levels={graph.header.levels}
          counts={[counted(graph, shown)]}
          chosen={chosen}
          theme={theme}
          found={found}
          taken={{
            svg: () => svg([{ graph, shown, state: chosen, view: view.current!, matches }], graph.header.title, theme),
            png: () => png([{ graph, shown, state: chosen, view: view.current!, matches }], theme),
            csv: () => csv(graph, shown),
          }}
          say={say}
          toggleTheme={() => setDark(!dark)}
        />
        <GraphView scene={scene} shown={shown} chosen={chosen} theme={theme} matches={matches} kept={view} />
        <Panel scene={scene} shown={shown} chosen={chosen} theme={theme} />
      </main>
      <p class="said" role="status" aria-live="polite" id="said">{said || now}</p>
    </>
  );
}

/** The kinds of which a graph has nodes. */
export function kindsOf(graph: Graph): Kind[] {
  return KINDS.filter((kind) => graph.header.sets.some((set) => set.kind === kind && set.size > 0));
}

/** How much of a graph is shown. */
export function counted(graph: Graph, shown: Shown): string {
  const of = (some: number, all: number, what: string) => `${count(some)} of ${count(all)} ${what}`;
  return `${of(shown.items.length, graph.size, "nodes")}, ${of(shown.lines.length, graph.edges, "edges")}`;
}

function namesOf(graph: Graph): Names {
  return {
    short: (node) => graph.short(node),
    explanation: (node) => graph.explanation(node),
    supernodes: (groups) => supernodes(groups, (node) => keyOf(graph, node)),
    readSupernodes: (text) => readSupernodes(text, (key) => matching(graph, key), (node) => graph.short(node)),
  };
}

/** Nodes whose site, number, string or label holds all words, the most influential first. */
export function search(scene: Scene, text: string): number[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const { graph, influence } = scene;
  const found: number[] = [];
  for (let node = 0; node < graph.size; node++) {
    const set = graph.set(node);
    const all = `${graph.short(node)} ${set.site} ${set.name} ${set.kind} ${graph.name(node) ?? ""} ${graph.explanation(node)?.[0] ?? ""}`.toLowerCase();
    if (words.every((word) => all.includes(word))) found.push(node);
  }
  return found.sort((a, b) => influence[b] - influence[a] || a - b);
}

function readAddress(graph: Graph) {
  return fromAddress(location.hash, graph.size, graph.edges, graph.header.levels.length, graph.header.tokens.length);
}

/** The page, and what the console and tests reach of it. */
export function graphPage(payload: Payload) {
  const graph = new Graph(payload);
  const scene = new Scene(graph);
  state.value = readAddress(graph);
  return { page: <GraphPage scene={scene} />, parts: { graph, scene, state, change, influence: { shares, alongEdges, prune }, visible } };
}
