"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { lines, steps, about } = data;
const TABS = ["changes", "ir", "graph", "why-not"];
const CONTEXT = 3;
let current = 0, tab = "changes", split = false, zoom = 0;

const find = (id) => document.getElementById(id);
const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const bytes = (n) => {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < 4) { n /= 1000; unit++; }
  return `${n >= 100 || unit === 0 ? n.toFixed(0) : n.toPrecision(3)} ${units[unit]}`;
};
steps.forEach((step, i) => { step.graph ??= steps[i - 1].graph; });

// IR with its words coloured. Tokens are split first, so that a diff can mark some of them.
const TOKEN = /%[\w.\-]+|@[\w.\-]+|tensor<[^>]*>|kv_cache<[^>]*>|"[^"]*"|-?\d[\w.+\-]*|[A-Za-z_][\w.]*|\s+|./g;
const tokens = (text) => text.match(TOKEN) ?? [];
function classOf(token, before) {
  if (token[0] === "%") return "value";
  if (token[0] === "@") return "weight";
  if (token.startsWith("tensor<") || token.startsWith("kv_cache<")) return "type";
  if (before === "in" && /^[a-z]/.test(token)) return "where";
  if (before === "=" && /^[a-z_]+$/.test(token)) return "op";
  return "";
}
function coloured(text, marked) {
  let before = "", depth = 0, out = "";
  for (const [i, token] of tokens(text).entries()) {
    if (token === "{") depth++;
    if (token === "}") depth--;
    const kind = depth && !"%@".includes(token[0]) ? "" : classOf(token, before);
    let piece = escape(token);
    if (kind === "value" || kind === "weight") piece = `<span class="${kind}" data-name="${piece}">${piece}</span>`;
    else if (kind) piece = `<span class="${kind}">${piece}</span>`;
    out += marked?.has(i) ? `<mark>${piece}</mark>` : piece;
    if (token.trim()) before = token;
  }
  return out;
}

// Which tokens of two paired lines differ: a longest common subsequence.
function differing(a, b) {
  const x = tokens(a), y = tokens(b);
  const table = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--)
    for (let j = y.length - 1; j >= 0; j--)
      table[i][j] = x[i] === y[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const left = new Set(), right = new Set();
  let i = 0, j = 0;
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { i++; j++; }
    else if (j >= y.length || (i < x.length && table[i + 1][j] >= table[i][j + 1])) left.add(i++);
    else right.add(j++);
  }
  return 2 * table[0][0] > Math.max(x.length, y.length) ? [left, right] : [null, null];
}
const result = (text) => text.match(/^\s*(%[\w.\-]+|weight @[\w.\-]+|graph @\w+)/)?.[1];

