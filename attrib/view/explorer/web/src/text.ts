// Strings from models and files, made fit to be looked at: nothing in them may act on the page or on the text around them.

const LONGEST = 60;

// Controls, halves of characters, and what turns the direction of writing or is not drawn; how an emoji is drawn may be chosen.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u2800]|(?![\ufe0e\ufe0f])\p{Default_Ignorable_Code_Point}/gu;
/** What a cut leaves of a character of two halves. */
const HALF = /[\ud800-\udbff]$/;
const KNOWN: Record<string, string> = { "\n": "⏎", "\t": "⇥", "\r": "␍" };

/** A string with what cannot be seen written out, cut to a length. */
export function visible(text: string, longest = LONGEST): string {
  const cut = text.length > longest ? `${text.slice(0, longest).replace(HALF, "")}…` : text;
  return cut.replace(UNSEEN, (character) => KNOWN[character] ?? `\\u{${character.codePointAt(0)!.toString(16)}}`);
}

/** A number with four digits that count. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** How many, with a comma before every three digits. `toLocaleString` does the same, after some ten milliseconds the first time. */
export function count(whole: number): string {
  return String(whole).replace(/\B(?=(\d{3})+$)/g, ",");
}

export function signed(value: number): string {
  return value > 0 ? `+${number(value)}` : number(value).replace("-", "−");
}

export function percent(share: number): string {
  return `${(100 * share).toPrecision(3)}%`.replace("-", "−");
}
