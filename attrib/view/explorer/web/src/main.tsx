// The page unpacks what it was given, and shows it as what it is.

import { render } from "preact";
import { besidePage } from "./beside_page";
import { graphPage } from "./graph_page";
import { matrixPage } from "./matrix_page";
import { BESIDE, MATRICES, unpack, type AnyHeader, type BesideHeader, type Header, type MatricesHeader, type Payload } from "./payload";

function shownAs(payload: Payload<AnyHeader>) {
  switch (payload.header.format) {
    case MATRICES:
      return matrixPage(payload as Payload<MatricesHeader>);
    case BESIDE:
      return besidePage(payload as Payload<BesideHeader>);
    default:
      return graphPage(payload as Payload<Header>);
  }
}

async function start(): Promise<void> {
  const root = document.getElementById("page")!;
  try {
    const payload = await unpack(document.getElementById("data")!.textContent!.trim());
    const { page, parts } = shownAs(payload);
    Object.assign(window, { explorer: parts });
    root.textContent = "";
    render(page, root);
  } catch (error) {
    root.textContent = `This page cannot be shown: ${(error as Error).message}`;
    throw error;
  }
}

void start();
