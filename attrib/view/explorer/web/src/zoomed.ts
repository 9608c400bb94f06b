// A canvas that is moved and scaled by mouse, wheel, touch and keyboard, and drawn again when anything of it changes.

import type { Signal } from "@preact/signals";
import { select } from "d3-selection";
import { zoom, zoomIdentity, type D3ZoomEvent, type ZoomTransform } from "d3-zoom";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Box } from "./surfaces";

interface Place {
  x: number;
  y: number;
}

/** How a whole picture lies in a window of this width and height: scaled, then moved. */
export type Fitting = (width: number, height: number) => { scale: number; left: number; top: number };

/** `moved`, where it is given, is what this canvas and others move by together. */
export function useZoomed(scales: [number, number], fitting: Fitting, whole: unknown[], moved?: Signal<ZoomTransform | null>) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [size, setSize] = useState<[number, number]>([0, 0]);
  const [transform, setTransform] = useState<ZoomTransform>(zoomIdentity);
  const dragged = useRef(false);
  const behaviour = useMemo(
    () =>
      zoom<HTMLCanvasElement, unknown>()
        .scaleExtent(scales)
        .clickDistance(4)
        .on("start", () => (dragged.current = false))
        .on("zoom", (event: D3ZoomEvent<HTMLCanvasElement, unknown>) => {
          dragged.current = true;
          setTransform(event.transform);
          if (moved) moved.value = event.transform;
        }),
    [],
  );
  const fit = () => {
    const { scale, left, top } = fitting(canvas.current!.clientWidth, canvas.current!.clientHeight);
    select(canvas.current!).call(behaviour.transform, zoomIdentity.translate(left, top).scale(scale));
  };
  /** Scale about a place of the picture, which stays where it is; without one, about the middle of the window. */
  const scaleBy = (factor: number, about?: Place) =>
    select(canvas.current!).call(behaviour.scaleBy, factor, about && transform.apply([about.x, about.y]));
  /** Move the picture, where a place of it is not seen within a box of the window, so that it is in the middle of that. */
  const reveal = (place: [number, number], { left, top, width, height }: Box) => {
    const [x, y] = transform.apply(place);
    if (x >= left && x <= left + width && y >= top && y <= top + height) return;
    select(canvas.current!).call(behaviour.translateTo, ...place, [left + width / 2, top + height / 2]);
  };
  useLayoutEffect(() => {
    const element = canvas.current!;
    select(element).call(behaviour).on("dblclick.zoom", null);
    const measure = () => {
      const { clientWidth, clientHeight } = element;
      setSize((last) => (last[0] === clientWidth && last[1] === clientHeight ? last : [clientWidth, clientHeight]));
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    measure();
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(fit, whole);
  const together = moved?.value ?? null;
  useLayoutEffect(() => {
    if (!together) return;
    Object.assign(canvas.current!, { __zoom: together }); // where d3 keeps it; no event, so nothing is moved twice
    setTransform(together);
  }, [together]);

  /** The canvas at its size on this screen, emptied, in pixels of the page. */
  const context = (ground: string): CanvasRenderingContext2D => {
    const ratio = window.devicePixelRatio || 1;
    const element = canvas.current!;
    const [width, height] = size.map((each) => Math.max(1, Math.round(each * ratio)));
    if (element.width !== width || element.height !== height) Object.assign(element, { width, height }); // which costs memory made anew
    const found = element.getContext("2d")!;
    found.setTransform(1, 0, 0, 1, 0, 0);
    found.fillStyle = ground;
    found.fillRect(0, 0, element.width, element.height);
    found.scale(ratio, ratio);
    return found;
  };
  /** Where on the picture a mouse points, and where in the window. */
  const pointed = (event: MouseEvent): { on: [number, number]; at: [number, number] } => {
    const box = canvas.current!.getBoundingClientRect();
    const at: [number, number] = [event.clientX - box.left, event.clientY - box.top];
    return { on: transform.invert(at), at };
  };
  /** What the keys for scaling do, about what is chosen; false for other keys. */
  const scaledBy = (key: string, about?: Place): boolean => {
    if (key === "+" || key === "=") scaleBy(1.3, about);
    else if (key === "-") scaleBy(1 / 1.3, about);
    else if (key === "0") fit();
    else return false;
    return true;
  };
  return { canvas, size, transform, dragged, fit, context, pointed, scaledBy, reveal };
}

/** Whether a key is the browser's: it prints, or scales the page. */
export function isBrowsers(event: KeyboardEvent): boolean {
  return event.ctrlKey || event.metaKey || event.altKey;
}

/** The ways of the arrow keys: across and down. */
export const WAYS: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
