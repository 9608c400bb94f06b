// The left side: how much is shown, what is hidden, what is searched, and what is taken away.

import { useRef, useState } from "preact/hooks";
import { SHAPES, type Theme } from "./colours";
import { KINDS } from "./graph";
import { csv, download, png, readSupernodes, supernodes, svg } from "./saving";
import type { Scene, Shown } from "./shown";
import { canRedo, canUndo, change, redo, undo, USUAL, type State } from "./state";
import { visible } from "./text";

interface Props {
  scene: Scene;
  shown: Shown;
  chosen: State;
  theme: Theme;
  found: number[];
  say: (text: string) => void;
  toggleTheme: () => void;
}

export function Controls({ scene, shown, chosen, theme, found, say, toggleTheme }: Props) {
  const { graph } = scene;
  const kinds = KINDS.filter((kind) => graph.header.sets.some((set) => set.kind === kind && set.size > 0));
  return (
    <nav class="controls" aria-label="Controls">
      <section>
        <Slider label="Nodes kept" name="nodes" value={chosen.nodes} />
        <Slider label="Edges kept" name="edges" value={chosen.edges} />
        <Slider label="Least weight" name="least" value={chosen.least} power={3} />
        <label>
          Edges drawn
          <input
            type="number"
            id="drawn"
            min={0}
            max={1000000}
            step={500}
            value={chosen.drawn}
            onInput={(event) => {
              const value = event.currentTarget.valueAsNumber;
              if (value >= 0 && value <= 1e6) change({ drawn: Math.round(value) }, "drawn");
            }}
          />
        </label>
        <p class="counts" id="counts">
          {shown.items.length.toLocaleString("en")} of {graph.size.toLocaleString("en")} nodes, {shown.lines.length.toLocaleString("en")} of{" "}
          {graph.edges.toLocaleString("en")} edges
        </p>
      </section>
      <section>
        <h2>Kinds</h2>
        {kinds.map((kind) => (
          <label class="kind" key={kind}>
            <input
              type="checkbox"
              checked={!chosen.hidden.includes(kind)}
              onChange={() =>
                change({ hidden: chosen.hidden.includes(kind) ? chosen.hidden.filter((each) => each !== kind) : [...chosen.hidden, kind] })
              }
            />
            <span class={`mark ${SHAPES[kind].shape}`} style={{ background: theme.dark ? SHAPES[kind].dark : SHAPES[kind].light }} aria-hidden="true" />
            {kind}
          </label>
        ))}
      </section>
      <Levels scene={scene} chosen={chosen} />
      <section>
        <h2>Search</h2>
        <input
          type="search"
          id="search"
          aria-label="Search nodes by site, number, token or label"
          placeholder="site, number, token, label"
          value={chosen.search}
          maxLength={200}
          onInput={(event) => change({ search: event.currentTarget.value }, "search")}
        />
        {chosen.search && (
          <ul class="found" id="found">
            {found.slice(0, 30).map((node) => (
              <li key={node}>
                <button onClick={() => change({ selected: node, edge: null })}>
                  <bdi>{graph.short(node)}</bdi>
                </button>
                {graph.explanation(node) && <small>{visible(graph.explanation(node)![0])}</small>}
              </li>
            ))}
            <li class="more">{found.length.toLocaleString("en")} found{found.length > 30 ? ", 30 listed" : ""}</li>
          </ul>
        )}
      </section>
      <Groups scene={scene} chosen={chosen} say={say} />
      <section class="buttons">
        <h2>Take away</h2>
        <button onClick={() => download("graph.svg", svg(graph, shown, chosen, theme, { item: null, edge: chosen.edge, matches: new Set() }))}>SVG</button>
        <button
          onClick={() =>
            png(graph, shown, chosen, theme, { item: null, edge: chosen.edge, matches: new Set() }).then(
              (made) => download("graph.png", made),
              (error: Error) => say(error.message),
            )
          }
        >
          PNG
        </button>
        <button onClick={() => download("edges.csv", csv(graph, shown))}>CSV</button>
      </section>
      <section class="buttons">
        <button onClick={undo} disabled={!canUndo.value} aria-keyshortcuts="Control+Z">Undo</button>
        <button onClick={redo} disabled={!canRedo.value} aria-keyshortcuts="Control+Shift+Z">Redo</button>
        <button onClick={() => change(USUAL)}>Reset</button>
        <button onClick={toggleTheme}>{theme.dark ? "Light" : "Dark"}</button>
      </section>
    </nav>
  );
}

