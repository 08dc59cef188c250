// An Explorer in the page: native controls that have names, the picture with its alt text, and a
// line of numbers that is read out. Python computes and draws, and counts up `_drawn`.

const create = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const SILENCE = "No answer yet: the kernel is busy, or this cell has to be run again.";
let groups = 0;

function slider({ description, min, max, step, play }, move) {
  const look = { min, max, step };
  const range = create("input", { type: "range", ...look, ariaLabel: description });
  const number = create("input", { type: "number", ...look, ariaLabel: `${description}, exactly` });
  const row = create("div", { className: "control" }, create("span", {}, description), range, number);
  let timer, button;
  const stop = () => {
    timer = clearInterval(timer);
    if (button) button.textContent = "▶ Play";
  };
  const go = (value) => move(Math.min(max, Math.max(min, value)));
  range.oninput = () => (stop(), go(range.valueAsNumber));
  number.onchange = () => (stop(), Number.isFinite(number.valueAsNumber) && go(number.valueAsNumber));
  if (play) {
    const next = () => (range.valueAsNumber < max ? go(range.valueAsNumber + play) : stop());
    const start = () => {
      if (range.valueAsNumber >= max) go(min);
      timer = setInterval(next, 100);
      button.textContent = "■ Stop";
    };
    button = create("button", { type: "button", textContent: "▶ Play" });
    button.onclick = () => (timer ? stop() : start());
    row.append(button);
  }
  const show = (value) => {
    range.value = value;
    number.value = Number(value.toFixed(4));
  };
  return { row, show, stop };
}

function choice({ description, options }, move) {
  const name = `flowlib-choice-${groups++}`;
  const radios = options.map((option) =>
    create("input", { type: "radio", name, value: option, onchange: () => move(option) }),
  );
  const labels = radios.map((radio) => create("label", {}, radio, radio.value));
  const row = create("fieldset", { className: "control" }, create("legend", {}, description), ...labels);
  return { row, show: (value) => radios.forEach((r) => (r.checked = r.value === value)), stop() {} };
}

function render({ model, el }) {
  const [width, height] = model.get("_size");
  const picture = create("img", { width, height });
  const readout = create("output", { ariaLive: "polite" });
  const reset = create("button", { type: "button", textContent: "Reset" });
  let silence;
  const move = (changes) => {
    model.set("_values", { ...model.get("_values"), ...changes });
    model.save_changes();
    showValues();
    clearTimeout(silence);
    silence = setTimeout(() => (readout.textContent = SILENCE), 5000);
  };
  const controls = Object.entries(model.get("_controls")).map(([name, look]) => {
    const make = look.options ? choice : slider;
    return [name, make(look, (value) => move({ [name]: value }))];
  });
  reset.onclick = () => {
    controls.forEach(([, control]) => control.stop());
    move(model.get("_start"));
  };
  const showValues = () => {
    const values = model.get("_values");
    controls.forEach(([name, control]) => control.show(values[name]));
  };
  const draw = () => {
    clearTimeout(silence);
    const old = picture.src;
    picture.src = URL.createObjectURL(new Blob([model.get("_picture")], { type: "image/png" }));
    URL.revokeObjectURL(old);
    picture.alt = model.get("alt");
    readout.textContent = model.get("_readout");
    showValues();
  };

  const prediction = create("input", { type: "text" });
  prediction.oninput = () => {
    model.set("prediction", prediction.value);
    model.save_changes();
  };
  const question = create("p");
  const answer = create("p");
  const mine = create("label", { className: "prediction" }, "My prediction", prediction);
  const shut = create("details", {}, create("summary", {}, "Show answer"), answer);
  const ask = () => {
    question.textContent = model.get("question");
    answer.textContent = model.get("answer");
    prediction.value = model.get("prediction");
    question.hidden = mine.hidden = !model.get("question");
    shut.hidden = !model.get("answer");
  };
  const side = create("div", { className: "side" }, ...controls.map(([, { row }]) => row), readout, reset);
  el.classList.add("flowlib-explorer");
  el.append(question, mine, create("div", { className: "both" }, picture, side), shut);
  model.on("change:_drawn", draw);
  model.on("change:question change:answer", ask);
  ask();
  draw();

  // Keys belong to the controls: Jupyter's shortcuts (d d deletes a cell) are held back, but for
  // running the cell and saving. Jupyter listens first of all on the document, we on the window.
  const passes = (e) =>
    (e.key === "Enter" && (e.shiftKey || e.ctrlKey || e.metaKey)) ||
    (e.key === "s" && (e.ctrlKey || e.metaKey));
  const guard = (e) =>
    el.contains(e.target) && e.target.toggleAttribute("data-lm-suppress-shortcuts", !passes(e));
  const keep = (e) => passes(e) || e.stopPropagation();
  window.addEventListener("keydown", guard, true);
  for (const kind of ["keydown", "keypress", "keyup"]) el.addEventListener(kind, keep);
  return () => {
    window.removeEventListener("keydown", guard, true);
    controls.forEach(([, control]) => control.stop());
    clearTimeout(silence);
    URL.revokeObjectURL(picture.src);
  };
}

export default { render };
