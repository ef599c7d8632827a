"use strict";
(() => {
  const curves = JSON.parse(document.getElementById("curves").textContent);
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const redraws = [];

  // The colour scheme: the system's, unless the button says otherwise.
  const schemes = ["automatic", "light", "dark"];
  const button = document.getElementById("theme");
  const recall = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const keep = (scheme) => { try { localStorage.setItem("theme", scheme); } catch { /* no store */ } };
  let scheme = schemes.includes(recall()) ? recall() : "automatic";
  const isDark = () => (scheme === "automatic" ? system.matches : scheme === "dark");
  const apply = () => {
    if (scheme === "automatic") delete root.dataset.theme;
    else root.dataset.theme = scheme;
    button.textContent = `Theme: ${scheme}`;
    redraws.forEach((redraw) => redraw());
  };
  button.addEventListener("click", () => {
    scheme = schemes[(schemes.indexOf(scheme) + 1) % schemes.length];
    keep(scheme);
    apply();
  });
  system.addEventListener("change", apply);

  // Lines have to stand out from a dark ground too: mix dark colours with white.
  const shade = (color) => {
    if (!isDark()) return color;
    const mixed = [1, 3, 5].map((at) => Math.round(0.55 * parseInt(color.slice(at, at + 2), 16) + 115));
    return `rgb(${mixed.join(",")})`;
  };

  const element = (parent, tag, properties = {}) => {
    const made = Object.assign(document.createElement(tag), properties);
    parent.append(made);
    return made;
  };

  const select = (parent, label, options, changed) => {
    const chosen = element(element(parent, "label", { textContent: label }), "select");
    options.forEach(([value, text]) => element(chosen, "option", { value, textContent: text }));
    chosen.addEventListener("change", changed);
    return chosen;
  };

  const setUp = (box) => {
    const chart = curves[box.dataset.curves];
    const hidden = new Set();
    const controls = element(box, "div", { className: "controls" });
    let draw = () => {};
    const changed = () => { buttons(); draw(); };
    const names = Object.keys(chart.panels).map((name) => [name, name || "all"]);
    const panel = select(controls, "Data", names, changed);
    const value = select(controls, "Quantity", chart.values, changed);
    const axis = select(controls, "Against", chart.axes, changed);
    const check = element(controls, "label", { className: "check" });
    const log = element(check, "input", { type: "checkbox", checked: true });
    check.append("log scale");
    log.addEventListener("change", () => draw());
    const series = element(box, "div", { className: "series" });
    const plot = element(box, "div", { className: "plot" });

    const runs = () => chart.panels[panel.value];
    const buttons = () => {
      series.replaceChildren();
      const groups = new Map(runs().map((run) => [run.group, run.color]));
      groups.forEach((color, group) => {
        const toggle = element(series, "button", { type: "button", textContent: group });
        toggle.style.setProperty("--series", shade(color));
        toggle.setAttribute("aria-pressed", String(!hidden.has(group)));
        toggle.addEventListener("click", () => {
          if (!hidden.delete(group)) hidden.add(group);
          changed();
        });
      });
    };

    draw = () => {
      const style = getComputedStyle(root);
      const colour = (name) => style.getPropertyValue(name).trim();
      const traces = runs().map((run) => {
        const at = run[value.value].flatMap((y, i) => (y === null || run[axis.value][i] === null ? [] : [i]));
        return {
          x: at.map((i) => run[axis.value][i]),
          y: at.map((i) => run[value.value][i]),
          name: run.name,
          mode: at.length > 1 ? "lines" : "markers",
          line: { color: shade(run.color), width: 1.6 },
          marker: { color: shade(run.color) },
          visible: !hidden.has(run.group),
        };
      });
      const positive = traces.every((trace) => trace.y.every((y) => y > 0));
      log.disabled = !positive;
      const label = (choice) => choice.selectedOptions[0].textContent;
      const lines = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--text"), family: "system-ui, sans-serif", size: 12 },
        margin: { l: 56, r: 8, t: 8, b: 44 },
        showlegend: false,
        hovermode: "closest",
        dragmode: "zoom",
        xaxis: { ...lines, title: { text: label(axis) }, rangemode: "tozero" },
        yaxis: { ...lines, title: { text: label(value) }, ...(log.checked && positive ? { type: "log", dtick: "D2" } : { type: "linear" }) },
      };
      Plotly.react(plot, traces, layout, { responsive: true, displayModeBar: false, displaylogo: false });
    };
    redraws.push(changed);
    changed();
  };

  // Charts are made when they come near the screen: the page opens at once.
  const seen = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      seen.unobserve(entry.target);
      setUp(entry.target);
    });
  }, { rootMargin: "400px" });
  document.querySelectorAll("[data-curves]").forEach((box) => seen.observe(box));
  apply();
})();
