// What is told of a node or an edge beside the graph: each as a part of its panel, where the page has it.

import type { ComponentChildren } from "preact";
import type { Activity, End, Heads, Logits, Measured, Score, TokenWeight } from "./details";
import type { Scene } from "./shown";
import { count, number, percent, signed, visible } from "./text";

export function NodeDetails({ scene, node }: { scene: Scene; node: number }) {
  return (
    <>
      <LostMeasurements scene={scene} node={node} />
      {scene.graph.kind(node) === "latent" && <LatentDetails scene={scene} node={node} />}
    </>
  );
}

function LostMeasurements({ scene, node }: { scene: Scene; node: number }) {
  const { graph } = scene;
  return (
    <>
      {graph.details.lost(graph.outgoing(node)).map(({ step, why, measured, lost }) => (
        <p class="note lost" key={`${step} ${why}`}>
          Interventions on it: with {changed(step)}, {count(lost)} of {count(measured)} edges that were
          verified have no number: {visible(why, 400)}
        </p>
      ))}
    </>
  );
}

/** By how much a source was changed, as part of a sentence. */
function changed(step: number): string {
  return isWhole(step) ? "all of it left out" : `${percent(step)} more and less of it`;
}

function isWhole(step: number): boolean {
  return Number(step.toPrecision(3)) === 1;
}

function LatentDetails({ scene, node }: { scene: Scene; node: number }) {
  const { graph } = scene;
  const [set, latent] = [graph.setOf[node], graph.latent[node]];
  const logits = graph.details.logits(set, latent);
  const activity = graph.details.activity(set, latent);
  if (!logits && !activity && graph.details.leftOut > 0) {
    return <p class="note">Nothing more is told of this latent: the page tells of those of largest influence, and leaves out {count(graph.details.leftOut)}.</p>;
  }
  return (
    <>
      {logits && <LogitWeights logits={logits} />}
      {activity && <Examples activity={activity} />}
    </>
  );
}

function LogitWeights({ logits }: { logits: Logits }) {
  const list = (title: string, id: string, weights: TokenWeight[]) => (
    <ol aria-label={title} id={id}>
      {weights.map(({ token, weight }, at) => (
        <li key={at}>
          <bdi class="token">{visible(token, 40)}</bdi> <small>{signed(weight)}</small>
        </li>
      ))}
    </ol>
  );
  return (
    <section class="logits">
      <h3>Logits, by its weights alone</h3>
      <div class="two">
        <div><p class="note">raises</p>{list("Logits that it raises most", "promoted", logits.highest)}</div>
        <div><p class="note">lowers</p>{list("Logits that it lowers most", "suppressed", logits.lowest)}</div>
      </div>
    </section>
  );
}

function Examples({ activity }: { activity: Activity }) {
  const { density, places, maximum, examples, score } = activity;
  return (
    <section>
      <h3>In the corpus</h3>
      <p class="note" id="activity">
        {density === 0 ? "active nowhere" : `active at ${percent(density)}`} of {count(places)} places
        {examples.length > 0 && `; ${score.replace("_", "-")} at most ${number(maximum)}`}
      </p>
      <ol class="examples" aria-label="Where it is most active">
        {examples.map((example, at) => (
          <li key={at}>
            <small>{number(example.values[example.at])} in prompt {example.prompt} at {example.position}</small>
            <p>
              {example.tokens.map((token, place) => (
                <Token key={place} text={token} value={example.values[place]} largest={maximum} isPlace={place === example.at} />
              ))}
            </p>
          </li>
        ))}
      </ol>
    </section>
  );
}

function Token({ text, value, largest, isPlace }: { text: string; value: number; largest: number; isPlace: boolean }) {
  const share = value > 0 && largest > 0 ? Math.min(1, value / largest) : 0;
  const shown = <><span class="heat" aria-hidden="true" style={{ opacity: 0.35 * share }} />{visible(text, 40)}</>;
  const told = { class: "shaded", title: `${signed(value)}` };
  return isPlace ? <mark {...told}>{shown}</mark> : <bdi {...told}>{shown}</bdi>;
}

