// Everything here is a help: without it the page has the same numbers, and static plots.
const root = document.documentElement;
root.classList.add("js");
const make = (name, properties = {}, ...inside) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...inside);
  return node;
};
const data = (node) => JSON.parse(node.textContent);

// Each heading of a table sorts it: a button, so that the keyboard does as well. Empty cells stay last.
const sortable = (table) => {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = make("button", { type: "button" }, ...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column], text = cell.textContent.trim();
        if (text === "–" || text === "") return null;
        return cell.dataset.value === undefined ? text : Number(cell.dataset.value);
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(y, "en", { numeric: true });
        return down ? -less : less;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
};

// Which columns a wide table shows.
const choosable = (table) => {
  const headings = [...table.tHead.rows[0].cells];
  if (headings.length < 6) return;
  const show = (column, shown) => {
    for (const row of table.rows) row.cells[column].hidden = !shown;
  };
  const boxes = headings.map((heading, column) => {
    if (column === 0) return "";
    const box = make("input", { type: "checkbox", checked: !("extra" in heading.dataset) });
    box.addEventListener("change", () => show(column, box.checked));
    show(column, box.checked);
    return make("label", {}, box, ` ${heading.textContent}`);
  });
  const chooser = make("details", { className: "columns" }, make("summary", {}, "Columns"), ...boxes);
  table.closest(".scroll").before(chooser);
};
for (const table of document.querySelectorAll("table.grid")) {
  choosable(table);
  sortable(table);
}

// A link to what is folded away unfolds it, and paper shows everything.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.matches("details")) target.open = true;
  for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));

// Plots: Okabe and Ito's colours, dashes where they repeat.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
// A readout gives this many lines at once, each by its sample within so many pixels.
const LINES = 5, NEAR = 20;
const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3]];
const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const short = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));

