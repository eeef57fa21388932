// Shows the text of a mark beside the pointer. Without scripts the browser shows the same text as a tooltip.
(() => {
  const box = document.createElement("div");
  box.className = "hover";
  box.setAttribute("role", "status");
  box.hidden = true;
  document.body.append(box);
  for (const mark of document.querySelectorAll("svg .tip")) {
    const title = mark.querySelector("title");
    mark.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("svg .tip") : null;
    box.hidden = !mark;
    if (!mark) return;
    box.textContent = mark.dataset.tip;
    const left = Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8);
    box.style.left = Math.max(8, left) + "px";
    const above = event.clientY - box.offsetHeight - 12;
    box.style.top = (above > 8 ? above : event.clientY + 16) + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { box.hidden = true; }, { passive: true });
})();
