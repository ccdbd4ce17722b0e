"use strict";
(() => {
  const PAGE = 50;
  const DIFF_CELLS = 4e6;
  const data = JSON.parse(document.getElementById("data").textContent);
  const { datasets, flips } = data;
  const noSide = { text: "", answer: null, correct: null, score: null, loglikelihoods: [], error: null };
  const noCase = { slices: [], delta: null, prompt: "", choices: [], answer: [], truth: [], margin: [], reason: "",
    draws: null, unstable: false };
  const cases = data.cases.map((each, place) => ({
    ...noCase, ...each, place, old: { ...noSide, ...each.old }, new: { ...noSide, ...each.new },
  }));
  const form = document.querySelector(".filters");
  const table = document.querySelector(".cases");
  const body = table.tBodies[0];
  const found = document.querySelector(".found");
  const pager = document.querySelector(".pager");
  const FILTERS = ["flip", "outcome", "dataset", "slice", "sort", "q"];
  let page = 0;
  let shown = [];

  // Text only ever enters the page as text: nothing here parses HTML.
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const number = (value) => value.toLocaleString("en-US");
  const words = (name) => name.replaceAll("_", " ");

  // Filters

  const keys = {
    flip: (each) => [each.flip],
    outcome: (each) => [each.outcome],
    dataset: (each) => [datasets[each.dataset]],
    slice: (each) => each.slices,
  };

  const fillOptions = () => {
    for (const [name, of] of Object.entries(keys)) {
      const counts = new Map();
      for (const each of cases) for (const key of of(each)) counts.set(key, (counts.get(key) || 0) + 1);
      const order = name === "flip" ? Object.keys(flips).filter((flip) => counts.has(flip)) : [...counts.keys()].sort();
      const options = order.map((key) => {
        const label = name === "flip" ? flips[key].words : name === "outcome" ? words(key) : key;
        return make("option", { value: key }, `${label} (${number(counts.get(key))})`);
      });
      form.elements[name].append(make("option", { value: "" }, "all"), ...options);
      form.elements[name].closest("label").hidden = order.length < 2 && name !== "flip";
    }
  };

  const searchText = (each) => {
    each.search ??= [each.id, each.prompt, ...each.choices, ...each.truth, each.old.text, each.new.text]
      .join("\n").toLowerCase();
    return each.search;
  };

  const matches = () => {
    const wanted = Object.keys(keys).filter((name) => form.elements[name].value !== "");
    const query = form.elements.q.value.trim().toLowerCase();
    return cases.filter((each) =>
      wanted.every((name) => keys[name](each).includes(form.elements[name].value)) &&
      (!query || searchText(each).includes(query)));
  };

  const collator = new Intl.Collator("en", { numeric: true });
  const sorts = {
    "": (a, b) => a.rank - b.rank,
    order: (a, b) => a.place - b.place,
    id: (a, b) => collator.compare(a.id, b.id) || a.place - b.place,
  };

  // The list

  const render = () => {
    const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    body.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(row));
    table.hidden = !shown.length;
    pager.hidden = last === 0;
    pager.querySelector("span").textContent = `Page ${number(page + 1)} of ${number(last + 1)}`;
    const [previous, next] = pager.querySelectorAll("button");
    previous.disabled = page === 0;
    next.disabled = page === last;
    found.textContent = `${number(shown.length)} of ${number(cases.length)} cases`;
  };

  const row = (each) => {
    const button = make("button", { type: "button", class: "open", "aria-expanded": "false" }, make("bdi", {}, each.id));
    const tags = each.slices.join(", ");
    const flip = make("span", { class: `chip ${each.flip}` }, `${flips[each.flip].symbol} ${flips[each.flip].words}`);
    const line = make("tr", { "data-place": each.place },
      make("th", { scope: "row" }, button, tags ? make("bdi", { class: "tags" }, tags) : null),
      make("td", { class: "brief" }, flip, each.unstable ? make("span", { class: "chip inconclusive" }, "≈ unstable") : null),
      make("td", { class: "answer", "data-label": "old" }, make("bdi", {}, brief(each, each.old))),
      make("td", { class: "answer", "data-label": "new" }, make("bdi", {}, brief(each, each.new))),
      make("td", { class: "brief n" }, each.delta === null ? "" : change(each.delta)),
      make("td", { class: "brief" }, make("span", { class: `chip ${each.outcome}` }, words(each.outcome))));
    button.addEventListener("click", () => toggle(button, line, each));
    return line;
  };

  const change = (delta) => (delta > 0 ? "+" : delta < 0 ? "−" : "") + Math.abs(delta).toFixed(Number.isInteger(delta) ? 0 : 4);
  const brief = (each, side) => {
    if (side.error) return `not judged: ${side.error}`.slice(0, 200);
    if (each.task === "generation") return side.text.slice(0, 200);
    if (side.answer === null) return "no answer";
    return (each.choices.length ? each.choices[side.answer] : String(side.answer)).slice(0, 200);
  };

  const toggle = (button, line, each) => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) line.nextElementSibling.remove();
    else line.after(make("tr", { class: "detail" }, make("td", { colspan: "6" }, ...detail(each))));
  };

  // One case

  const detail = (each) => {
    const link = new URLSearchParams({ dataset: datasets[each.dataset], case: each.id });
    return [
      make("p", {}, each.reason ? make("bdi", {}, each.reason) : flips[each.flip].words, " · ",
        make("a", { href: `#${link}` }, "link to this case"), ` · ${datasets[each.dataset]}`),
      make("h3", {}, "Prompt"), make("pre", { tabindex: "0" }, each.prompt),
      ...(each.choices.length ? choices(each) : texts(each)),
      ...(each.draws ? draws(each) : []),
    ];
  };

  const draws = (each) => ["Old", "New"].map((title, i) =>
    make("p", { class: "note" }, `${title}, asked ${each.draws[i].length} times: `, make("bdi", {}, each.draws[i].join(" · "))));

  const worth = (side) => {
    if (side.error) return `not judged: ${side.error}`;
    if (side.correct === null) return side.score === null ? "" : `score ${side.score.toFixed(4)}`;
    return `${side.correct ? "✓ right" : "✕ wrong"}${side.answer === null ? ", no answer" : `: ${String(side.answer).slice(0, 200)}`}`;
  };

  const texts = (each) => {
    const [before, after] = difference(each.old.text, each.new.text);
    const panel = (title, side, marked) => make("div", {},
      make("h3", {}, `${title}: `, make("bdi", {}, worth(side))),
      make("pre", { tabindex: "0" }, ...(side.text === "" ? ["(empty)"] : marked)));
    return [
      make("h3", {}, each.truth.length > 1 ? "Truth (any of these)" : "Truth"),
      make("pre", { tabindex: "0" }, each.truth.join("\n")),
      make("div", { class: "pair" }, panel("Old", each.old, before), panel("New", each.new, after)),
    ];
  };

  const choices = (each) => {
    const rows = each.choices.map((choice, i) => make("tr", {},
      make("th", { scope: "row" }, make("bdi", {}, choice), each.answer.includes(i) ? make("b", { class: "passed" }, " ✓ right") : null),
      make("td", {}, likelihood(each.old, i)), make("td", {}, likelihood(each.new, i))));
    const head = ["Choice", "Old", "New"].map((title) => make("th", { scope: "col" }, title));
    const margins = each.margin.length
      ? make("p", { class: "note" }, `Margin of the right choice: ${each.margin.map((value) => value.toFixed(4)).join(" → ")} ${each.unit}`)
      : null;
    return [
      make("table", { class: "choices" },
        make("caption", {}, each.old.loglikelihoods.length || each.new.loglikelihoods.length
          ? "Log-likelihood of each choice; the bar is its share among the choices, the chosen one is bold"
          : "The choice of each model"),
        make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
      margins,
      ...[["Old", each.old], ["New", each.new]].filter(([, side]) => side.error || side.text)
        .map(([title, side]) => make("p", {}, `${title}: `, make("bdi", {}, side.error ? worth(side) : side.text))),
    ].filter(Boolean);
  };

  const likelihood = (side, i) => {
    const chosen = side.answer === i;
    const label = chosen ? "● " : "";
    if (!side.loglikelihoods.length) return make("div", { class: chosen ? "likelihood chosen" : "likelihood" }, chosen ? "● chosen" : "");
    const finite = side.loglikelihoods.map((value) => (value === null ? -Infinity : value));
    const top = Math.max(...finite);
    const total = finite.reduce((sum, value) => sum + Math.exp(value - top), 0);
    const share = top === -Infinity ? 0 : Math.exp(finite[i] - top) / total;
    const value = side.loglikelihoods[i];
    return make("div", { class: chosen ? "likelihood chosen" : "likelihood" },
      make("span", {}, label + (value === null ? "not finite" : value.toFixed(2).replace("-", "−"))),
      make("i", { style: `width:${(100 * share).toFixed(1)}%`, "aria-hidden": "true" }));
  };

  // Word by word: the longest common subsequence of what is left between equal ends.

  const TOKEN = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{N}_]+|\s+|[^]/gu;

  const difference = (old, now) => {
    const a = old.match(TOKEN) || [];
    const b = now.match(TOKEN) || [];
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const [keepA, keepB] = common(a.slice(start, a.length - end), b.slice(start, b.length - end));
    const mark = (tokens, keep, tag) => {
      const pieces = [];
      let changed = false;
      let text = "";
      const flush = () => { if (text) pieces.push(changed ? make(tag, {}, text) : text); text = ""; };
      tokens.forEach((token, i) => {
        const inside = i >= start && i < tokens.length - end;
        const differs = inside && !keep[i - start];
        if (differs !== changed) flush();
        changed = differs;
        text += token;
      });
      flush();
      return pieces;
    };
    return [mark(a, keepA, "del"), mark(b, keepB, "ins")];
  };

  const common = (a, b) => {
    const keepA = new Uint8Array(a.length);
    const keepB = new Uint8Array(b.length);
    const width = b.length + 1;
    if ((a.length + 1) * width > DIFF_CELLS) return [keepA, keepB];
    const length = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        length[i * width + j] = a[i] === b[j]
          ? length[(i + 1) * width + j + 1] + 1
          : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { keepA[i++] = 1; keepB[j++] = 1; }
      else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++;
      else j++;
    }
    return [keepA, keepB];
  };

  // Links: the filters stand in the address, so that a view can be sent to others.

  const update = () => {
    shown = matches().sort(sorts[form.elements.sort.value]);
    page = 0;
    render();
    const given = FILTERS.filter((name) => form.elements[name].value !== "");
    const link = new URLSearchParams(given.map((name) => [name, form.elements[name].value]));
    history.replaceState(null, "", given.length ? `#${link}` : location.pathname + location.search);
  };

  const follow = () => {
    if (!location.hash.includes("=")) return;
    const link = new URLSearchParams(location.hash.slice(1));
    for (const name of FILTERS) {
      const field = form.elements[name];
      field.value = link.get(name) ?? "";
      if (field.value !== (link.get(name) ?? "")) field.value = "";
    }
    shown = matches().sort(sorts[form.elements.sort.value]);
    page = 0;
    const place = link.has("case") ? shown.findIndex((each) => each.id === link.get("case")) : -1;
    if (place >= 0) page = Math.floor(place / PAGE);
    render();
    const line = place >= 0 ? body.querySelector(`tr[data-place="${shown[place].place}"]`) : null;
    if (line) line.querySelector("button").click();
    (line || document.getElementById("cases")).scrollIntoView();
  };

  let waiting = 0;
  fillOptions();
  // The search field has its own event: one more on leaving it would take the row away under a click.
  form.addEventListener("change", (event) => { if (event.target !== form.elements.q) update(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  form.elements.q.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
  pager.addEventListener("click", (event) => {
    const step = Number(event.target.dataset.step || 0);
    if (!step) return;
    page += step;
    render();
    document.getElementById("cases").focus();
  });
  addEventListener("hashchange", follow);
  shown = matches().sort(sorts[""]);
  render();
  follow();
})();
