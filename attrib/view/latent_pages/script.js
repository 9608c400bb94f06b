"use strict";
// Which latents the words in the box leave, and all bands opened or shut at once. The page is whole without it.
const box = document.getElementById("find");
const said = document.getElementById("found");
const bands = document.getElementById("bands");
const rows = [...document.querySelectorAll("nav li")].map((line) => ({
  line,
  section: document.getElementById(line.dataset.of),
  words: line.dataset.words.toLowerCase(),
}));

function find() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const { line, section, words: there } of rows) {
    const matches = words.every((word) => there.includes(word));
    line.hidden = section.hidden = !matches;
    left += Number(matches);
  }
  said.textContent = `${left} of ${rows.length} latents`;
}

box.addEventListener("input", find);
bands.addEventListener("click", () => {
  const open = bands.getAttribute("aria-pressed") !== "true";
  bands.setAttribute("aria-pressed", String(open));
  for (const one of document.querySelectorAll("details")) one.open = open;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== box) {
    event.preventDefault();
    box.focus();
  } else if (event.key === "Escape" && event.target === box) {
    box.value = "";
    find();
  }
});
document.getElementById("tools").hidden = false;
find();
