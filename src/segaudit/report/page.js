"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

/* Names come from a person's spec: Plotly reads a little HTML in its texts, so they are escaped for it. */
const safe = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const COLOURS = {
  light: ["#0072b2", "#d55e00", "#00855f", "#b4589a", "#8a6a00", "#3a9bd9", "#6b4fa0", "#5f6368"],
  dark: ["#56a9e0", "#f28c4d", "#3cc79d", "#e3a0c9", "#e0b53d", "#9ad0f2", "#b09ce8", "#b4b9c0"],
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "star"];
const MARKS = ["●", "■", "◆", "▲", "✖", "▼", "✚", "★"];

function draw(print = false) {
  const form = document.getElementById("controls");
  const { models, attacks, axes, series, quantities } = data.curves;
  const dark = !print && matchMedia("(prefers-color-scheme: dark)").matches;
  const colours = COLOURS[dark ? "dark" : "light"];
  const ink = dark ? "#e7e9ec" : "#1b1d21", rule = dark ? "#383c44" : "#e2e4e8";
  const quantity = form.quantity.value, panel = form.panel.value, line = panel === "model" ? "attack" : "model";
  const axis = axes.find((a) => a.norm === (form.norm ? form.norm.value : axes[0].norm));
  const on = (kind) => all(`input[name=${kind}]:checked`, form).map((box) => +box.value);
  const chosen = { model: on("model"), attack: on("attack") };
  const names = { model: models, attack: attacks };

  for (const kind of ["model", "attack"])
    all(`input[name=${kind}]`, form).forEach((box, i) => {
      const mark = box.parentElement.querySelector(".mark");
      mark.textContent = kind === line ? MARKS[i % MARKS.length] : "";
      mark.style.color = colours[i % colours.length];
    });

  const shown = series.filter((s) => s.norm === axis.norm && chosen.model.includes(s.model) && chosen.attack.includes(s.attack));
  const panels = chosen[panel].filter((i) => shown.some((s) => s[panel] === i));
  const plot = document.getElementById("plot");
  const width = Math.min(print ? 700 : plot.clientWidth, 56 + 560 * Math.max(1, panels.length));
  const across = Math.max(1, Math.min(panels.length, Math.floor(width / 300), 3));
  const down = Math.max(1, Math.ceil(panels.length / across));
  const height = panels.length ? 40 + down * 330 : 60;
  const top = Math.max(1, ...shown.flatMap((s) => [...s.points, ...s.own].flatMap((p) => [p[quantity], quantity === "miou" ? p.high : 0])));
  const places = [...axis.at, ...shown.flatMap((s) => s.own.map((p) => p.x))];
  const range = [Math.min(...places) - 0.4, Math.max(...places) + 0.4];
  const traces = [];
  const layout = {
    width, height, margin: { l: 48, r: 8, t: 30, b: 48 }, showlegend: false, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "inherit", size: 12, color: ink },
    annotations: [], shapes: [], modebar: { bgcolor: "rgba(0,0,0,0)", color: rule, activecolor: ink },
  };

  panels.forEach((number, i) => {
    const column = i % across, row = Math.floor(i / across), id = i ? i + 1 : "";
    const gap = across > 1 ? 48 / (width - 56) : 0, wide = (1 - gap * (across - 1)) / across;
    const left = column * (wide + gap), space = 78 / (height - 78), tall = (1 - space * (down - 1)) / down;
    const upper = 1 - row * (tall + space);
    layout[`xaxis${id}`] = {
      domain: [left, left + wide], anchor: `y${id}`, range, tickvals: axis.at, ticktext: axis.text, gridcolor: rule, zeroline: false,
      title: { text: axis.title, standoff: 6 }, fixedrange: true, linecolor: ink,
    };
    layout[`yaxis${id}`] = {
      domain: [Math.max(0, upper - tall), upper], anchor: `x${id}`, range: [0, top * 1.04], gridcolor: rule, zeroline: false,
      fixedrange: true, linecolor: ink, title: column ? undefined : { text: `${quantities[quantity]} (%)`, standoff: 6 },
    };
    layout.annotations.push({
      text: `<b>${safe(names[panel][number])}</b>`, x: left, y: upper, xref: "paper", yref: "paper", xanchor: "left",
      yanchor: "bottom", showarrow: false, font: { size: 13 },
    });
    if (quantity === "iou_ratio")
      layout.shapes.push({
        type: "line", xref: `x${id} domain`, yref: `y${id}`, x0: 0, x1: 1, y0: 50, y1: 50, line: { color: ink, width: 1, dash: "dot" },
      });
    for (const s of shown.filter((one) => one[panel] === number)) {
      const colour = colours[s[line] % colours.length], symbol = SYMBOLS[s[line] % SYMBOLS.length];
      const common = { xaxis: `x${id}`, yaxis: `y${id}`, type: "scatter" };
      const banded = s.points.filter((p) => p.low !== null && p.miou !== null);
      if (quantity === "miou" && banded.length > 1)
        traces.push({
          ...common, mode: "lines", x: [...banded, ...[...banded].reverse()].map((p) => p.x),
          y: [...banded.map((p) => p.high), ...[...banded].reverse().map((p) => p.low)],
          fill: "toself", fillcolor: `${colour}1f`, line: { width: 0 }, hoverinfo: "skip",
        });
      const label = (p) => `${safe(names[line][s[line]])}${s.threat === "white-box" ? "" : ` (${s.threat})`}, ${p.at}: ` +
        `${p[quantity] === null ? "–" : p[quantity].toFixed(1)} %` +
        (quantity === "miou" && p.low !== null ? ` (${p.low.toFixed(1)} to ${p.high.toFixed(1)})` : "");
      for (const [points, mode] of [[s.points, "lines+markers"], [s.own, "markers"]])
        if (points.length)
          traces.push({
            ...common, mode, x: points.map((p) => p.x), y: points.map((p) => p[quantity]), text: points.map(label),
            hovertemplate: "%{text}<extra></extra>", line: { color: colour, width: 2, dash: s.threat === "oblivious" ? "dot" : "solid" },
            marker: { color: colour, symbol, size: mode === "markers" ? 11 : 7 },
          });
    }
  });
  Plotly.react(plot, traces, layout, {
    displaylogo: false, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg", filename: data.name },
  });
}

