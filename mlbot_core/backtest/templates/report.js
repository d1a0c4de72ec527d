"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const axes = (line, zero) => ({ gridcolor: line, zerolinecolor: zero, linecolor: line, tickcolor: line, automargin: true });
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  function template(dark) {
    const ink = dark ? "#c9d0da" : "#3b4452";
    const line = dark ? "#2b3340" : "#e3e6eb";
    const zero = dark ? "#566173" : "#aab2bf";
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      xaxis: axes(line, zero), yaxis: axes(line, zero),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: zero, activecolor: ink },
      hoverlabel: { bgcolor: dark ? "#232b36" : "#ffffff", bordercolor: zero, font: { color: ink } },
    } };
  }

  function draw(dark, width) {
    for (const [id, figure] of Object.entries(figures)) {
      const layout = { ...figure.layout, template: template(dark) };
      if (width) { layout.width = width; }
      // Plotly fills in what it is given; a copy keeps the stored figure as it was.
      Plotly.react(document.getElementById(id), structuredClone(figure.data), structuredClone(layout), {
        responsive: true, displaylogo: false, displayModeBar: "hover",
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      });
    }
  }

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    draw(isDark());
  });
  systemDark.addEventListener("change", () => draw(isDark()));
  let before;
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    draw(false, 690);
  });
  window.addEventListener("afterprint", () => {
    if (before) { root.dataset.theme = before; } else { delete root.dataset.theme; }
    draw(isDark());
  });
  draw(isDark());
})();