const drawn = (holder) => {
  const spec = data(document.getElementById(`data-${holder.dataset.plot}`)), run = holder.dataset.run;
  const named = (each) => each.kind !== "faint" && each.kind !== "low" && each.kind !== "high";
  const labels = [...new Set(spec.panels.flatMap((panel) => panel.series.filter(named).map((each) => each.label)))];
  if (run) {  // in its own part, in the colour that it has beside the others
    for (const panel of spec.panels) panel.series = panel.series.filter((each) => each.run === run);
    spec.panels = spec.panels.filter((panel) => panel.series.length);
  }
  const off = new Set();
  const plots = [], legend = make("p", { className: "legend" }), panels = make("div", { className: "panels" });
  const colour = (each) => (named(each) ? COLOURS[labels.indexOf(each.label) % COLOURS.length] : "#888");
  const dash = (each) => DASHES[Math.floor(labels.indexOf(each.label) / COLOURS.length) % DASHES.length] ?? [];
  const shown = (each) => !off.has(each.label);
  const buttons = new Map();
  const refresh = () => {
    plots.forEach(([plot, series]) => series.forEach((each, i) => plot.setSeries(i + 1, { show: shown(each) })));
    for (const [label, button] of buttons) button.setAttribute("aria-pressed", String(!off.has(label)));
  };
  labels.forEach((label, i) => {
    const sample = `<svg width="26" height="10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="${COLOURS[i % COLOURS.length]}" stroke-width="3" stroke-dasharray="${DASHES[Math.floor(i / COLOURS.length) % DASHES.length]}"/></svg>`;
    const button = make("button", { type: "button" });
    button.innerHTML = sample;
    button.append(` ${label}`);
    button.addEventListener("click", () => {
      off.has(label) ? off.delete(label) : off.add(label);
      refresh();
    });
    buttons.set(label, button);
    legend.append(button);
  });
  for (const panel of spec.panels) {
    const parts = panel.series.map((each) => [spec.xs[each.x], each.y]);
    const table = uPlot.join(parts);
    const said = make("p", { className: "readout" });
    const frame = make("div", { className: "frame", tabIndex: 0 });
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", `${panel.title}: interactive plot; the arrow keys move along it, up and down to further lines`);
    const box = make("div", { className: "panel" }, make("p", { className: "name" }, panel.title), frame, said);
    panels.append(box);
    const ink = () => style("--ink"), line = () => style("--line");
    const ticks = spec.ticks && Object.keys(spec.ticks).map(Number);
    const axis = { stroke: ink, font: "12px system-ui, sans-serif", grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const name = (x) => spec.ticks?.[x] ?? short(x);
    let page = 0;
    const tell = (plot) => {
      const { idx, idxs, left, top } = plot.cursor;
      if (idx == null) { said.textContent = ""; return; }
      const at = plot.posToVal(top, "y");
      // uPlot finds each line's own sample that is nearest; one that is farther than NEAR belongs elsewhere.
      const known = panel.series
        .map((each, s) => [each, idxs[s + 1]])
        .filter(([each, i]) => i != null && shown(each) && Math.abs(plot.valToPos(table[0][i], "x") - left) < NEAR)
        .map(([each, i]) => [each, table[panel.series.indexOf(each) + 1][i]])
        .sort((a, b) => Math.abs(a[1] - at) - Math.abs(b[1] - at));
      page = Math.min(page, Math.max(0, Math.ceil(known.length / LINES) - 1));
      const rest = known.length > LINES ? `; ${page * LINES + 1} to ${Math.min(known.length, (page + 1) * LINES)} of ${known.length} lines: ↑ ↓ for others` : "";
      said.textContent = `${spec.across} ${name(table[0][idx])}: ` + known.slice(page * LINES, (page + 1) * LINES).map(([each, y]) => `${each.run || each.label} ${short(y)}`).join(", ") + rest;
    };
    const low = panel.series.findIndex((each) => each.kind === "low"), high = panel.series.findIndex((each) => each.kind === "high");
    const options = {
      width: 300, height: spec.panels.length > 1 ? 190 : 340, legend: { show: false },
      cursor: { sync: spec.panels.length > 1 ? { key: `${holder.dataset.plot} ${run}`, setSeries: false } : undefined, y: false, drag: { x: true, y: false } },
      scales: { x: { time: false, distr: spec.log ? 3 : 1 } },
      axes: [
        { ...axis, size: 34, ...(ticks ? { splits: () => ticks, values: (_, all) => all.map(name), filter: (_, all) => all } : {}) },
        { ...axis, size: 56, values: (_, all) => all.map(short) },
      ],
      bands: low >= 0 && high >= 0 ? [{ series: [high + 1, low + 1], fill: "rgba(0, 114, 178, 0.18)" }] : [],
      series: [{}, ...panel.series.map((each) => ({
        label: each.label, stroke: colour(each), dash: dash(each), spanGaps: true,
        width: each.kind === "points" || each.kind === "low" || each.kind === "high" ? 0 : each.kind === "faint" ? 1 : 1.6,
        points: { show: ["points", "faint"].includes(each.kind) || each.y.length < 2, size: each.kind === "points" ? 10 : 6, fill: each.kind === "points" ? colour(each) : style("--page") },
      }))],
      hooks: { setCursor: [tell] },
    };
    const plot = new uPlot(options, table, frame);
    plots.push([plot, panel.series]);
    let place = null;
    frame.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      said.setAttribute("aria-live", "polite");
      if (turn && place !== null) {
        event.preventDefault();
        page = Math.max(0, page + turn);
        tell(plot);
      }
      if (!step) return;
      event.preventDefault();
      place = Math.min(table[0].length - 1, Math.max(0, (place ?? (step > 0 ? -1 : table[0].length)) + step));
      plot.setCursor({ left: plot.valToPos(table[0][place], "x"), top: plot.over.clientHeight / 2 });
    });
    new ResizeObserver(() => {
      if (frame.clientWidth) plot.setSize({ width: frame.clientWidth, height: options.height });
    }).observe(frame);
  }
  holder.append(...(run ? [] : [legend]), panels);
  holder.only = (chosen) => {  // the others can be added in the legend
    for (const label of labels) chosen.includes(label) ? off.delete(label) : off.add(label);
    refresh();
  };
  holder.chosen ? holder.only(holder.chosen) : refresh();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([plot]) => plot.redraw()));
};
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !entry.target.childNodes.length) drawn(entry.target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll(".plot").forEach((holder) => watcher.observe(holder));

// Two rows beside each other: any two, in any task.
for (const script of document.querySelectorAll(".compare script.data")) {
  const part = script.closest(".compare"), all = data(script);
  const select = (label, names, chosen) => {
    const box = make("select", {}, ...names.map((name, i) => make("option", { value: i, selected: i === chosen }, name)));
    box.addEventListener("change", () => fill());
    return [make("label", {}, `${label} `, box), box];
  };
  const tasks = Object.keys(all.tasks);
  const [one, first] = select("Row", all.labels, all.first);
  const [other, second] = select("beside", all.labels, all.second);
  const [which, task] = select("by", tasks.map((name) => all.tasks[name].label), 0);
  part.querySelector(".choose").replaceChildren(one, other, which);
  const number = (value, sign) => {
    if (value == null) return "–";
    const text = Math.abs(value).toFixed(1), minus = value < 0 && Number(text);  // never -0.0
    return (minus ? "-" : sign ? "+" : "") + text;
  };
  const rows = (table, names, ours, theirs) => {
    const headings = [all.labels[first.value], all.labels[second.value]];
    const lines = names.map((name, i) => [name, ours?.[i] ?? null, theirs?.[i] ?? null]);
    lines.forEach((line) => line.push(line[1] === null || line[2] === null ? null : line[1] - line[2]));
    if (names.length > 4) lines.sort((a, b) => (a[3] === null) - (b[3] === null) || a[3] - b[3]);
    table.tBodies[0].replaceChildren(...lines.map(([name, ...values]) => make("tr", {}, Object.assign(make("th", { scope: "row" }, name)), ...values.map((value, i) => {
      const cell = make("td", {}, number(value, i === 2));
      if (value !== null) cell.dataset.value = value;
      cell.dataset.label = [...headings, "first − second"][i];
      return cell;
    }))));
    for (const heading of table.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
    headings.forEach((text, i) => { table.tHead.rows[0].cells[i + 1].firstChild.textContent = text; });
  };
  const fill = () => {
    const [i, j, each] = [Number(first.value), Number(second.value), all.tasks[tasks[task.value]]];
    const found = each.pairs[`${Math.max(i, j)}-${Math.min(i, j)}`];
    const turned = found && (i > j ? found : [-found[0], -found[2], -found[1]]);
    const meaning = turned && (turned[1] > 0 ? all.meanings.higher : turned[2] < 0 ? all.meanings.lower : all.meanings.open);
    part.querySelector(".paired").textContent = turned ? `${number(turned[0], true)} (${number(turned[1], true)} to ${number(turned[2], true)}) ${each.label} AP: ${meaning}.` : "–";
    part.querySelector(".pair").textContent = `${all.labels[i]} less ${all.labels[j]}: `;
    const [sizes, categories] = part.querySelectorAll("table.grid");
    const mean = (values) => { const known = (values ?? []).filter((v) => v !== null); return known.length ? known.reduce((a, b) => a + b) / known.length : null; };
    rows(sizes, each.sizes, each.ap[i]?.map(mean), each.ap[j]?.map(mean));
    rows(categories, each.categories, each.ap[i]?.[0], each.ap[j]?.[0]);
    for (const plot of part.querySelectorAll(".plot")) {
      plot.chosen = [all.labels[i], all.labels[j]];
      plot.only?.(plot.chosen);
    }
  };
  fill();
}

// Pictures open large, the truth beside them; the arrow keys go through the methods, then through the images.
const dialog = document.querySelector("dialog");
if (dialog) {
  const buttons = [...document.querySelectorAll(".pictures [data-run]")];
  buttons.forEach((button, i) => {
    button.dataset.at = i;
    button.closest(".panels").firstElementChild.dataset.at ??= i;  // the truth
  });
  let at = 0;
  const show = (number) => {
    at = (number + buttons.length) % buttons.length;
    const image = buttons[at].querySelector("img"), truth = buttons[at].closest(".panels").querySelector("img");
    dialog.querySelector(".large").replaceChildren(truth.cloneNode(), image.cloneNode());
    dialog.querySelector(".said").textContent = image.alt;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".panels button[data-at]");
    if (!button) return;
    show(Number(button.dataset.at));
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  // A run's part shows the gallery's pictures of that run, without a second copy in the page.
  for (const holder of document.querySelectorAll(".own .pictures")) {
    holder.closest("details").addEventListener("toggle", () => {
      holder.replaceChildren(...buttons.filter((each) => each.dataset.run === holder.dataset.run).map((each) => {
        const figure = each.closest("figure"), truth = figure.querySelector("button");
        return make("figure", {}, make("div", { className: "panels" }, truth.cloneNode(true), each.cloneNode(true)), figure.querySelector("figcaption").cloneNode(true));
      }));
    });
  }
  dialog.querySelector(".back").addEventListener("click", () => show(at - 1));
  dialog.querySelector(".on").addEventListener("click", () => show(at + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
}