function Slider({ label, name, value, power = 1 }: { label: string; name: "nodes" | "edges" | "least"; value: number; power?: number }) {
  return (
    <label>
      {label}
      <span class="slider">
        <input
          type="range"
          id={name}
          min={0}
          max={1}
          step={0.005}
          value={value ** (1 / power)}
          onInput={(event) => change({ [name]: Number((event.currentTarget.valueAsNumber ** power).toPrecision(4)) }, name)}
        />
        <output>{Number(value.toPrecision(3))}</output>
      </span>
    </label>
  );
}

function Levels({ scene, chosen }: { scene: Scene; chosen: State }) {
  const { levels } = scene.graph.header;
  const [first, last] = chosen.levels ?? [0, levels.length - 1];
  const pick = (begin: number, end: number) => change({ levels: begin === 0 && end === levels.length - 1 ? null : [Math.min(begin, end), Math.max(begin, end)] });
  const options = levels.map((name, level) => <option key={level} value={level}>{visible(name)}</option>);
  return (
    <section>
      <h2>Layers</h2>
      <span class="range">
        <select aria-label="First layer shown" id="first-level" value={first} onChange={(event) => pick(Number(event.currentTarget.value), last)}>
          {options}
        </select>
        to
        <select aria-label="Last layer shown" id="last-level" value={last} onChange={(event) => pick(first, Number(event.currentTarget.value))}>
          {options}
        </select>
      </span>
    </section>
  );
}

function Groups({ scene, chosen, say }: { scene: Scene; chosen: State; say: (text: string) => void }) {
  const { graph } = scene;
  const [name, setName] = useState("");
  const file = useRef<HTMLInputElement>(null);
  const grouped = new Set(chosen.groups.flatMap((each) => each.nodes));
  const free = chosen.pinned.filter((node) => !grouped.has(node));
  const make = () => {
    const wanted = name.trim().slice(0, 200);
    if (!wanted) return say("Give the group a name.");
    if (!free.length) return say("Pin nodes first: what is pinned and in no group yet becomes the group.");
    if (chosen.groups.some((each) => each.name === wanted)) return say(`There is a group ${wanted} already.`);
    change({ groups: [...chosen.groups, { name: wanted, nodes: [...free].sort((a, b) => a - b) }], pinned: chosen.pinned.filter((node) => !free.includes(node)) });
    setName("");
  };
  const load = async (given: File | undefined) => {
    if (!given) return;
    try {
      if (given.size > 4 << 20) throw new Error("it has more than 4 MiB");
      const { groups, missing } = readSupernodes(graph, await given.text());
      change({ groups });
      say(`${groups.length} groups loaded${missing ? `; ${missing} of their nodes are not in this graph` : ""}.`);
    } catch (error) {
      say(`${given.name} was not loaded: ${(error as Error).message}.`);
    }
  };
  return (
    <section>
      <h2>Pinned and groups</h2>
      <label class="kind">
        <input type="checkbox" id="only" checked={chosen.only} onChange={() => change({ only: !chosen.only })} />
        Only what is pinned
      </label>
      <ul class="pinned" id="pinned">
        {chosen.pinned.map((node) => (
          <li key={node}>
            <button onClick={() => change({ selected: node, edge: null })}><bdi>{graph.short(node)}</bdi></button>
            <button aria-label={`Unpin ${graph.short(node)}`} onClick={() => change({ pinned: chosen.pinned.filter((each) => each !== node) })}>×</button>
          </li>
        ))}
      </ul>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          make();
        }}
      >
        <input aria-label="Name of a new group" id="group-name" placeholder="name of a group" value={name} maxLength={200} onInput={(event) => setName(event.currentTarget.value)} />
        <button type="submit">Group pinned</button>
      </form>
      <ul class="groups" id="groups">
        {chosen.groups.map((group) => (
          <li key={group.name}>
            <bdi>{visible(group.name)}</bdi> <small>{group.nodes.length} nodes</small>
            <button aria-label={`Dissolve ${visible(group.name)}`} onClick={() => change({ groups: chosen.groups.filter((each) => each !== group) })}>×</button>
          </li>
        ))}
      </ul>
      <span class="buttons">
        <button onClick={() => download("supernodes.json", supernodes(graph, chosen.groups))} disabled={!chosen.groups.length}>Save groups</button>
        <button onClick={() => file.current!.click()}>Load groups</button>
        <input
          ref={file}
          type="file"
          id="load-groups"
          accept="application/json,.json"
          hidden
          aria-label="File of groups"
          onChange={(event) => {
            void load(event.currentTarget.files?.[0]);
            event.currentTarget.value = "";
          }}
        />
      </span>
    </section>
  );
}