// Rows of the difference between a step and the one before: {kind, a, b, left, right}; kind same, del or add.
function differences(index) {
  const old = steps[index - 1].lines, now = steps[index].lines, rows = [];
  let a = 0, b = 0;
  const same = (until) => { for (; a < until; a++, b++) rows.push({ kind: "same", a, b }); };
  for (const [a1, a2, b1, b2] of steps[index].diff) {
    same(a1);
    const gone = new Map();
    for (; a < a2; a++) {
      const row = { kind: "del", a, b: null };
      gone.set(result(lines[old[a]]), row);
      rows.push(row);
    }
    for (; b < b2; b++) {
      const row = { kind: "add", a: null, b };
      const partner = gone.get(result(lines[now[b]]));
      if (partner) {
        [partner.marked, row.marked] = differing(lines[old[partner.a]], lines[now[b]]);
        row.partner = partner;
        partner.partner = row;
      }
      rows.push(row);
    }
  }
  same(old.length);
  return rows;
}
function folded(rows) {
  const near = rows.map(() => false);
  rows.forEach((row, i) => {
    if (row.kind !== "same") for (let k = i - CONTEXT; k <= i + CONTEXT; k++) if (k in near) near[k] = true;
  });
  const groups = [];
  rows.forEach((row, i) => {
    if (!groups.length || groups.at(-1).shown !== near[i]) groups.push({ shown: near[i], rows: [] });
    groups.at(-1).rows.push(row);
  });
  return groups;
}
const unifiedRow = (index) => (row) => {
  const source = row.kind === "del" ? lines[steps[index - 1].lines[row.a]] : lines[steps[index].lines[row.b]];
  const sign = { same: "", del: "−", add: "+" }[row.kind];
  return `<div class="row ${row.kind}"><span class="at">${row.kind === "del" ? "" : row.b + 1}</span>` +
    `<span class="sign">${sign}</span><span class="text">${coloured(source, row.marked)}</span></div>`;
};
function splitRows(index, rows) {
  const old = steps[index - 1].lines, now = steps[index].lines, out = [];
  const side = (kind, at, text, marked) => at === null ? `<div class="side ${kind}"></div>` :
    `<div class="side ${kind}"><span class="at">${at + 1}</span><span class="text">${coloured(text, marked)}</span></div>`;
  const left = (row) => side(`${row.kind} left`, row.a, lines[old[row.a]], row.marked);
  const right = (row) => side(row.kind, row.b, lines[now[row.b]], row.marked);
  for (let i = 0; i < rows.length; ) {
    if (rows[i].kind === "same") { out.push(left(rows[i]) + right(rows[i])); i++; continue; }
    const gone = [], come = [];
    for (; i < rows.length && rows[i].kind === "del"; i++) gone.push(rows[i]);
    for (; i < rows.length && rows[i].kind === "add"; i++) come.push(rows[i]);
    // Lines that define the same thing face each other; the rest fills up in order.
    let g = 0;
    const empty = side("", null), gap = side("left", null);
    for (const row of come) {
      const partner = row.partner && gone.indexOf(row.partner) >= g ? gone.indexOf(row.partner) : -1;
      if (partner >= 0) { for (; g < partner; g++) out.push(left(gone[g]) + empty); out.push(left(gone[g++]) + right(row)); }
      else if (g < gone.length && !gone[g].partner) out.push(left(gone[g++]) + right(row));
      else out.push(gap + right(row));
    }
    for (; g < gone.length; g++) out.push(left(gone[g]) + empty);
  }
  return out.join("");
}

function changes(index) {
  if (!index) return `<p class="empty">Nothing came before: the tab “IR” shows the captured graph.</p>`;
  if (!steps[index].diff.length) return `<p class="empty">This pass changed nothing here.</p>`;
  const draw = split ? (rows) => splitRows(index, rows) : (rows) => rows.map(unifiedRow(index)).join("");
  const groups = folded(differences(index));
  const body = groups.map((group, i) => group.shown ? draw(group.rows) :
    `<button class="fold" data-fold="${i}">⋯ ${group.rows.length} unchanged lines</button>`).join("");
  changes.unfold = (i) => draw(groups[i].rows);
  const head = split ? `<div class="title">before (${escape(steps[index - 1].name)})</div><div class="title">after</div>` : "";
  return `<div class="ir${split ? " split" : ""}">${head}${body}</div>`;
}
function whole(index) {
  const fresh = new Set();
  for (const [, , b1, b2] of steps[index].diff) for (let b = b1; b < b2; b++) fresh.add(b);
  const rows = steps[index].lines.map((line, b) =>
    `<div class="row${fresh.has(b) ? " add" : ""}" id="line-${line}"><span class="at">${b + 1}</span>` +
    `<span class="sign"></span><span class="text">${coloured(lines[line])}</span></div>`);
  return `<div class="ir">${rows.join("")}</div>`;
}

