// Every text that is seen: its contrast against what is behind it, where that is below 4.5:1 (WCAG AA).
() => {
  const channel = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { rgb: [r, g, b], a }; };
  const over = (top, alpha, below) => below.map((v, i) => v * (1 - alpha) + top[i] * alpha);
  const ancestors = (e) => (e ? [e, ...ancestors(e.parentElement ?? e.getRootNode().host)] : []);
  const ground = (e) =>
    ancestors(e).reverse().reduce((below, each) => {
      const { rgb, a } = colour(getComputedStyle(each).backgroundColor);
      return over(rgb, a, below);
    }, [255, 255, 255]);
  const seen = (e) => {
    const box = e.getBoundingClientRect();
    const off = "[disabled], [aria-disabled=true], canvas, svg, .js-plotly-plot";
    return box.width && box.height && !e.closest(off) && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  };
  const contrast = (e) => {
    const behind = ground(e);
    const { rgb, a } = colour(getComputedStyle(e).color);
    const opacity = ancestors(e).reduce((o, each) => o * Number(getComputedStyle(each).opacity), a);
    const [low, high] = [light(over(rgb, opacity, behind)), light(behind)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  return [...document.querySelectorAll("p, span, button, small, h1, h2, h3, code, label, div")]
    .filter((e) => seen(e) && contrast(e) < 4.5)
    .map((e) => `${contrast(e).toFixed(2)} ${e.textContent.trim().slice(0, 60)}`);
}
