// The right side: what is known of the node or the edge that was chosen.

import { Bar } from "./bar";
import type { Theme } from "./colours";
import { EdgeDetails, NodeDetails } from "./detail_panels";
import { GroupPanel, groupOf } from "./group_panel";
import type { Scene, Shown } from "./shown";
import type { State } from "./state";
import { count, number, percent, signed, visible } from "./text";

interface Props {
  scene: Scene;
  shown: Shown;
  chosen: State;
  theme: Theme;
}

const LISTED = 40;

export function Panel({ scene, shown, chosen, theme }: Props) {
  const group = groupOf(shown, chosen.selected);
  return (
    <aside class="panel" aria-label="Details">
      {chosen.edge !== null && <EdgePanel scene={scene} edge={chosen.edge} chosen={chosen} id="edge" />}
      {group && <GroupPanel scene={scene} shown={shown} group={group} theme={theme} id="group" />}
      {chosen.selected !== null ? <NodePanel scene={scene} node={chosen.selected} chosen={chosen} theme={theme} id="node" /> : chosen.edge === null && <About scene={scene} />}
    </aside>
  );
}

export function About({ scene, id = "about" }: { scene: Scene; id?: string }) {
  const { header } = scene.graph;
  return (
    <section id={id}>
      <h2>Graph</h2>
      <dl>
        {header.facts.map(([name, value]) => (
          <>
            <dt>{name}</dt>
            <dd><bdi>{visible(value, 400)}</bdi></dd>
          </>
        ))}
      </dl>
      {header.left_out && <p class="note">{header.left_out}</p>}
      <p class="note">
        Choose a node by a click or with the arrow keys, pin it with Shift and a click or with Enter. Blue edges raise what they lead to,
        orange ones lower it. A row of edges adds up: value = own + all attributions + remainder.
      </p>
    </section>
  );
}

export function NodePanel({ scene, node, chosen, theme, id }: { scene: Scene; node: number; chosen: State; theme: Theme; id: string }) {
  const { graph, influence } = scene;
  const set = graph.set(node);
  const row = graph.rowOf[node];
  const told = graph.explanation(node);
  const isPinned = chosen.pinned.includes(node);
  const link = graph.link(node);
  const measure = graph.measure(node);
  const remainder = row < 0 ? 0 : graph.value[row] - graph.own[row] - graph.total[row];
  const kept = graph.incoming(node).reduce((sum, edge) => sum + graph.weight[edge], 0);
  return (
    <section id={id}>
      <h2><bdi>{graph.short(node)}</bdi></h2>
      {told && <p class="told"><bdi>{visible(told[0], 400)}</bdi> <small>({visible(told[1])})</small></p>}
      <Absent whyNot={scene.whyNot(chosen, node)} />
      <p class="buttons">
        <button onClick={() => scene.choosing.togglePin(node)} aria-pressed={isPinned}>{isPinned ? "Unpin" : "Pin"}</button>
        {link && <a href={link} target="_blank" rel="noopener noreferrer">Neuronpedia</a>}
      </p>
      <dl>
        <dt>Kind</dt><dd>{set.kind}</dd>
        <dt>Site</dt><dd>{visible(set.site)}</dd>
        {set.name && <><dt>Dictionary</dt><dd><bdi>{visible(set.name)}</bdi></dd></>}
        {graph.latent[node] >= 0 && <><dt>{set.kind === "latent" ? "Latent" : set.kind === "head" ? "Head" : "Number"}</dt><dd>{graph.latent[node]}</dd></>}
        <dt>Position</dt><dd>{graph.position[node]} <bdi class="token">{visible(graph.header.tokens[graph.position[node]] ?? "")}</bdi></dd>
        {measure && <><dt>{measure[0].toUpperCase() + measure.slice(1)}</dt><dd>{number(graph.activation[node])}</dd></>}
        <dt>Influence</dt><dd>{number(influence[node])}</dd>
      </dl>
      {row >= 0 && (
        <>
          <h3>What it is made of</h3>
          <table class="sum" id={id === "node" ? "accounting" : undefined}>
            <tbody>
              <tr><th scope="row">own</th><td>{signed(graph.own[row])}</td></tr>
              <tr><th scope="row">edges here</th><td>{signed(kept)}</td></tr>
              <tr><th scope="row">edges left out</th><td>{signed(graph.total[row] - kept)}</td></tr>
              <tr><th scope="row">remainder</th><td>{signed(remainder)}</td></tr>
              <tr class="whole"><th scope="row">value</th><td>{signed(graph.value[row])}</td></tr>
            </tbody>
          </table>
        </>
      )}
      <NodeDetails scene={scene} node={node} />
      <Edges scene={scene} title="Into it" edges={graph.incoming(node)} end={(edge) => graph.source[edge]} whole={row < 0 ? 0 : graph.l1[row]} theme={theme} />
      <Edges scene={scene} title="Out of it" edges={graph.outgoing(node)} end={(edge) => graph.target[edge]} whole={0} theme={theme} />
    </section>
  );
}