function drawing(index) {
  const { title, width, height, nodes, edges } = steps[index].graph;
  if (!nodes.length) return `<p class="empty">There is nothing to draw.</p>`;
  zoom ||= Math.max(0.55, Math.min(1, (find("step").clientWidth - 30) / width));
  const curve = (p) => {
    let path = `M${p[0]} ${p[1]}`;
    for (let i = 2; i < p.length; i += 2) {
      const middle = (p[i - 1] + p[i + 1]) / 2;
      path += `C${p[i - 2]} ${middle} ${p[i]} ${middle} ${p[i]} ${p[i + 1]}`;
    }
    return path;
  };
  const arrow = (p) => {
    const x = p.at(-2), y = p.at(-1);
    return `<path class="arrow" d="M${x} ${y}l-3.5 -7h7z"/>`;
  };
  const box = (n) => `<g class="node${n.new ? " new" : ""}"><title>${escape(n.line)}</title>` +
    `<rect x="${n.x}" y="${n.y}" width="${n.w}" height="${n.h}" rx="${n.kind === "input" ? n.h / 2 : 5}" style="fill:var(--${n.kind})"/>` +
    `<text class="label" x="${n.x + n.w / 2}" y="${n.y + 16}">${escape(n.label)}</text>` +
    n.detail.map((text, i) => `<text class="more" x="${n.x + n.w / 2}" y="${n.y + 31 + 15 * i}">${escape(text)}</text>`).join("") + `</g>`;
  const kinds = ["product", "norm", "attention", "pointwise", "quantize", "move", "input"];
  const legend = kinds.map((k) => `<span><i style="background:var(--${k})"></i>${k}</span>`).join("");
  return `<div class="legend"><b>${escape(title)}</b>${legend}<span><i class="fresh"></i>new or changed</span>` +
    `<button data-zoom="0.8">−</button><button data-zoom="1.25">+</button><span>${nodes.length} nodes</span></div>` +
    `<div class="canvas"><svg width="${width * zoom}" height="${height * zoom}" viewBox="0 0 ${width} ${height}" role="img">` +
    edges.map((p) => `<path class="edge" d="${curve(p)}"/>${arrow(p)}`).join("") + nodes.map(box).join("") + `</svg></div>`;
}

function whyNot(index) {
  const rows = steps[index].refusals;
  if (!rows.length) return `<p class="empty">The pass left no near match alone.</p>`;
  const body = rows.map(([where, why, count]) =>
    `<tr><td><code class="where">${escape(where || "the graph")}</code></td><td>${escape(why)}</td><td>${count > 1 ? `${count}×` : ""}</td></tr>`);
  return `<table><tr><th>where</th><th>why it did not fire</th><th></th></tr>${body.join("")}</table>`;
}

function pipeline() {
  let level = "", out = "";
  steps.forEach((step, i) => {
    if (step.level !== level) { level = step.level; out += `<h2>${escape(level)}</h2>`; }
    const delta = i ? step.ops - steps[i - 1].ops : 0;
    const sign = delta < 0 ? `<span class="delta less">−${-delta}</span>` : delta ? `<span class="delta more">+${delta}</span>` : "";
    const near = step.refusals.length ? `<span class="near" title="near matches left alone">${step.refusals.length} near</span>` : "";
    const idle = i && !step.diff.length ? " idle" : "";
    out += `<button class="${i === current ? "current" : ""}${idle}" data-step="${i}" title="${escape(step.text)}">` +
      `<span class="number">${i}</span><span class="name">${escape(step.name)}</span>${near}${sign}</button>`;
  });
  find("pipeline").innerHTML = out;
}

function charts() {
  const chart = (title, key, text) => {
    const values = steps.map((s) => s[key]), top = Math.max(...values, 1), w = 300 / values.length;
    const bars = values.map((v, i) => {
      const h = Math.max(48 * v / top, v ? 1.5 : 0);
      return `<rect class="bar${i === current ? " current" : ""}" data-step="${i}" x="${i * w + .6}" y="${50 - h}" width="${w - 1.2}" height="${h}">` +
        `<title>${i} ${escape(steps[i].name)}: ${text(v)}</title></rect>`;
    });
    return `<div class="chart"><h3><span>${title}</span><b>${text(values[current])}</b></h3>` +
      `<svg viewBox="0 0 300 52" preserveAspectRatio="none">${bars.join("")}<line class="base" x1="0" x2="300" y1="50.5" y2="50.5"/></svg></div>`;
  };
  find("charts").innerHTML = chart("ops run in a step", "ops", String) + chart("bytes of weights used", "weights", bytes) +
    chart(`bytes written for a token (${about.cached} cached)`, "values", bytes);
}

