// What is told of what lies under the pointer, beside it and within the window.

import type { ComponentChildren } from "preact";

/** The width of a hint, as style.css has it, and what it keeps from the window's edge, in pixels. */
const WIDTH = 220;
const EDGE = 10;
const ASIDE = 12;
/** How far above its place, over which a node has its name. */
const ABOVE = 28;

/** `at` is the place that it is of, in pixels of a window of this size: below it and to its right, and above it in the window's lower half. */
export function Hint({ at: [x, y], size: [width, height], children }: { at: [number, number]; size: [number, number]; children: ComponentChildren }) {
  const left = `${Math.max(0, Math.min(x + ASIDE, width - WIDTH - EDGE))}px`;
  const style = y > height / 2 ? { left, bottom: `${height - y + ABOVE}px` } : { left, top: `${y + ASIDE}px` };
  return <div class="hint" style={style}>{children}</div>;
}