if (data.curves.series.length) {
  const form = document.getElementById("controls");
  form.hidden = false;
  form.addEventListener("change", () => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw());
  draw();
}

/* Paper shows everything that a screen folds away. */
let folded = [];
addEventListener("beforeprint", () => {
  folded = all("details:not([open])");
  for (const node of folded) node.open = true;
});
addEventListener("afterprint", () => {
  for (const node of folded) node.open = false;
});

/* Selects that depend on each other: each offers what the ones before it leave, and keeps its value where it can. */
function chain(form, keys, things, start, show) {
  const fill = (wanted) => {
    let left = things;
    for (const key of keys) {
      const select = form[key], options = [...new Set(left.map((thing) => thing[key]))];
      select.replaceChildren(...options.map((text) => new Option(text, text)));
      select.value = options.includes(wanted[key]) ? wanted[key] : options[Math.floor(options.length / 2)];
      left = left.filter((thing) => thing[key] === select.value);
    }
    show(left[0]);
  };
  form.hidden = false;
  form.addEventListener("change", () => fill(Object.fromEntries(keys.map((key) => [key, form[key].value]))));
  fill(start);
}

if (data.pictures) {
  const { shots, before, files, start } = data.pictures;
  chain(document.getElementById("choice"), ["model", "attack", "eps"], shots, shots[start], (shot) => {
    all(".scene").forEach((scene, i) => {
      const item = shot.items[i], clean = before[shot.model] && before[shot.model][i];
      const parts = { ...item, before: clean ?? -1 };
      for (const picture of all("img[data-part]", scene)) {
        const number = parts[picture.dataset.part];
        if (number >= 0) picture.src = files[number]; else picture.removeAttribute("src");
        picture.closest(".extra")?.toggleAttribute("hidden", !(number >= 0));
      }
      scene.querySelector(".scale").textContent = item ? `× ${shot.scale}` : "";
      scene.querySelector(".told").textContent = item ? item.told : "not kept for this attack";
    });
  });
}

const matrices = all(".matrix");
if (matrices.length) {
  const things = matrices.map((node) => ({ attack: node.dataset.attack, eps: node.dataset.eps, node }));
  chain(document.getElementById("matrix"), ["attack", "eps"], things, { attack: data.typical }, (thing) => {
    for (const node of matrices) node.hidden = node !== thing.node;
  });
}
