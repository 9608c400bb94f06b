// A matrix on a canvas, a colour for each entry, with names where there is room for them.

import { useLayoutEffect, useMemo, useState } from "preact/hooks";
import type { View } from "./axes";
import type { Theme } from "./colours";
import { Hint } from "./hint";
import { fitted } from "./letters";
import type { Table } from "./matrix";
import { CanvasSurface, type Surface } from "./surfaces";
import { signed } from "./text";
import { isBrowsers, useZoomed, WAYS } from "./zoomed";

interface Props {
  table: Table;
  theme: Theme;
  chosen: [number | null, number | null];
  choose: (target: number | null, source: number | null) => void;
  /** Where it is kept how the matrix lies in its window. */
  kept: { current: View | null };
}

/** What is drawn: a table, a pixel for each of its cells, and which row and column are chosen. */
interface Drawn {
  table: Table;
  image: HTMLCanvasElement;
  theme: Theme;
  chosen: [number | null, number | null];
}

export const LEFT = 150;
export const TOP = 110;
/** Pixels of the narrower side of a matrix below which it is a line. */
const NARROWEST = 120;
/** Pixels of the smallest cell that is named. */
const NAMED = 9;

export function MatrixView({ table, theme, chosen, choose, kept }: Props) {
  const [under, setUnder] = useState<[number, number] | null>(null);
  const image = useMemo(() => painted(table, theme), [table, theme]);
  const entries = useMemo(() => new Map(Array.from(table.row, (row, entry) => [row * table.sources.size + table.column[entry], entry])), [table]);
  const { canvas, size, transform, dragged, fit, context, pointed, scaledBy, reveal } = useZoomed(
    [0.05, 60],
    (width, height) => {
      const across = (width - LEFT) / Math.max(1, table.columns.length);
      const down = (height - TOP) / Math.max(1, table.rows.length);
      // all of it, unless that made a long and narrow matrix a line
      const all = Math.min(across, down);
      const isLine = all * Math.min(table.columns.length, table.rows.length) < NARROWEST;
      const scale = Math.min(28, isLine ? Math.max(all, Math.min(14, Math.max(across, down))) : all);
      return { scale: Math.max(0.05, scale), left: LEFT, top: TOP };
    },
    [table.rows.length, table.columns.length],
  );
  const view = (kept.current = { width: size[0], height: size[1], k: transform.k, x: transform.x, y: transform.y });
  useLayoutEffect(() => {
    if (size[0]) drawMatrix(new CanvasSurface(context(theme.ground)), view, { table, image, theme, chosen });
  }, [size, transform, table, image, theme, chosen]);

  const cellAt = (event: MouseEvent): [number, number] | null => {
    const { on, at: [x, y] } = pointed(event);
    const [column, row] = on.map(Math.floor);
    const isRow = row >= 0 && row < table.rows.length && y >= TOP;
    const isColumn = column >= 0 && column < table.columns.length && x >= LEFT;
    return isRow && isColumn ? [table.rows[row], table.columns[column]] : null;
  };
  const [row, column] = [chosen[0] === null ? -1 : table.rowPlace[chosen[0]], chosen[1] === null ? -1 : table.columnPlace[chosen[1]]];
  const middle = row < 0 || column < 0 ? { x: 0, y: 0 } : { x: column + 0.5, y: row + 0.5 };
  const press = (event: KeyboardEvent) => {
    if (isBrowsers(event)) return;
    const way = WAYS[event.key];
    if (way && table.rows.length && table.columns.length) {
      const at = (axis: 0 | 1, place: Int32Array, order: number[]) => {
        const last = chosen[axis];
        const now = last === null ? 0 : place[last] + way[1 - axis];
        return order[Math.min(order.length - 1, Math.max(0, now))];
      };
      const [row, column] = [at(0, table.rowPlace, table.rows), at(1, table.columnPlace, table.columns)];
      choose(row, column);
      const [left, top, width, height] = [LEFT, TOP, size[0] - LEFT, size[1] - TOP];
      reveal([table.columnPlace[column] + 0.5, table.rowPlace[row] + 0.5], { left, top, width, height });
    } else if (event.key === "Escape") choose(null, null);
    else if (!scaledBy(event.key, middle)) return;
    event.preventDefault();
  };
  const entry = under ? entries.get(under[0] * table.sources.size + under[1]) : undefined;
  const at = under && transform.apply([table.columnPlace[under[1]] + 1, table.rowPlace[under[0]] + 1]);
  return (
    <div class="graph-view">
      <canvas
        ref={canvas}
        id="matrix"
        tabIndex={0}
        role="application"
        aria-label="Matrix of edges. Arrow keys go from cell to cell, plus and minus scale, 0 shows all."
        onMouseMove={(event) => setUnder(cellAt(event))}
        onMouseLeave={() => setUnder(null)}
        onClick={(event) => {
          const [target, source] = cellAt(event) ?? [null, null];
          if (!dragged.current) choose(target, source);
        }}
        onKeyDown={press}
      />
      <button class="fit" onClick={fit}>Show all</button>
      {under && at && (
        <Hint at={at} size={size}>
          <div><bdi>{table.sources.label(under[1])}</bdi> → <bdi>{table.targets.label(under[0])}</bdi></div>
          <strong>{entry === undefined ? "not stored" : signed(table.value[entry])}</strong>
        </Hint>
      )}
    </div>
  );
}

