"""What the tests of the report ask a page in a browser."""

WIDTHS = (380, 768, 1280, 1920)
CUT = """() => {
  const parts = document.querySelectorAll('.scroll, td, th, dd, pre, li, summary, figcaption, .frame');
  return [...parts]
    .filter((e) => e.checkVisibility() && getComputedStyle(e).display !== 'inline')
    .filter((e) => e.scrollWidth > e.clientWidth + 1)
    .map((e) => `${e.tagName}.${e.className} ${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim()}`);
}"""
SMALL = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement, size = getComputedStyle(e).fontSize;
    if (node.textContent.trim() && e.checkVisibility() && parseFloat(size) < 12)
      found.add(`${e.tagName}.${e.className} ${size}: ${node.textContent.trim()}`);
  }
  return [...found];
}"""
PIXELS = """(svg) => [...svg.querySelectorAll('text')]
  .map((text) => [parseFloat(getComputedStyle(text).fontSize), text.getScreenCTM()])
  .map(([size, matrix]) => size * Math.hypot(matrix.a, matrix.b) + 0.01)"""
UNFOLD = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
DRAW = "document.querySelectorAll('.plot').forEach((each) => { if (!each.childNodes.length) drawn(each); })"
EMPTY = """() => [...document.querySelectorAll('table.grid')]
  .filter((table) => table.checkVisibility())
  .flatMap((table) => [...table.tHead.rows[0].cells].slice(1).map((heading) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].textContent.trim());
    return cells.every((text) => text === '–') && `${table.parentNode.ariaLabel}: ${heading.textContent}`;
  })).filter((each) => each)"""
THIN = """() => {
  const look = (e) => {
    const { color, backgroundColor, font, opacity } = getComputedStyle(e);
    const named = ['class', 'style'].map((name) => e.getAttribute(name));
    return [e.tagName, ...named, e.checkVisibility(), color, backgroundColor, font, opacity];
  };
  const shape = (e) => `${look(e)} (${[...e.children].map(shape)})`;
  const thin = (e) => {
    const seen = new Set();
    for (const child of [...e.children]) {
      const its = shape(child);
      if (seen.has(its)) child.remove();
      else { seen.add(its); thin(child); }
    }
  };
  thin(document.body);
}"""
"""Leaves one of neighbours that look alike but for their words, such as the rows of a table."""
