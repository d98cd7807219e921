// Draws every chart of the page. `ast` evaluates Vega's expressions without eval, which the page's policy forbids.
const charts = JSON.parse(document.getElementById("charts").textContent);
for (const [id, spec] of Object.entries(charts)) {
  const place = document.getElementById(id);
  // As many names side by side as there is room for, so that a phone shows them all.
  const columns = Math.max(1, Math.floor((place.clientWidth - 60) / spec.usermeta.nameWidth));
  const options = { renderer: "svg", actions: false, ast: true, config: { legend: { columns } } };
  vegaEmbed(place, spec, options).catch((error) => {
    console.error(id, error);
    place.textContent = "This chart could not be drawn: " + error.message;
  });
}
// Paper has no way to unfold.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
