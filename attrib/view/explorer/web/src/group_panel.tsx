// What is known of a group of nodes that are drawn as one: which they are, and its edges as they are drawn, added up.

import type { Theme } from "./colours";
import type { Item } from "./layout";
import type { Line } from "./lines";
import type { Scene, Shown } from "./shown";
import { Bar } from "./bar";
import { count, number, signed, visible } from "./text";

interface Props {
  scene: Scene;
  shown: Shown;
  group: Item;
  theme: Theme;
  id: string;
}

const LISTED = 40;

/** The group that a node is drawn in; undefined where it is drawn by itself or not at all. */
export function groupOf(shown: Shown, node: number | null): Item | undefined {
  const item = node === null ? undefined : shown.byNode.get(node);
  return item && item.group !== null ? item : undefined;
}

export function GroupPanel({ scene, shown, group, theme, id }: Props) {
  const { graph, influence } = scene;
  const choose = (item: Item) => scene.choosing.choose({ selected: item.nodes[0], edge: null });
  const lines = shown.lines.joining(group);
  const list = (title: string, found: Line[], end: (line: Line) => Item) =>
    found.length > 0 && (
      <>
        <h3>{title} <small>{count(found.length)}{found.length > LISTED ? `, ${LISTED} listed` : ""}</small></h3>
        <ol class="edges" aria-label={`${title}, of the group`}>
          {found.slice(0, LISTED).map((line) => {
            const item = end(line);
            return (
              <li key={item.id}>
                <Bar weight={line.weight} most={found[0].weight} theme={theme} />
                <button class="end" onClick={() => choose(item)}><bdi>{item.group === null ? graph.short(item.nodes[0]) : visible(item.group)}</bdi></button>
                <span class="weight">{signed(line.weight)}</span>
              </li>
            );
          })}
        </ol>
      </>
    );
  return (
    <section id={id}>
      <h2><bdi>{visible(group.group!)}</bdi></h2>
      <p class="note">
        A group of {count(group.nodes.length)} nodes that are drawn, influence {number(group.nodes.reduce((sum, node) => sum + influence[node], 0))}. Its
        edges are those that are shown, added up.
      </p>
      <ul class="members" aria-label="Nodes of the group">
        {group.nodes.map((node) => (
          <li key={node}>
            <button class="end" onClick={() => scene.choosing.choose({ selected: node, edge: null })}><bdi>{graph.short(node)}</bdi></button>
          </li>
        ))}
      </ul>
      {list("Into it", lines.filter((line) => line.to === group), (line) => line.from)}
      {list("Out of it", lines.filter((line) => line.from === group), (line) => line.to)}
      <p class="note">Of its nodes this one was chosen:</p>
    </section>
  );
}
