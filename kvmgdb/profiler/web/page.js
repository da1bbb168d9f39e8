"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const total = data.tree.v;

  // Hue of each kind of frame; what a function's name adds is its lightness.
  const HUES = {
    kernel: [28, 90],
    module: [48, 85],
    user: [140, 45],
    jit: [175, 50],
    interpreter: [265, 50],
    unknown: [0, 45],
    mark: [210, 12],
  };

  function lightness(name) {
    let hash = 0;
    for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
    return 60 + (hash % 17);
  }

  function color(kind, name) {
    const [hue, saturation] = HUES[kind];
    return `hsl(${hue} ${saturation}% ${lightness(name)}%)`;
  }

  function percent(count) {
    return `${((100 * count) / total).toFixed(2)} %`;
  }

  function describe(node) {
    const { name, value, own, file } = node.data;
    const where = file ? ` in ${file}` : "";
    const self = own ? `, ${own} (${percent(own)}) in itself` : "";
    return `${name}${where}: ${value} samples (${percent(value)})${self}`;
  }

  // The letters are what the file says, to be short: one for each function.
  function inflate(node) {
    const [name, kind, file] = data.functions[node.f];
    node.name = name;
    node.kind = kind;
    node.file = file;
    node.own = node.o || 0;
    node.value = node.v;
    delete node.v;
    node.children = node.c || [];
    delete node.c;
    node.children.forEach(inflate);
  }

  // ---- the chart

  const chart = flamegraph
    .default()
    .cellHeight(18)
    .minFrameSize(0.5)
    .transitionDuration(matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 250)
    .sort(true)
    .setDetailsElement(element("details"))
    .setLabelHandler(describe)
    .setSearchMatch((node, term) => term !== "" && pattern !== null && pattern.test(node.data.name))
    .setSearchHandler((_results, sum) => {
      found = `found: ${sum} samples (${percent(sum)})`;
      element("details").textContent = found;
    })
    .setDetailsHandler((text) => {
      element("details").textContent = text || found;
    })
    .setColorMapper((node) =>
      node.highlight ? "#e35be3" : color(node.data.kind, node.data.name),
    );
  let pattern = null;
  let found = "";

  function width() {
    return Math.max(element("chart").clientWidth, 100);
  }

  function draw() {
    chart.width(width());
    d3.select("#chart").datum(data.tree).call(chart);
  }

  // ---- controls

  function search() {
    const input = element("search");
    input.setCustomValidity("");
    if (input.value === "") {
      pattern = null;
      found = "";
      element("details").textContent = "";
      chart.clear();
      return;
    }
    try {
      pattern = new RegExp(input.value, "i");
    } catch (error) {
      input.setCustomValidity(error.message);
      element("details").textContent = error.message;
      return;
    }
    chart.search(input.value);
  }

  function reset() {
    element("search").value = "";
    search();
    chart.resetZoom();
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    element("theme").textContent = theme === "dark" ? "Light" : "Dark";
  }

  element("search").addEventListener("input", search);
  element("search-form").addEventListener("submit", (event) => event.preventDefault());
  element("reset").addEventListener("click", reset);
  element("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
  element("invert").addEventListener("click", () => {
    chart.inverted(!chart.inverted());
    element("invert").setAttribute("aria-pressed", String(chart.inverted()));
    chart.update();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      reset();
    } else if (event.key === "/" && event.target.tagName !== "INPUT") {
      event.preventDefault();
      element("search").focus();
    }
  });
  let resized = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => {
      chart.width(width());
      chart.update();
    }, 100);
  });

  function legend() {
    const kinds = new Set(data.functions.map((entry) => entry[1]));
    for (const [kind, name] of [
      ["kernel", "kernel"],
      ["module", "kernel module"],
      ["user", "user"],
      ["jit", "compiled at run time"],
      ["interpreter", "interpreted"],
      ["unknown", "unknown"],
    ]) {
      if (!kinds.has(kind)) continue;
      const swatch = document.createElement("i");
      swatch.style.background = color(kind, name);
      const entry = document.createElement("span");
      entry.append(swatch, `${name} `);
      element("legend").append(entry);
    }
  }

  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  inflate(data.tree);
  legend();
  draw();
})();
