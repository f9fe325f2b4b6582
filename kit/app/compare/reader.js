// Of the reading page: what a phone shows, samples, keys, the strip, and tokens linked to the chart.
const reader = () => document.getElementById("kit-reader");
const bar = () => element.getBoundingClientRect().bottom;

// run `change` and have the line that was at the top stand where it stood
function keepingLine(change) {
  const rows = [...reader().querySelectorAll(".kit-row")];
  const row = rows.find((one) => one.getBoundingClientRect().bottom > bar());
  const before = row?.getBoundingClientRect().top;
  change();
  if (row && before < bar()) window.scrollBy(0, row.getBoundingClientRect().top - before);
}

function show(side) {
  keepingLine(() => {
    reader().dataset.show = side;
    element.querySelectorAll("[data-show]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.show === side);
    });
  });
}

const nameOf = (token) => [...(token?.classList ?? [])].find((name) => name.startsWith("kit-at-"));

function link(name, scrolls) {
  document.querySelectorAll(".kit-linked").forEach((one) => one.classList.remove("kit-linked"));
  document.querySelectorAll(`.${name}`).forEach((one) => {
    one.classList.add("kit-linked");
    if (scrolls && one.classList.contains("kit-token")) one.focus();
  });
}

element.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.show) show(button.dataset.show);
  if (button?.dataset.sample) trigger("pick", { sample: Number(button.dataset.sample) });
});

document.addEventListener("click", (event) => {
  const score = event.target.closest?.(".kit-scores button");
  if (score) trigger("go", { case: Number(score.dataset.case) });
  const mark = event.target.closest?.(".kit-strip i");
  if (mark) {
    const number = [...mark.parentElement.children].indexOf(mark);
    document.getElementById(`kit-row-${number}`).scrollIntoView();
  }
  const dot = nameOf(event.target.closest?.("svg [class*=kit-at-]"));
  if (dot) link(dot, true);
});

document.addEventListener("mouseover", ({ target }) => {
  const name = nameOf(target.closest?.("[class*=kit-at-]"));
  if (name) link(name, false);
});

// where a key is written, or chooses; on a checkbox and among views it is a vote
const TYPED = "input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable], [role=listbox]";
const VOTES = { 1: "left", 2: "right", 3: "tie", 4: "both_bad" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const token = event.target.closest?.(".kit-cell .kit-token");
  if (token && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const tokens = [...reader().querySelectorAll(".kit-cell .kit-token")].filter((one) => one.offsetParent);
    tokens[tokens.indexOf(token) + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
    event.preventDefault();
  } else if (event.key === "Enter" && event.target.closest?.("#kit-voter")) {
    event.target.blur();
  } else if (!event.target.closest?.(TYPED)) {
    const name = event.key.toLowerCase() === "n" ? "next" : VOTES[event.key] && `vote-${VOTES[event.key]}`;
    const button = name && document.getElementById(`kit-${name}`);
    if (button && button.offsetParent && !button.disabled) button.click();
  }
});

// a swipe goes from the left answer over both to the right one, and back
let startX, startY;
document.addEventListener("touchstart", ({ touches, target }) => {
  startX = target.closest?.("#kit-text") ? touches[0].clientX : undefined;
  startY = touches[0].clientY;
}, { passive: true });
document.addEventListener("touchend", ({ changedTouches }) => {
  const x = changedTouches[0].clientX - startX, y = changedTouches[0].clientY - startY;
  if (!(Math.abs(x) > 60 && Math.abs(x) > 2 * Math.abs(y))) return;
  const order = ["left", "both", "right"];
  const now = order.indexOf(reader().dataset.show || "both");
  show(order[Math.min(2, Math.max(0, now + (x < 0 ? 1 : -1)))]);
}, { passive: true });

reader().dataset.view = "diff";

// the address holds what is read, so that it can be shared; what is empty is left out
window.kitShare = (said) => {
  const address = new URL(window.location);
  for (const [name, value] of Object.entries(said)) {
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
  }
  history.replaceState(null, "", address);
};

// a rendered head starts with what is chosen
watch("value", () => {
  const heads = element.querySelector(".kit-heads");
  const side = reader().dataset.show || "both";
  const isGone = heads && !heads.querySelector(`[data-show=${side}]`); // the base's column
  show(isGone ? "both" : side);
  if (heads) kitShare({ ...heads.dataset });
});
