"use strict";
(async function () {
  const charts = JSON.parse(document.getElementById("eventtrain-charts").textContent);

  function give_up(why) {
    for (const place of document.querySelectorAll(".plot")) {
      place.className = "faint";
      place.style.padding = "0.8rem";
      place.textContent = "Not drawn: " + why + ". The numbers stand in the tables of this page.";
    }
  }

  async function load_library() {
    const packed = atob(document.getElementById("eventtrain-library").textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.appendChild(script);
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function axis(title, more) {
    const line = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
    return { title: { text: title }, ...line, ...more };
  }

  function trace_of(chart, trace) {
    const ink = colour("--c" + (trace.color % 8));
    if (chart.is_bars) {
      return { type: "bar", orientation: "h", name: trace.name, x: trace.x, y: trace.y, marker: { color: ink } };
    }
    return {
      type: "scatter",
      mode: trace.x.length < 60 && trace.shape !== "hv" ? "lines+markers" : "lines",
      name: trace.name, x: trace.x, y: trace.y,
      line: { color: ink, dash: trace.dash || "solid", shape: trace.shape || "linear", width: 2 },
      marker: { size: 5 },
    };
  }

  function layout_of(chart) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), size: 12 },
      margin: { l: 50, r: 15, t: 25, b: 40 },
      showlegend: chart.traces.length > 1,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hovermode: chart.is_bars ? "closest" : "x unified",
      hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") }, namelength: -1 },
      barmode: "group",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: axis(chart.x, {}),
      yaxis: axis(chart.y, chart.is_bars ? { ticksuffix: "  " } : {}),
    };
  }

  function draw() {
    charts.forEach(function (chart, index) {
      const place = document.getElementById("chart-" + index);
      const traces = chart.traces.map((trace) => trace_of(chart, trace));
      if (chart.is_bars) {
        const bars = chart.traces[0].y.length * (1 + chart.traces.length);
        place.style.height = 120 + 11 * bars + "px";
      }
      Plotly.react(place, traces, layout_of(chart), { responsive: true, displayModeBar: false });
    });
    document.documentElement.dataset.drawn = String(charts.length);
  }

  if (!charts.length) { return; }
  try {
    await load_library();
    draw();
    new ResizeObserver(() => document.querySelectorAll(".plot").forEach((place) => Plotly.Plots.resize(place)))
      .observe(document.body);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  } catch (error) {
    give_up(String(error));
  }
})();
