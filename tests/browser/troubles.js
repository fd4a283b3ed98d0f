// What is wrong with the layout of a widget, as lines: cut off, sticking out, scrolling sideways, overlapping controls.
(root) => {
  const troubles = [];
  const around = root.getBoundingClientRect();
  const area = root.closest(".jp-OutputArea-output") ?? root.parentElement;
  const name = (node) => `${node.tagName.toLowerCase()}.${node.className} ${(node.ariaLabel || node.textContent).slice(0, 40)}`;
  const seen = [...root.querySelectorAll("*")].filter(
    (node) => node.checkVisibility() && !node.closest(".sb-unseen, canvas, option, datalist"),
  );
  // What scrolls by itself, such as a block of code, may hold more than it shows.
  const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
  const isInScroller = (node) => {
    for (let up = node.parentElement; up && up !== root; up = up.parentElement) if (scrolls(up)) return true;
    return false;
  };

  if (root.scrollWidth > root.clientWidth + 1) troubles.push(`scrolls sideways: ${root.scrollWidth} > ${root.clientWidth}`);
  if (around.right > Math.min(area.getBoundingClientRect().right, innerWidth) + 1) troubles.push("wider than its place");
  for (const node of seen) {
    const { left, right, width } = node.getBoundingClientRect();
    if (!width || isInScroller(node)) continue;
    if (right > around.right + 1 || left < around.left - 1) troubles.push(`sticks out: ${name(node)}`);
    const isCut = getComputedStyle(node).overflowX === "hidden" && node.scrollWidth > node.clientWidth + 1;
    if (isCut && !node.matches("input, select, textarea")) troubles.push(`is cut off: ${name(node)}`);
  }

  const controls = seen.filter((node) => node.matches("button, input, select, textarea, summary, [tabindex]"));
  const places = controls.map((node) => [node, node.getBoundingClientRect()]);
  places.forEach(([one, a], at) => {
    for (const [other, b] of places.slice(at + 1)) {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      const apart = across <= 1 || down <= 1 || one.contains(other) || other.contains(one);
      if (!apart) troubles.push(`${name(one)} overlaps ${name(other)}`);
    }
  });
  return troubles.slice(0, 10);
}
