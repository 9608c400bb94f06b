// Bundle the page's script and style into ../built, the same bytes each time, and beside them the licences of what is inside.

import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const out = process.argv[2] ?? "../built";
const usual = { bundle: true, minify: true, legalComments: "none", charset: "utf8", target: "es2022", logLevel: "warning" };
const { metafile } = await build({
  ...usual, entryPoints: ["src/main.tsx"], format: "iife", jsx: "automatic", jsxImportSource: "preact", metafile: true,
  outfile: `${out}/explorer.js`,
});
await build({ ...usual, entryPoints: ["src/style.css"], outfile: `${out}/explorer.css` });

const inside = Object.keys(metafile.inputs).map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
const licences = await Promise.all(
  [...new Set(inside.filter(Boolean))].sort().map(async (name) => {
    const { version, license } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
    const text = await readFile(`node_modules/${name}/LICENSE`, "utf8");
    return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  }),
);
await writeFile(`${out}/LICENSES.txt`, `explorer.js holds parts of these packages.\n\n${licences.join("\n\n")}`);
