// The page unpacks what it was given, and shows it as what it is.

import { render } from "preact";
import { graphPage } from "./graph_page";
import { matrixPage } from "./matrix_page";
import { MATRICES, unpack, type Header, type MatricesHeader, type Payload } from "./payload";

async function start(): Promise<void> {
  const root = document.getElementById("page")!;
  try {
    const payload = await unpack(document.getElementById("data")!.textContent!.trim());
    const isMatrices = payload.header.format === MATRICES;
    const { page, parts } = isMatrices ? matrixPage(payload as Payload<MatricesHeader>) : graphPage(payload as Payload<Header>);
    Object.assign(window, { explorer: parts });
    root.textContent = "";
    render(page, root);
  } catch (error) {
    root.textContent = `This page cannot be shown: ${(error as Error).message}`;
    throw error;
  }
}

void start();
