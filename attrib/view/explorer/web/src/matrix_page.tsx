// The page of edges: one matrix at a time, or one less another, and the strongest edges of what was chosen.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { View } from "./axes";
import { theme as themeOf } from "./colours";
import { Matrix, table as tableOf, type Order, type Table, type Value } from "./matrix";
import { drawMatrix, MatrixView, painted } from "./matrix_view";
import type { MatricesHeader, Payload } from "./payload";
import { csvOf, download, pngOf, svgOf } from "./saving";
import type { Surface } from "./surfaces";
import { count, number, percent, signed, visible } from "./text";

const LISTED = 40;

interface Chosen {
  matrix: number;
  other: number | null;
  value: Value;
  order: Order;
  empty: boolean;
  target: number | null;
  source: number | null;
}

export function matrixPage(payload: Payload<MatricesHeader>) {
  const matrices = payload.header.matrices.map((_, number) => new Matrix(payload, number));
  const parts = { matrices, tableOf, table: null as Table | null };
  return { page: <MatrixPage title={payload.header.title} matrices={matrices} seen={(table) => (parts.table = table)} />, parts };
}

function MatrixPage({ title, matrices, seen }: { title: string; matrices: Matrix[]; seen: (table: Table) => void }) {
  const [chosen, setChosen] = useState<Chosen>(() => fromAddress(matrices));
  const [dark, setDark] = useState(matchMedia("(prefers-color-scheme: dark)").matches);
  const [said, setSaid] = useState("");
  const view = useRef<View>(null);
  const theme = themeOf(dark);
  const matrix = matrices[chosen.matrix];
  const other = chosen.other === null ? null : matrices[chosen.other];
  const table = useMemo(() => tableOf(matrix, chosen.value, chosen.order, other, chosen.empty), [chosen.matrix, chosen.other, chosen.value, chosen.order, chosen.empty]);
  seen(table);
  useEffect(() => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }, [dark]);
  useEffect(() => history.replaceState(null, "", `#${toAddress(chosen)}`), [chosen]);
  useEffect(() => {
    const turn = () => setChosen(fromAddress(matrices));
    addEventListener("hashchange", turn);
    return () => removeEventListener("hashchange", turn);
  }, []);
  const extent = (): [number, number] => [view.current!.width, view.current!.height];
  const drawing = (surface: Surface) =>
    drawMatrix(surface, view.current!, { table, image: painted(table, theme), theme, chosen: [chosen.target, chosen.source] });
  const set = (part: Partial<Chosen>) => setChosen({ ...chosen, ...part });
  const afresh = { target: null, source: null };
  const names = matrices.map((each, number) => <option key={number} value={number}>{visible(each.header.name, 120)}</option>);
  return (
    <>
      <header>
        <h1><bdi>{visible(title, 200)}</bdi></h1>
      </header>
      <main>
        <nav class="controls" aria-label="Controls">
          <section>
            <label>Edges <select id="matrix-of" value={chosen.matrix} onChange={(event) => set({ matrix: Number(event.currentTarget.value), ...afresh })}>{names}</select></label>
            <label>
              Less those of{" "}
              <select id="less" value={chosen.other ?? ""} onChange={(event) => set({ other: event.currentTarget.value === "" ? null : Number(event.currentTarget.value), ...afresh })}>
                <option value="">nothing</option>
                {names}
              </select>
            </label>
            <label>
              Values{" "}
              <select id="value" value={chosen.value} onChange={(event) => set({ value: event.currentTarget.value as Value })}>
                <option value="attribution">attributions</option>
                <option value="gradient">gradients</option>
              </select>
            </label>
            <label>
              Order{" "}
              <select id="order" value={chosen.order} onChange={(event) => set({ order: event.currentTarget.value as Order })}>
                <option value="position">by position</option>
                <option value="strength">strongest first</option>
              </select>
            </label>
            <label class="kind">
              <input type="checkbox" id="empty" checked={chosen.empty} onChange={() => set({ empty: !chosen.empty })} />
              Empty rows and columns too
            </label>
          </section>
          <section class="buttons">
            <button onClick={() => download("edges.csv", csv(table))}>CSV</button>
            <button onClick={() => download("edges.svg", svgOf(extent(), title, theme, drawing))}>SVG</button>
            <button onClick={() => pngOf(extent(), theme, drawing).then((made) => download("edges.png", made), (error: Error) => setSaid(error.message))}>PNG</button>
            <button onClick={() => setDark(!dark)}>{dark ? "Light" : "Dark"}</button>
            <p class="note" role="status">{said}</p>
          </section>
          <section>
            <h2>Facts</h2>
            <dl>{matrix.header.facts.map(([name, value]) => <><dt>{name}</dt><dd><bdi>{visible(value, 200)}</bdi></dd></>)}</dl>
            {matrix.header.left_out && <p class="note">{matrix.header.left_out}</p>}
            <p class="note">
              Blue raises, orange lowers. The deeper a colour, the larger the size, by its square root; the deepest is {number(table.largest)}.
            </p>
          </section>
        </nav>
        <MatrixView table={table} theme={theme} chosen={[chosen.target, chosen.source]} choose={(target, source) => set({ target, source })} kept={view} />
        <aside class="panel" aria-label="Details">
          <Strongest table={table} target={chosen.target} source={chosen.source} choose={(target, source) => set({ target, source })} />
        </aside>
      </main>
    </>
  );
}

