// A matrix on a canvas, a colour for each entry, with names where there is room for them.

import type { ZoomTransform } from "d3-zoom";
import { useLayoutEffect, useMemo, useState } from "preact/hooks";
import type { Theme } from "./colours";
import { Hint } from "./hint";
import type { Table } from "./matrix";
import { signed } from "./text";
import { isBrowsers, useZoomed, WAYS } from "./zoomed";

interface Props {
  table: Table;
  theme: Theme;
  chosen: [number | null, number | null];
  choose: (target: number | null, source: number | null) => void;
}

export const LEFT = 150;
export const TOP = 110;
/** Pixels of the smallest cell that is named. */
const NAMED = 9;

export function MatrixView({ table, theme, chosen, choose }: Props) {
  const [under, setUnder] = useState<[number, number] | null>(null);
  const image = useMemo(() => painted(table, theme), [table, theme]);
  const entries = useMemo(() => new Map(Array.from(table.row, (row, entry) => [row * table.sources.size + table.column[entry], entry])), [table]);
  const { canvas, size, transform, dragged, fit, context, pointed, scaledBy, reveal } = useZoomed(
    [0.05, 60],
    (width, height) => {
      const across = (width - LEFT) / Math.max(1, table.columns.length);
      const down = (height - TOP) / Math.max(1, table.rows.length);
      // all of it, unless that made a long and narrow matrix a line
      const scale = Math.min(28, Math.max(Math.min(across, down), Math.min(14, Math.max(across, down))));
      return { scale: Math.max(0.05, scale), left: LEFT, top: TOP };
    },
    [table.rows.length, table.columns.length],
  );
  useLayoutEffect(() => {
    if (size[0]) drawn(context(theme.ground), size, table, image, transform, theme, chosen);
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
function painted(table: Table, theme: Theme): HTMLCanvasElement {
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

function drawn(
  context: CanvasRenderingContext2D, [width, height]: [number, number], table: Table, image: HTMLCanvasElement, { k, x, y }: ZoomTransform,
  theme: Theme, [target, source]: [number | null, number | null],
): void {
  context.save();
  context.beginPath();
  context.rect(LEFT, TOP, width - LEFT, height - TOP);
  context.clip();
  context.imageSmoothingEnabled = k < 1;
  context.drawImage(image, x, y, k * table.columns.length, k * table.rows.length);
  context.strokeStyle = theme.faint;
  context.lineWidth = 1;
  context.strokeRect(x, y, k * table.columns.length, k * table.rows.length);
  context.strokeStyle = theme.chosen;
  if (target !== null && table.rowPlace[target] >= 0) context.strokeRect(x, y + k * table.rowPlace[target], k * table.columns.length, k);
  if (source !== null && table.columnPlace[source] >= 0) context.strokeRect(x + k * table.columnPlace[source], y, k, k * table.rows.length);
  context.restore();

  const size = Math.min(12, k);
  context.fillStyle = theme.text;
  context.font = `${size}px system-ui, sans-serif`;
  if (k >= NAMED) {
    context.textAlign = "end";
    table.rows.forEach((row, place) => {
      const at = y + k * (place + 0.5) + size / 3;
      if (at > TOP && at < height) context.fillText(table.targets.label(row).slice(0, 26), LEFT - 4, at, LEFT - 8);
    });
    context.textAlign = "start";
    table.columns.forEach((column, place) => {
      const at = x + k * (place + 0.5) + size / 3;
      if (at < LEFT || at > width) return;
      context.save();
      context.translate(at, TOP - 4);
      context.rotate(-Math.PI / 2);
      context.fillText(table.sources.label(column).slice(0, 20), 0, 0, TOP - 8);
      context.restore();
    });
  } else {
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "start";
    context.fillText(`${table.rows.length} targets`, 6, TOP + 14);
    context.fillText(`${table.columns.length} sources`, LEFT, TOP - 6);
  }
}
