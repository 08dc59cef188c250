// Explorers over frames that were drawn ahead: a row of frames for each control that moves, at each
// setting of those that are held. A row is one picture, moved behind a window.
for (const twin of document.querySelectorAll(".twin")) {
  const { alt, pictures, rows, values, start, held, moved } = JSON.parse(twin.dataset.twin);
  const controls = [...twin.querySelectorAll("input, select")];
  const [image, moves, output] = ["img", ".moves", "output"].map((s) => twin.querySelector(s));
  const at = (c) => Number(controls[c].value);
  const share = (index, count) => `${count > 1 ? (100 * index) / (count - 1) : 0}%`;
  const sprites = rows.map(() => new Image());
  const load = (row) => {
    if (!sprites[row].src) sprites[row].src = `${pictures}${row}.webp`;
    return sprites[row];
  };
  let ready = -1; // the row whose picture is decoded
  let last = moved[0];

  const name = () => {
    for (const [c, control] of controls.entries()) {
      if (control.type !== "range") continue;
      control.setAttribute("aria-valuetext", values[c][at(c)]);
      control.nextElementSibling.textContent = values[c][at(c)];
    }
  };
  const show = () => {
    const setting = held.reduce((number, c) => number * values[c].length + at(c), 0);
    const row = setting * moved.length + moved.indexOf(last);
    twin.ariaBusy = row !== ready;
    if (row !== ready) return load(row).decode().then(() => ((ready = row), show()));
    const { columns, readouts } = rows[row];
    const i = at(last);
    const lines = Math.ceil(readouts.length / columns);
    moves.style.backgroundImage = `url("${sprites[row].src}")`;
    moves.style.backgroundSize = `${100 * columns}% ${100 * lines}%`;
    moves.style.backgroundPosition =
      `${share(i % columns, columns)} ${share(Math.floor(i / columns), lines)}`;
    output.innerHTML = readouts[i];
    image.alt = `${alt} ${output.textContent}`;
  };
  const input = (c) => {
    if (moved.includes(c)) last = c;
    for (const other of moved) if (other !== last) controls[other].value = start[other];
    name();
    show();
  };
  controls.forEach((control, c) => control.addEventListener("input", () => input(c)));
  for (const event of ["pointerenter", "focusin"]) // before they are asked for
    twin.addEventListener(event, () => rows.forEach((_, row) => load(row)), { once: true });
  controls.forEach((control, c) => (control.value = start[c])); // where a reload kept others
  name();
  image.alt = `${alt} ${output.textContent}`;
}
