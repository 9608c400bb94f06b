// Colours that are told apart without seeing red from green, on light and on dark.

import type { Kind } from "./payload";

/** Fill and shape of each kind of node; the shapes tell them apart without colours. */
export const SHAPES: Record<Kind, { light: string; dark: string; shape: "circle" | "square" | "diamond" | "triangle" | "cross" }> = {
  latent: { light: "#5b6b7b", dark: "#aebccb", shape: "circle" },
  token: { light: "#1b7837", dark: "#7fc97f", shape: "square" },
  position: { light: "#8c8c8c", dark: "#8c8c8c", shape: "square" },
  bias: { light: "#8c8c8c", dark: "#8c8c8c", shape: "triangle" },
  mlp: { light: "#762a83", dark: "#c2a5cf", shape: "triangle" },
  error: { light: "#b35900", dark: "#fdb863", shape: "diamond" },
  head: { light: "#01665e", dark: "#80cdc1", shape: "cross" },
  logit: { light: "#252525", dark: "#f0f0f0", shape: "square" },
  target: { light: "#252525", dark: "#f0f0f0", shape: "square" },
};

export interface Theme {
  dark: boolean;
  text: string;
  faint: string;
  line: string;
  ground: string;
  chosen: string;
  positive: string;
  negative: string;
}

const LIGHT: Theme = {
  dark: false, text: "#1a1a1a", faint: "#595959", line: "#e2e2e2", ground: "#ffffff", chosen: "#c2185b",
  positive: "#0072b2", negative: "#c74e00",
};
const DARK: Theme = {
  dark: true, text: "#ececec", faint: "#b0b0b0", line: "#3a3a3a", ground: "#161616", chosen: "#ff77ad",
  positive: "#56b4e9", negative: "#ff9d4d",
};

export function theme(dark: boolean): Theme {
  return dark ? DARK : LIGHT;
}
