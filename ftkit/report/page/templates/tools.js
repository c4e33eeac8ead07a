// Copy buttons, and the part of the page that is being read.
const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // no permission, or an older browser
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
};
const copyButton = (words, what, text) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = words;
  button.setAttribute("aria-label", words + ": " + what);
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(text())) ? tr("Copied") : tr("Not copied");
    setTimeout(() => { button.textContent = words; }, 2000);
  });
  return button;
};
document.querySelectorAll("main pre").forEach((pre) => {
  pre.before(copyButton(tr("Copy"), pre.getAttribute("aria-label") || tr("text"), () => pre.textContent));
});
document.querySelectorAll("main .scroll").forEach((region) => {
  const table = region.querySelector("table");
  if (table) region.before(copyButton(tr("Copy table"), region.getAttribute("aria-label") || "", () => tabbed(table)));
});
document.querySelectorAll("main code.command").forEach((code) => {
  code.after(" ", copyButton(tr("Copy"), code.textContent, () => code.textContent));
});

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const markPart = () => {
  const headings = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  const passed = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3);
  const atEnd = scrollY > 0 && scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  const current = atEnd ? headings.at(-1) : passed.at(-1);
  for (const [id, link] of links) {
    if (!current || id !== current.id) link.removeAttribute("aria-current");
    else if (!link.hasAttribute("aria-current")) {
      link.setAttribute("aria-current", "location");
      const list = link.closest("nav"); // a narrow page's list scrolls sideways
      list.scrollLeft = link.offsetLeft - list.offsetLeft - 24;
    }
  }
};
addEventListener("scroll", () => requestAnimationFrame(markPart), { passive: true });
markPart();
