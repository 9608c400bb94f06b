// The page of a graph, drawn again whenever the reader chooses something.

import { useEffect, useMemo, useState } from "preact/hooks";
import { theme as themeOf } from "./colours";
import { Controls } from "./controls";
import { Graph } from "./graph";
import { GraphView } from "./graph_view";
import { alongEdges, prune, shares } from "./influence";
import { Panel } from "./panels";
import type { Payload } from "./payload";
import { Scene } from "./shown";
import { change, fromAddress, redo, state, toAddress, undo } from "./state";
import { Strip } from "./strip";
import { visible } from "./text";

function GraphPage({ scene }: { scene: Scene }) {
  const { graph } = scene;
  const chosen = state.value;
  const [dark, setDark] = useState(matchMedia("(prefers-color-scheme: dark)").matches);
  const [said, setSaid] = useState("");
  const theme = themeOf(dark);
  const shown = useMemo(
    () => scene.shown(chosen),
    [chosen.nodes, chosen.edges, chosen.least, chosen.hidden, chosen.levels, chosen.positions, chosen.pinned, chosen.only, chosen.groups],
  );
  const found = useMemo(() => search(scene, chosen.search), [chosen.search]);
  const matches = useMemo(() => new Set(found), [found]);

  useEffect(() => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }, [dark]);
  useEffect(() => {
    const timer = setTimeout(() => history.replaceState(null, "", `#${toAddress(chosen)}`), 150);
    return () => clearTimeout(timer);
  }, [chosen]);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const inText = event.target instanceof HTMLInputElement && ["search", "text", "number"].includes(event.target.type);
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !inText) {
        event.preventDefault();
        if (event.shiftKey) redo();
        else undo();
      } else if (event.key === "/" && !inText) {
        event.preventDefault();
        document.getElementById("search")!.focus();
      }
    };
    const turn = () => change(readAddress(graph));
    addEventListener("keydown", press);
    addEventListener("hashchange", turn);
    return () => {
      removeEventListener("keydown", press);
      removeEventListener("hashchange", turn);
    };
  }, []);

  const now = chosen.selected === null ? "" : `${graph.short(chosen.selected)}, influence ${scene.influence[chosen.selected].toPrecision(3)}`;
  return (
    <>
      <header>
        <h1><bdi>{visible(graph.header.title, 200)}</bdi></h1>
        <Strip scene={scene} chosen={chosen} />
      </header>
      <main>
        <Controls scene={scene} shown={shown} chosen={chosen} theme={theme} found={found} say={setSaid} toggleTheme={() => setDark(!dark)} />
        <GraphView scene={scene} shown={shown} chosen={chosen} theme={theme} matches={matches} />
        <Panel scene={scene} chosen={chosen} theme={theme} />
      </main>
      <p class="said" role="status" aria-live="polite" id="said">{said || now}</p>
    </>
  );
}

/** Nodes whose site, number, string or label holds all words, the most influential first. */
function search(scene: Scene, text: string): number[] {
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
  return { page: <GraphPage scene={scene} />, parts: { graph, scene, state, change, influence: { shares, alongEdges, prune } } };
}
