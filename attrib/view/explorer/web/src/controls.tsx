// The left side: how much is shown, what is hidden, what is searched, and what is taken away.

import { useRef, useState } from "preact/hooks";
import { SHAPES, type Theme } from "./colours";
import type { Kind } from "./payload";
import { download } from "./saving";
import { canRedo, canUndo, change, redo, settled, undo, USUAL, type Group, type State } from "./state";
import { count, visible } from "./text";

/** What nodes are called, by the numbers that the page's state has. */
export interface Names {
  short: (node: number) => string;
  explanation: (node: number) => [string, string] | undefined;
  supernodes: (groups: Group[]) => Blob;
  readSupernodes: (text: string) => { groups: Group[]; missing: number };
}

interface Props {
  names: Names;
  kinds: readonly Kind[];
  levels: string[];
  /** How much is shown, in words. */
  counts: string[];
  chosen: State;
  theme: Theme;
  found: number[];
  /** What the reader can take away as a picture and as a table. */
  taken: { svg: () => Blob; png: () => Promise<Blob>; csv: () => Blob };
  say: (text: string) => void;
  toggleTheme: () => void;
}

export function Controls({ names, kinds, levels, counts, chosen, theme, found, taken, say, toggleTheme }: Props) {
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
        <div id="counts">{counts.map((each) => <p class="counts" key={each}>{each}</p>)}</div>
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
      <Levels levels={levels} chosen={chosen} />
      <section>
        <h2>Search</h2>
        <input
          type="search"
          id="search"
          aria-label="Search nodes by site, number, token or label"
          placeholder="site, number, token"
          value={chosen.search}
          maxLength={200}
          onInput={(event) => change({ search: event.currentTarget.value }, "search")}
          onBlur={settled}
        />
        {chosen.search && (
          <ul class="found" id="found">
            {found.slice(0, 30).map((node) => (
              <li key={node}>
                <button onClick={() => change({ selected: node, edge: null })}>
                  <bdi>{names.short(node)}</bdi>
                </button>
                {names.explanation(node) && <small>{visible(names.explanation(node)![0])}</small>}
              </li>
            ))}
            <li class="more">{count(found.length)} found{found.length > 30 ? ", 30 listed" : ""}</li>
          </ul>
        )}
      </section>
      <Groups names={names} chosen={chosen} say={say} />
      <section class="buttons">
        <h2>Take away</h2>
        <button onClick={() => download("graph.svg", taken.svg())}>SVG</button>
        <button onClick={() => taken.png().then((made) => download("graph.png", made), (error: Error) => say(error.message))}>PNG</button>
        <button onClick={() => download("edges.csv", taken.csv())}>CSV</button>
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
          onPointerUp={settled}
          onBlur={settled}
        />
        <output>{Number(value.toPrecision(3))}</output>
      </span>
    </label>
  );
}

function Levels({ levels, chosen }: { levels: string[]; chosen: State }) {
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

function Groups({ names, chosen, say }: { names: Names; chosen: State; say: (text: string) => void }) {
  const [name, setName] = useState("");
  const file = useRef<HTMLInputElement>(null);
  const grouped = new Set(chosen.groups.flatMap((each) => each.nodes));
  const free = chosen.pinned.filter((node) => !grouped.has(node));
  const make = () => {
    const wanted = name.trim().slice(0, 200);
    if (!wanted) return say("Give the group a name.");
    if (!free.length) return say("Pin nodes first: what is pinned and in no group yet becomes the group.");
    if (chosen.groups.some((each) => each.name === wanted)) return say(`There is a group ${visible(wanted)} already.`);
    change({ groups: [...chosen.groups, { name: wanted, nodes: [...free].sort((a, b) => a - b) }], pinned: chosen.pinned.filter((node) => !free.includes(node)) });
    setName("");
  };
  const load = async (given: File | undefined) => {
    if (!given) return;
    try {
      if (given.size > 4 << 20) throw new Error("it has more than 4 MiB");
      const { groups, missing } = names.readSupernodes(await given.text());
      change({ groups });
      say(`${groups.length} groups loaded${missing ? `; ${missing} of their nodes are not in this graph` : ""}.`);
    } catch (error) {
      say(`${visible(given.name)} was not loaded: ${visible((error as Error).message, 400)}.`);
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
            <button onClick={() => change({ selected: node, edge: null })}><bdi>{names.short(node)}</bdi></button>
            <button aria-label={`Unpin ${names.short(node)}`} onClick={() => change({ pinned: chosen.pinned.filter((each) => each !== node) })}>×</button>
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
        <button onClick={() => download("supernodes.json", names.supernodes(chosen.groups))} disabled={!chosen.groups.length}>Save groups</button>
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
