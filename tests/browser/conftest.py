"""JupyterLab on a free local port, with forked kernels, and Chromium to look at it; without either,
tests skip."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOW = (
    "type: pip install '.[browser]' && sudo apt install chromium   (or, for the second: "
    "playwright install chromium)"
)
SETTINGS = json.loads((ROOT / ".jupyterlab.json").read_text())  # as `make lab` has it
SETTINGS |= {
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "recordTiming": False},
}
LAB = f"""import sys; sys.path.append({str(ROOT / "tests")!r})
import kernels; kernels.fork_from_one_process()
from jupyterlab import labapp; labapp.main()"""
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
IDLE = (
    "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status "
    "=== 'idle'"
)
WATCH = f"""() => {{ window.errors = []; {NOTEBOOK}.sessionContext.iopubMessage.connect((_, m) => {{
  if (m.header.msg_type === 'error')
    window.errors.push(m.content.ename + ': ' + m.content.evalue) }}) }}"""
OPEN = f"""async path => {{
  await {NOTEBOOK}?.sessionContext.shutdown()
  {NOTEBOOK}?.dispose()
  await window.jupyterapp.commands.execute('docmanager:open', {{path}}) }}"""
RUN = f"""async cells => {{
  const notebook = {NOTEBOOK}.content
  notebook.activeCellIndex = cells[0]
  for (const i of cells) notebook.select(notebook.widgets[i])
  await window.jupyterapp.commands.execute('notebook:run-cell')
  notebook.deselectAll() }}"""
EVALUATE = f"""async code => {{
  const ask = {{code: '', store_history: false, user_expressions: {{v: code}}}}
  const kernel = {NOTEBOOK}.sessionContext.session.kernel
  const v = (await kernel.requestExecute(ask).done).content.user_expressions.v
  return v.status === 'ok' ? v.data['text/plain'] : v.evalue }}"""


def pytest_xdist_make_scheduler(config, log):
    """The sliders of each notebook go to whichever process is free; other tests of a file share a
    page, so one process has them, in order. (Marks of `xdist_group` have no effect in pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_every_slider" in nodeid else nodeid.split("::")[0]

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason=f"Playwright is not installed; {HOW}"
    )
    installed = next(
        filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
    )
    with sync_api.sync_playwright() as playwright:
        path = installed or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(f"Chromium is not installed; {HOW}")
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    """Address and token of a JupyterLab in a copy of the notebooks; and that folder."""
    root, home = tmp_path_factory.mktemp("copy") / "notebooks", tmp_path_factory.mktemp("jupyter")
    shutil.copytree(ROOT / "notebooks", root)
    (home / "labconfig").mkdir()
    (home / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
    folders = {"JUPYTER_CONFIG_DIR": "", "JUPYTER_DATA_DIR": "d", "JUPYTER_RUNTIME_DIR": "r"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "s", "JUPYTERLAB_WORKSPACES_DIR": "w"}
    command = [sys.executable, "-c", LAB, "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += ["--LabApp.extension_manager=readonly"]
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    environment |= {"JUPYTER_TOKEN": token}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        try:
            urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=1).read()
            break
        except OSError:
            time.sleep(0.1)
    yield url, token, root
    process.terminate()  # its kernels go with it
    process.wait(20)


class Lab:
    """A browser's page with one notebook at a time in it."""

    def __init__(self, page, url, token):
        self.page, self.url, self.token, self.console = page, url, token, []
        page.on(
            "console",
            lambda message: self.console.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.console.append(str(error)))

    def open(self, name, again=False):
        """Open a notebook in place of the one before, and wait for its kernel."""
        if again or not self.page.url.startswith(self.url):  # seldom: a page takes 10 s to load
            self.page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        else:
            self.page.evaluate(OPEN, name)
        self.page.wait_for_function(IDLE, timeout=90_000)
        self.console.clear()
        self.page.evaluate(WATCH)

    def run(self, name, cells):
        """Open a notebook and run these of its cells; one that raises fails the test."""
        self.open(name)
        self.page.evaluate(RUN, list(cells))
        assert self.errors() == []

    def errors(self):
        """Errors in cells, in callbacks of controls (which no page shows), and of JavaScript."""
        self.page.wait_for_function(IDLE, timeout=60_000)
        return self.page.evaluate("window.errors") + self.console

    def ask(self, expression):
        """The value of a Python expression in the kernel, as its repr."""
        return self.page.evaluate(EVALUATE, expression)


@pytest.fixture(scope="session")
def lab(server, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    yield Lab(context.new_page(), *server[:2])
    context.close()
