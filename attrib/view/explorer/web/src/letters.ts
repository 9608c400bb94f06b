// How wide text is, and as much of it as there is room for.

import { visible } from "./text";

/** The font of all that is drawn, in pixels. */
export function font(size: number): string {
  return `${size}px ${FAMILY}`;
}

export const FAMILY = "system-ui, sans-serif";

let measuring: CanvasRenderingContext2D | null = null;

export function widthOf(text: string, size: number): number {
  measuring ??= document.createElement("canvas").getContext("2d")!;
  measuring.font = font(size);
  return measuring.measureText(text).width;
}

/**
 * A string made visible, with its end cut off where it is wider than the room; nothing where not even its first character fits. Spaces around
 * it are left out; where it is nothing else, they are written out.
 */
export function fitted(string: string, size: number, room: number): string {
  const seen = string.trim() === "" ? string.replace(/\p{Zs}/gu, "␣") : string;
  const cut = (length: number) => visible(seen, length).trim();
  const whole = cut(LONGEST);
  if (widthOf(whole, size) <= room) return whole;
  let fits = 0;
  let most = Math.min(string.length, LONGEST) - 1;
  while (fits < most) {
    const middle = Math.ceil((fits + most) / 2);
    if (widthOf(cut(middle), size) <= room) fits = middle;
    else most = middle - 1;
  }
  return fits ? cut(fits) : "";
}

const LONGEST = 40;