function panel() {
  const step = steps[current];
  const done = Object.entries(step.counts).filter(([, n]) => n).map(([name, n]) => `<span class="chip">${escape(name)} × ${n}</span>`);
  const names = { changes: "Changes", ir: `IR (${step.lines.length} lines)`, graph: "Graph", "why-not": `Why not (${step.refusals.length})` };
  const tabs = TABS.map((t) => `<button class="${t === tab ? "current" : ""}" data-tab="${t}">${names[t]}</button>`).join("");
  const side = tab === "changes" ? `<label><input type="checkbox" id="split"${split ? " checked" : ""}> side by side</label>` : "";
  const body = { changes, ir: whole, graph: drawing, "why-not": whyNot }[tab](current);
  find("step").innerHTML = `<h2><code>${escape(step.text)}</code><small>level ${escape(step.level)}</small></h2>` +
    `<p class="purpose">${escape(step.purpose)}</p><div class="chips">${done.join("") || (current ? '<span class="chip">nothing to do</span>' : "")}</div>` +
    `<div class="tabs">${tabs}${side}</div>${body}`;
}
function show() {
  pipeline();
  charts();
  panel();
  document.querySelector("nav .current")?.scrollIntoView({ block: "nearest" });
}
function go(step, to = tab) {
  zoom = 0;
  location.hash = `${step}/${to}${split ? "/split" : ""}`;
}
function read() {
  const [step, to, how] = location.hash.slice(1).split("/");
  current = Math.min(Math.max(Number(step) || 0, 0), steps.length - 1);
  tab = TABS.includes(to) ? to : current ? "changes" : "ir";
  split = how === "split";
  show();
}

function search(words) {
  const box = find("found");
  box.hidden = words.length < 2;
  if (box.hidden) return;
  const wanted = words.toLowerCase(), at = new Map();
  steps.forEach((step, i) => step.lines.forEach((line) => {
    if (!at.has(line)) at.set(line, [i, i]);
    at.get(line)[1] = i;
  }));
  const hits = [...at.keys()].filter((line) => lines[line].toLowerCase().includes(wanted));
  const row = (line) => {
    const [first, last] = at.get(line), text = lines[line].trim(), i = text.toLowerCase().indexOf(wanted);
    const marked = `${escape(text.slice(0, i))}<mark>${escape(text.slice(i, i + words.length))}</mark>${escape(text.slice(i + words.length))}`;
    const where = first === last ? `only after ${first} ${steps[first].name}` : `${first} ${steps[first].name} … ${last} ${steps[last].name}`;
    return `<button class="result" data-line="${line}" data-step="${first}"><span class="steps">${escape(where)}</span><code class="ir-text">${marked}</code></button>`;
  };
  box.innerHTML = `<h3>${hits.length} lines hold “${escape(words)}”${hits.length > 150 ? ", the first 150:" : ""}</h3>` + hits.slice(0, 150).map(row).join("");
}

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const resultRow = on(".result");
  if (resultRow) {
    go(resultRow.dataset.step, "ir");
    setTimeout(() => {
      const line = find(`line-${resultRow.dataset.line}`);
      line?.classList.add("hit");
      line?.scrollIntoView({ block: "center" });
    }, 60);
  } else if (on("[data-step]")) go(on("[data-step]").dataset.step);
  else if (on("[data-tab]")) go(current, on("[data-tab]").dataset.tab);
  else if (on("[data-fold]")) on("[data-fold]").outerHTML = changes.unfold(Number(on("[data-fold]").dataset.fold));
  else if (on("[data-zoom]")) { zoom *= Number(on("[data-zoom]").dataset.zoom); panel(); }
  else if (on("[data-name]")) {
    const { name } = on("[data-name]").dataset, was = on("[data-name]").classList.contains("same-value");
    document.querySelectorAll("[data-name]").forEach((e) => e.classList.toggle("same-value", !was && e.dataset.name === name));
  }
});
document.addEventListener("change", (event) => { if (event.target.id === "split") { split = event.target.checked; go(current); } });
find("search").addEventListener("input", (event) => search(event.target.value.trim()));
document.addEventListener("keydown", (event) => {
  if (event.target.id === "search") {
    if (event.key === "Escape") { event.target.value = ""; search(""); event.target.blur(); }
    return;
  }
  if (event.key === "/") { event.preventDefault(); find("search").focus(); }
  if (event.key === "j" || event.key === "ArrowRight") go(Math.min(current + 1, steps.length - 1));
  if (event.key === "k" || event.key === "ArrowLeft") go(Math.max(current - 1, 0));
});
window.addEventListener("hashchange", read);
find("about").textContent = `${about.layers} · ${steps.length - 1} passes`;
read();
