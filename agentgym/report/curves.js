// Charts: a part of the page's script.
function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough), marks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) marks.push(i * step + 0);
  return marks;
}
function smooth(points) {  // the mean of the points around, where many would hide the trend
  const reach = Math.floor(points.length / 24);
  let sum = 0, first = 0, last = 0;
  return reach < 1 ? points : points.map((point, i) => {
    while (last < Math.min(points.length, i + reach + 1)) sum += points[last++].y;
    while (first < i - reach) sum -= points[first++].y;
    return { ...point, y: sum / (last - first) };
  });
}
function chart(curve, width = 540, height = 250) {
  const left = 46, right = 12, top = 10, bottom = 38;
  const lines = curve.series.map((series) => ({ name: series.name, points: series.x.map((x, i) => {
    const y = series.y[i];
    return isInterval(y) ? { x, y: y.estimate, low: y.low ?? y.estimate, high: y.high ?? y.estimate, mark: true } : { x, y, low: y, high: y };
  }).filter((point) => point.x != null && point.y != null) }));
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return el("figure", { class: "card" }, el("h3", {}, curve.title), el("p", { class: "note" }, "No points yet."));
  const least = (key) => points.reduce((m, p) => Math.min(m, p[key]), Infinity), most = (key) => points.reduce((m, p) => Math.max(m, p[key]), -Infinity);
  let [x0, x1, y0, y1] = [least("x"), most("x"), least("low"), most("high")];
  if (y0 >= 0 && y1 <= 1 && y1 > 0.1) [y0, y1] = [0, 1];
  if (x0 === x1) x1 = x0 + 1;
  if (y0 === y1) y1 = y0 + (Math.abs(y0) || 1);
  const X = (x) => left + (x - x0) / (x1 - x0) * (width - left - right), Y = (y) => height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom);
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const legend = el("div", { class: "legend" }), colour = (i) => `var(--s${i % 6})`;
  const describe = (at) => legend.replaceChildren(at == null ? "" : `${curve.x} ${compact(at)}`, ...lines.map((line, i) => {
    const near = at == null ? line.points.at(-1) : line.points.reduce((a, b) => Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a, line.points[0]);
    const bounds = near && near.mark ? ` [${number(near.low)}, ${number(near.high)}]` : "";
    const key = el("span", { class: "key" });
    key.style.color = colour(i);
    return el("span", {}, lines.length > 1 ? key : null, lines.length > 1 ? line.name : "", near && (at != null || lines.length === 1) ? ` ${at == null ? "last " : ""}${number(near.y)}${bounds}` : "");
  }));
  const draw = (points, i, style) => svg("polyline", { class: `line ${style}`, stroke: colour(i), points: points.map((p) => `${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)}`).join(" ") });
  const marks = ticks(y0, y1, height < 200 ? 4 : 5), thin = (y) => Math.abs(y) >= 1e4 ? compact(y) : Math.abs(y) < 1e-2 && y ? y.toExponential(0) : String(+y.toPrecision(6));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${curve.title} against ${curve.x}, ${several(points.length, "point")}, last ${number(points.at(-1).y)}` },
    marks.map((y) => [svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }), svg("text", { x: left - 7, y: Y(y) + 4, "text-anchor": "end" }, thin(y))]),
    ticks(x0, x1).map((x) => svg("text", { x: X(x), y: height - bottom + 17, "text-anchor": "middle" }, compact(x))),
    svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, curve.x), cursor,
    lines.map((line, i) => {
      const trend = line.points.some((p) => p.mark) ? line.points : smooth(line.points);
      return [trend === line.points ? null : draw(line.points, i, "faint"), draw(trend, i, ""),
        line.points.filter((p) => p.mark).map((p) => [svg("line", { x1: X(p.x), x2: X(p.x), y1: Y(p.low), y2: Y(p.high), stroke: colour(i), "stroke-width": 1.4, opacity: 0.6 }),
          svg("circle", { cx: X(p.x), cy: Y(p.y), r: 3.6, fill: colour(i) })])];
    }));
  const nearest = (event) => {
    const box = picture.getBoundingClientRect(), at = x0 + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (x1 - x0);
    return points.reduce((a, b) => Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a).x;
  };
  picture.addEventListener("pointermove", (event) => {
    const near = nearest(event);
    fill(cursor, { x1: X(near), x2: X(near), visibility: "visible" }, []);
    describe(near);
  });
  if (curve.pick) fill(picture, { class: "pick", click: (event) => curve.pick(nearest(event)) }, []);
  picture.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); describe(null); });
  describe(null);
  return el("figure", { class: "card" }, el("div", {}, el("h3", {}, curve.title), legend), picture);
}
const FIRST = ["reward", "success", "groups_with_signal", "loss", "kl", "gradient_norm"];
function showCurves(curves, metrics, pick, open = false) {  // ``pick`` hears of the step that is clicked on
  const rank = (name) => (FIRST.indexOf(name) + 1) || 99, names = [...new Set(metrics.flatMap(Object.keys))].filter((name) => name !== "step").sort((a, b) => rank(a) - rank(b));
  const small = (names) => el("div", { class: "panels" }, names.map((name) => chart({ title: name.replaceAll("_", " "), x: "step", pick, series: [{ name, x: metrics.map((row) => row.step), y: metrics.map((row) => row[name]) }] }, 300, 180)));
  const rest = names.slice(4), others = rest.length ? el("details", { class: "more", toggle: () => { if (others.open && others.childElementCount < 2) others.append(small(rest)); } },
    el("summary", {}, `${several(rest.length, "more curve")}: ${rest.map((name) => name.replaceAll("_", " ")).join(", ")}`)) : null;
  show("curves", "Learning curves", curves.length ? el("div", { class: "panels wide" }, curves.map((curve) => chart(curve))) : null, names.length ? small(names.slice(0, 4)) : null, others,
    curves.length ? el("p", { class: "note" }, "Dots are evaluations, with their intervals. Point at a chart to read its values.") : null,
    pick ? el("p", { class: "note" }, "Click on a step to list the trees that its metrics were computed from.") : null);
  if (others && open) others.open = true;
}
const SPENT = ["generate", "environment", "score", "learn", "sync", "idle"], BARS = 150;
function showTimes(rows, pick) {  // a bar for each step, or for the mean of several
  const names = SPENT.filter((name) => rows.some((row) => row[`seconds_${name}`] > 0)), size = Math.ceil(rows.length / BARS), bars = [];
  if (!names.length) return;
  const sum = (list) => list.reduce((a, b) => a + b, 0), spent = (some) => names.map((name) => sum(some.map((row) => row[`seconds_${name}`] ?? 0)));
  for (let i = 0; i < rows.length; i += size) {
    const some = rows.slice(i, i + size);
    bars.push({ step: some[0].step, last: some.at(-1).step, seconds: spent(some).map((one) => one / some.length) });
  }
  const [width, height, left, top, bottom] = [1100, 220, 46, 10, 38], high = bars.reduce((most, bar) => Math.max(most, sum(bar.seconds)), 0), wide = (width - left) / bars.length;
  const Y = (y) => height - bottom - y / high * (height - top - bottom), colour = (name) => name === "idle" ? "var(--line)" : `var(--s${SPENT.indexOf(name)})`;
  const legend = el("div", { class: "legend" }), share = (seconds) => names.map((name, i) => `${name} ${number(seconds[i])} s (${Math.round(100 * seconds[i] / sum(seconds))}%)`), all = spent(rows);
  const describe = (bar) => legend.replaceChildren(!bar ? "all steps" : bar.step === bar.last ? `step ${bar.step}` : `mean of steps ${bar.step} to ${bar.last}`, ...share(bar ? bar.seconds : all).map((text, i) => {
    const key = el("span", { class: "key" });
    key.style.color = colour(names[i]);
    return el("span", {}, key, text);
  }));
  const every = Math.ceil(bars.length / 10), picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `seconds of all steps: ${share(all).join(", ")}`, pointerleave: () => describe(null) },
    ticks(0, high, 4).map((y) => [svg("line", { class: "grid", x1: left, x2: width, y1: Y(y), y2: Y(y) }), svg("text", { x: left - 7, y: Y(y) + 4, "text-anchor": "end" }, compact(y))]),
    bars.map((bar, i) => svg("g", { "data-step": bar.step, class: pick ? "pick" : null, pointerenter: () => describe(bar), click: () => pick?.(bar.step) }, names.map((name, n) =>
      svg("rect", { x: left + i * wide, width: wide * 0.86, y: Y(sum(bar.seconds.slice(0, n + 1))), height: bar.seconds[n] / high * (height - top - bottom), fill: colour(name) })))),
    bars.map((bar, i) => i % every ? null : svg("text", { x: left + (i + 0.43) * wide, y: height - bottom + 17, "text-anchor": "middle" }, compact(bar.step))), svg("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "step"));
  describe(null);
  show("times", "Where time went", el("figure", { class: "card" }, el("div", {}, el("h3", {}, "seconds for each step"), legend), picture),
    el("p", { class: "note" }, "Each moment counts once: generate has a generation and no learning under way, environment has environments alone, idle has none of these."));
}