function Absent({ whyNot }: { whyNot: string[] }) {
  return whyNot.length > 0 ? <p class="note absent">It is not drawn: {whyNot.join("; and ")}.</p> : null;
}

function Edges({ scene, title, edges, end, whole, theme }: { scene: Scene; title: string; edges: number[]; end: (edge: number) => number; whole: number; theme: Theme }) {
  const { graph } = scene;
  if (!edges.length) return null;
  const ordered = [...edges].sort((a, b) => Math.abs(graph.weight[b]) - Math.abs(graph.weight[a]));
  const most = graph.weight[ordered[0]];
  return (
    <>
      <h3>{title} <small>{count(edges.length)}{edges.length > LISTED ? `, ${LISTED} listed` : ""}</small></h3>
      <ol class="edges" aria-label={title}>
        {ordered.slice(0, LISTED).map((edge) => {
          const node = end(edge);
          const weight = graph.weight[edge];
          return (
            <li key={edge}>
              <Bar weight={weight} most={most} theme={theme} />
              <button class="end" onClick={() => scene.choosing.choose({ selected: node, edge: null })}>
                <bdi>{graph.short(node)}</bdi>
                {graph.explanation(node) && <small><bdi>{visible(graph.explanation(node)![0])}</bdi></small>}
              </button>
              <button class="weight" title="The edge" onClick={() => scene.choosing.choose({ edge })}>
                {signed(weight)}
                {whole > 0 && <small>{percent(Math.abs(weight) / whole)}</small>}
              </button>
            </li>
          );
        })}
      </ol>
    </>
  );
}

export function EdgePanel({ scene, edge, chosen, id }: { scene: Scene; edge: number; chosen: State; id: string }) {
  const { graph } = scene;
  const [source, target] = [graph.source[edge], graph.target[edge]];
  const row = graph.rowOf[target];
  const weight = graph.weight[edge];
  const active = graph.activation[source];
  const rank = graph.incoming(target).filter((each) => Math.abs(graph.weight[each]) > Math.abs(weight)).length + 1;
  return (
    <section id={id}>
      <h2>Edge</h2>
      <p class="ends">
        <button onClick={() => scene.choosing.choose({ selected: source })}><bdi>{graph.short(source)}</bdi></button> →{" "}
        <button onClick={() => scene.choosing.choose({ selected: target })}><bdi>{graph.short(target)}</bdi></button>
      </p>
      <Absent whyNot={scene.whyNotEdge(chosen, edge)} />
      <dl>
        <dt>Attribution</dt><dd>{signed(weight)}</dd>
        <dt>Derivative</dt><dd>{active === 0 ? "—" : signed(weight / active)}</dd>
        <dt>Share of its row</dt><dd>{graph.l1[row] > 0 ? percent(Math.abs(weight) / graph.l1[row]) : "—"}</dd>
        <dt>Rank in its row</dt><dd>{rank} of {graph.incoming(target).length}</dd>
      </dl>
      <EdgeDetails scene={scene} edge={edge} />
      <button onClick={() => scene.choosing.choose({ edge: null })}>Close</button>
    </section>
  );
}
