"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.querySelector(".tip");

  /* A text beside the pointer, or below what has the focus. */
  const showTip = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), root.clientWidth - box.width - 8);
    const above = y + 18 + box.height > root.clientHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(8, above ? y - box.height - 12 : y + 18)}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const marked = (event) => event.target.closest && event.target.closest("[data-tip]");

  document.addEventListener("pointermove", (event) => {
    const element = marked(event);
    if (element) showTip(element.dataset.tip, event.clientX, event.clientY);
    else if (!event.target.closest || !event.target.closest(".chart")) hideTip();
  });
  document.addEventListener("focusin", (event) => {
    const element = marked(event);
    if (!element || !element.matches(":focus-visible")) return;
    const box = element.getBoundingClientRect();
    showTip(element.dataset.tip, box.left, box.bottom - 10);
  });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", hideTip, { passive: true });

  /* A block: the lines of the node, or of the line, under the pointer stand out. */
  const light = (svg, nodes, isOn) => {
    const seen = new Set(nodes);
    for (const line of svg.querySelectorAll("[data-s]")) {
      const on = isOn(line);
      line.classList.toggle("on", on);
      if (on && !line.classList.contains("line")) seen.add(line.dataset.s).add(line.dataset.t);
      if (on && svg.closest(".full")) seen.add(line.dataset.s).add(line.dataset.t);
    }
    for (const node of svg.querySelectorAll("[data-n]")) {
      node.classList.toggle("on", seen.has(node.dataset.n));
    }
    svg.classList.add("focus");
  };
  for (const svg of document.querySelectorAll("svg.block")) {
    const enter = (event) => {
      const node = event.target.closest("[data-n]");
      const line = event.target.closest(".edge");
      if (node) {
        const n = node.dataset.n;
        light(svg, [n], (l) => l.dataset.s === n || l.dataset.t === n);
      } else if (line) light(svg, [], (l) => l === line);
      else svg.classList.remove("focus");
    };
    svg.addEventListener("pointerover", enter);
    svg.addEventListener("focusin", enter);
    svg.addEventListener("pointerleave", () => svg.classList.remove("focus"));
    svg.addEventListener("focusout", () => svg.classList.remove("focus"));
  }

  /* The switch: what was removed, below and behind what is left. */
  for (const input of document.querySelectorAll(".show-dead")) {
    const figure = input.closest(".graph");
    const svg = figure.querySelector("svg.block");
    input.addEventListener("change", () => {
      figure.classList.toggle("full", input.checked);
      svg.setAttribute("viewBox", input.checked ? svg.dataset.full : svg.dataset.live);
    });
  }

  /* Charts: the values of all lines at the epoch nearest to the pointer. */
  for (const svg of document.querySelectorAll("svg[data-values]")) {
    /* of every column: epoch, place, then number and value of each line */
    const { names, columns } = JSON.parse(svg.dataset.values);
    const cursor = svg.querySelector(".cursor");
    svg.addEventListener("pointermove", (event) => {
      if (marked(event) || !columns.length) return;
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const distance = (column) => Math.abs(column[1] - x);
      const near = columns.reduce((a, b) => (distance(b) < distance(a) ? b : a));
      cursor.setAttribute("x1", near[1]);
      cursor.setAttribute("x2", near[1]);
      cursor.style.visibility = "visible";
      const lines = [`epoch ${near[0]}`];
      for (let i = 2; i < near.length; i += 2) lines.push(`${names[near[i]]}: ${near[i + 1]}`);
      showTip(lines.join("\n"), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => {
      cursor.style.visibility = "hidden";
      hideTip();
    });
  }

  document.querySelector(".theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "selected";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
})();