function Strongest({ table, target, source, choose }: { table: Table; target: number | null; source: number | null; choose: (target: number, source: number) => void }) {
  const list = (title: string, id: string, passes: (entry: number) => boolean) => {
    const entries = Array.from(table.value.keys()).filter(passes).sort((a, b) => Math.abs(table.value[b]) - Math.abs(table.value[a]));
    const whole = entries.reduce((sum, entry) => sum + Math.abs(table.value[entry]), 0);
    return (
      <section>
        <h2>{title} <small>{count(entries.length)} edges{entries.length > LISTED ? `, ${LISTED} listed` : ""}</small></h2>
        <ol class="edges" id={id}>
          {entries.slice(0, LISTED).map((entry) => (
            <li key={entry}>
              <button class="end" onClick={() => choose(table.row[entry], table.column[entry])}>
                <bdi>{table.sources.label(table.column[entry])}</bdi> → <bdi>{table.targets.label(table.row[entry])}</bdi>
              </button>
              <span class="weight">{signed(table.value[entry])}<small>{whole > 0 ? percent(Math.abs(table.value[entry]) / whole) : ""}</small></span>
            </li>
          ))}
        </ol>
      </section>
    );
  };
  if (target === null || source === null) return list("The strongest", "strongest", () => true);
  return (
    <>
      {list(`Into ${table.targets.label(target)}`, "into", (entry) => table.row[entry] === target)}
      {list(`Out of ${table.sources.label(source)}`, "out-of", (entry) => table.column[entry] === source)}
    </>
  );
}

function csv(table: Table): Blob {
  const order = Array.from(table.value.keys()).sort((a, b) => Math.abs(table.value[b]) - Math.abs(table.value[a]));
  const rows = order.map((entry) => [table.sources.label(table.column[entry]), table.targets.label(table.row[entry]), String(table.value[entry])]);
  return csvOf([["source", "target", "value"], ...rows]);
}

function toAddress(chosen: Chosen): string {
  const found = new URLSearchParams({ m: String(chosen.matrix) });
  if (chosen.other !== null) found.set("less", String(chosen.other));
  if (chosen.value !== "attribution") found.set("v", chosen.value);
  if (chosen.order !== "position") found.set("o", chosen.order);
  if (chosen.empty) found.set("empty", "1");
  if (chosen.target !== null && chosen.source !== null) found.set("at", `${chosen.target}.${chosen.source}`);
  return found.toString();
}

/** The choice of an address; what is no choice here is left out. */
function fromAddress(matrices: Matrix[]): Chosen {
  const found = new URLSearchParams(location.hash.replace(/^#/, ""));
  const whole = (text: string | null | undefined, end: number) => {
    const value = text && /^\d{1,9}$/.test(text) ? Number(text) : null;
    return value !== null && value < end ? value : null;
  };
  const matrix = whole(found.get("m"), matrices.length) ?? 0;
  const other = whole(found.get("less"), matrices.length);
  const [target, source] = (found.get("at") ?? "").split(".");
  const value = found.get("v") === "gradient" ? "gradient" : "attribution";
  const order = found.get("o") === "strength" ? "strength" : "position";
  const empty = found.get("empty") === "1";
  // rows and columns of a difference are those that either matrix has
  const { targets, sources } = other === null ? matrices[matrix] : tableOf(matrices[matrix], value, order, matrices[other], empty);
  const at = [whole(target, targets.size), whole(source, sources.size)];
  return { matrix, other, value, order, empty, target: at[1] === null ? null : at[0], source: at[0] === null ? null : at[1] };
}