export function EdgeDetails({ scene, edge }: { scene: Scene; edge: number }) {
  const { graph } = scene;
  const heads = graph.details.heads(edge);
  const scores = graph.details.scores(graph, edge);
  const measured = graph.details.measured(edge);
  return (
    <>
      {measured.length > 0 && <Verified predicted={graph.weight[edge]} measured={measured} />}
      {heads && <ByHeads heads={heads} weight={graph.weight[edge]} />}
      {scores.length > 0 && (
        <section>
          <h3>Why these heads look there</h3>
          {scores.map((score) => <Pairs key={`${score.layer} ${score.head} ${score.key}`} scene={scene} score={score} />)}
        </section>
      )}
    </>
  );
}

function Verified({ predicted, measured }: { predicted: number; measured: Measured[] }) {
  return (
    <section>
      <h3>Predicted and intervened</h3>
      <Table id="verified" head={["source changed by", "predicted", "intervened", "apart"]}>
        {measured.map((each) => (
          <tr key={each.step}>
            <th scope="row">{isWhole(each.step) ? "all of it" : `± ${percent(each.step)}`}</th>
            <td>{signed(predicted)}</td>
            <td>{each.measured === null ? "no number" : signed(each.measured)}</td>
            <td>{each.measured === null ? "" : signed(each.measured - predicted)}</td>
          </tr>
        ))}
      </Table>
      {measured.map(({ step, why }) => why && (
        <p class="note lost" key={step}>No number with {changed(step)}: {visible(why, 400)}</p>
      ))}
    </section>
  );
}

function ByHeads({ heads, weight }: { heads: Heads; weight: number }) {
  const rest = heads.total - heads.direct - heads.ways.reduce((sum, way) => sum + way.loading, 0);
  const row = (name: string, value: number) => (
    <tr key={name}>
      <th scope="row">{name}</th>
      <td>{signed(value)}</td>
      <td>{weight === 0 ? "" : percent(value / weight)}</td>
    </tr>
  );
  return (
    <section>
      <h3>By heads</h3>
      <Table id="heads" head={["last head, and where it reads", "attribution", "of the edge"]}>
        {heads.direct !== 0 && row("no attention", heads.direct)}
        {heads.ways.map((way) => row(`attn${way.layer}[${way.head}]@${way.position}`, way.loading))}
        {row("others", rest)}
      </Table>
    </section>
  );
}

function Pairs({ scene, score }: { scene: Scene; score: Score }) {
  const { graph } = scene;
  const end = (node: End) =>
    typeof node === "number" ? (
      <button class="end" onClick={() => scene.choosing.choose({ selected: node, edge: null })}><bdi>{graph.short(node)}</bdi></button>
    ) : (
      <bdi>{node === null ? "its bias" : visible(node)}</bdi>
    );
  return (
    <details class="score">
      <summary>
        attn{score.layer}[{score.head}] {score.query} → {score.key}: attention {percent(score.pattern)}, score {number(score.value)}
      </summary>
      <Table head={["at the query", "at the key", "score"]}>
        {score.pairs.map(({ query, key, weight }, at) => (
          <tr key={at}>
            <th scope="row">{end(query)}</th>
            <td class="name">{end(key)}</td>
            <td>{signed(weight)}</td>
          </tr>
        ))}
      </Table>
      <p class="note">
        {score.pairs.length} of {count(score.count)} pairs that were kept; all pairs sum to {number(score.total)}.
      </p>
    </details>
  );
}

function Table({ head, id, children }: { head: string[]; id?: string; children: ComponentChildren }) {
  return (
    <table class="told-table" id={id}>
      <thead>
        <tr>{head.map((name) => <th scope="col" key={name}>{name}</th>)}</tr>
      </thead>
      <tbody>{children}</tbody>
    </table>
  );
}
