// What every page of graphs does beside drawing: light or dark, the state in the address, and the keys that work everywhere.

import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { change, redo, state, toAddress, undo, type State } from "./state";

export function useDark(): [boolean, (dark: boolean) => void] {
  const [dark, setDark] = useState(matchMedia("(prefers-color-scheme: dark)").matches);
  useLayoutEffect(() => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }, [dark]);
  return [dark, setDark];
}

/** What the page last said of what was done, until the reader chooses something else; and how it says something. */
export function useSaid(): [string, (text: string) => void] {
  const [said, setSaid] = useState({ text: "", of: state.value });
  return [said.of === state.value ? said.text : "", (text) => setSaid({ text, of: state.value })];
}

export function useAddress(chosen: State, read: () => State): void {
  useEffect(() => {
    const timer = setTimeout(() => history.replaceState(null, "", `#${toAddress(chosen)}`), 150);
    return () => clearTimeout(timer);
  }, [chosen]);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const inText = event.target instanceof HTMLInputElement && ["search", "text", "number"].includes(event.target.type);
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !inText) {
        event.preventDefault();
        if (event.shiftKey) redo();
        else undo();
      } else if (event.key === "/" && !inText) {
        event.preventDefault();
        document.getElementById("search")!.focus();
      }
    };
    const turn = () => change(read());
    addEventListener("keydown", press);
    addEventListener("hashchange", turn);
    return () => {
      removeEventListener("keydown", press);
      removeEventListener("hashchange", turn);
    };
  }, []);
}
