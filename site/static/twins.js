// A slider over frames that were drawn ahead: it moves one large picture behind a window.
for (const twin of document.querySelectorAll(".twin")) {
  const { values, readouts, columns } = JSON.parse(twin.dataset.frames);
  const [frame, slider, output] = [".frame", "input", "output"].map((s) => twin.querySelector(s));
  const rows = Math.ceil(values.length / columns);
  const share = (index, count) => `${count > 1 ? (100 * index) / (count - 1) : 0}%`;
  const show = () => {
    const i = Number(slider.value);
    const [column, row] = [i % columns, Math.floor(i / columns)];
    frame.style.backgroundPosition = `${share(column, columns)} ${share(row, rows)}`;
    slider.setAttribute("aria-valuetext", String(values[i]));
    output.innerHTML = readouts[i];
  };
  slider.addEventListener("input", show);
  show();
}
