// How large a weight is of the largest in its list, as a line below it.

import type { Theme } from "./colours";

export function Bar({ weight, most, theme }: { weight: number; most: number; theme: Theme }) {
  const width = `${(100 * Math.abs(weight)) / (Math.abs(most) || 1)}%`;
  return <span class="bar" aria-hidden="true" style={{ width, background: weight > 0 ? theme.positive : theme.negative }} />;
}
