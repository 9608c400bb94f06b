// The prompt, token by token: how much influence each position has, and which positions are shown.

import type { Scene } from "./shown";
import { change, type State } from "./state";
import { number, visible } from "./text";

export function Strip({ scene, chosen, name }: { scene: Scene; chosen: State; name?: string }) {
  const { graph, influence } = scene;
  const sums = new Array<number>(graph.header.tokens.length).fill(0);
  for (let node = 0; node < graph.size; node++) {
    if (graph.kind(node) !== "logit" && graph.kind(node) !== "target") sums[graph.position[node]] += influence[node];
  }
  const most = Math.max(...sums, Number.MIN_VALUE);
  const toggle = (column: number) => {
    const { positions } = chosen;
    change({ positions: positions.includes(column) ? positions.filter((each) => each !== column) : [...positions, column].sort((a, b) => a - b) });
  };
  return (
    <div class="strip" role="group" aria-label={`Tokens${name === undefined ? "" : ` of ${visible(name)}`}; the chosen ones alone are shown`}>
      {graph.header.tokens.map((token, position) => (
        <button
          key={position}
          class="token"
          aria-pressed={chosen.positions.includes(graph.columnAt(position))}
          title={`position ${position}, influence ${number(sums[position])}`}
          onClick={() => toggle(graph.columnAt(position))}
        >
          <span class="heat" aria-hidden="true" style={{ opacity: 0.6 * (sums[position] / most) }} />
          <bdi>{visible(token, 40)}</bdi>
          <small>{position}</small>
        </button>
      ))}
      {chosen.positions.length > 0 && <button class="clear" onClick={() => change({ positions: [] })}>All positions</button>}
    </div>
  );
}