/** One pixel for each cell. Sizes are shown by their square root, so that small ones are seen beside the largest. */
export function painted(table: Table, theme: Theme): HTMLCanvasElement {
  const made = document.createElement("canvas");
  made.width = Math.max(1, table.columns.length);
  made.height = Math.max(1, table.rows.length);
  const context = made.getContext("2d")!;
  const pixels = context.createImageData(made.width, made.height);
  const [up, down] = [channels(theme.positive), channels(theme.negative)];
  table.row.forEach((row, entry) => {
    const value = table.value[entry];
    const at = 4 * (table.rowPlace[row] * made.width + table.columnPlace[table.column[entry]]);
    pixels.data.set(value > 0 ? up : down, at);
    pixels.data[at + 3] = table.largest ? Math.max(value === 0 ? 0 : 12, 255 * Math.sqrt(Math.abs(value) / table.largest)) : 0;
  });
  context.putImageData(pixels, 0, 0);
  return made;
}

function channels(colour: string): [number, number, number] {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) as [number, number, number];
}

/** What of a table is seen through a window, with the names of its rows and columns where they have room. */
export function drawMatrix(surface: Surface, { width, height, k, x, y }: View, { table, image, theme, chosen }: Drawn): void {
  const [target, source] = chosen;
  const [across, down] = [k * table.columns.length, k * table.rows.length];
  surface.within({ left: LEFT, top: TOP, width: width - LEFT, height: height - TOP }, { k: 1, x: 0, y: 0 }, () => {
    surface.image(image, { left: x, top: y, width: across, height: down }, k < 1);
    surface.frame({ left: x, top: y, width: across, height: down }, theme.faint);
    const isRow = target !== null && table.rowPlace[target] >= 0;
    const isColumn = source !== null && table.columnPlace[source] >= 0;
    if (isRow) surface.frame({ left: x, top: y + k * table.rowPlace[target], width: across, height: k }, theme.chosen);
    if (isColumn) surface.frame({ left: x + k * table.columnPlace[source], top: y, width: k, height: down }, theme.chosen);
  });
  if (k < NAMED) {
    surface.text(`${table.rows.length} targets`, [6, TOP + 14], theme.text, 12, "start");
    surface.text(`${table.columns.length} sources`, [LEFT, TOP - 6], theme.text, 12, "start");
    return;
  }
  const size = Math.min(12, k);
  table.rows.forEach((row, place) => {
    const at = y + k * (place + 0.5) + size / 3;
    if (at > TOP && at < height) surface.text(fitted(table.targets.label(row), size, LEFT - 8), [LEFT - 4, at], theme.text, size, "end");
  });
  table.columns.forEach((column, place) => {
    const at = x + k * (place + 0.5) + size / 3;
    if (at < LEFT || at > width) return;
    surface.text(fitted(table.sources.label(column), size, TOP - 8), [at, TOP - 4], theme.text, size, "start", undefined, true);
  });
}
